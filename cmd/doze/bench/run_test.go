package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func TestRunMeasuresEveryRow(t *testing.T) {
	report, err := Run(t.Context(), testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Rows) != len(catalog()) {
		t.Errorf("%d rows, want %d", len(report.Rows), len(catalog()))
	}
	for _, row := range report.Rows {
		l := languageOf(row.Key)
		switch {
		case l == "node" || l == "go":
			if row.NotMeasured == "" || row.Figures != nil || row.Reached != nil {
				t.Errorf("%s: cannot be measured, but is %+v", row.Key, row)
			}
		case row.NotMeasured != "":
			t.Errorf("%s is not measured: %s", row.Key, row.NotMeasured)
		case row.Errors > 0:
			t.Errorf("%s: %d errors: %s", row.Key, row.Errors, row.FirstError)
		case len(row.Figures) == 0:
			t.Errorf("%s has no figures", row.Key)
		}
	}
	want := map[string][]string{
		"ready.time":                  {P50},
		"idle.platform.rss":           {RSS},
		"echo.c64":                    {Rate, P50, P99, OpenP50, OpenP99, OpenRate, GeneratorCPU},
		"warm.python.c1":              {Rate, P50, P99, OpenP50, OpenP99, OpenRate, GeneratorCPU},
		"floor.python.p8":             {Rate, RoundP50, LoopCPU, FunctionCPU},
		"cpu.platform.python":         {PlatformCPU, FunctionCPU, LoopCPU, AboveFloorCPU},
		"cold.python":                 {P50, P99},
		"floor.start.python":          {P50, P99},
		"scale.0to100.python":         {AllStarted, AllAnswered, Instances},
		"idle.instance.memory.python": {AvailableMem},
		"cold.unparked.python":        {P50, P99, PoolHits, PoolMisses},
		"cold.nocache.python":         {P50, P99, PoolHits, PoolMisses},
		"thaw.python":                 {FrozenP50, AwakeP50, ThawAdded},
		"idle1000.python":             {Instances, AvailableMem},
	}
	for key, figures := range want {
		row := rowOf(t, report, key)
		for _, f := range figures {
			if _, ok := row.Figures[f]; !ok {
				t.Errorf("%s has no %s: %v", key, f, row.Figures)
			}
		}
	}
	if c := rowOf(t, report, "cold.python"); c.Calls != 2 {
		t.Errorf("cold.python counts %d calls, want 2: the first only brings the package", c.Calls)
	}
	if s := rowOf(t, report, "scale.0to100.python"); s.Figures[Instances] != 12 || s.Calls != 12 {
		t.Errorf("scale.0to100.python: %+v", s)
	}
	text, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(text, &back); err != nil || len(back.Rows) != len(report.Rows) {
		t.Errorf("JSON does not come back: %v", err)
	}
	var table bytes.Buffer
	if err := report.Write(&table); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
	entries, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

func TestRunOnAnotherPlatformRemovesItsFunctions(t *testing.T) {
	fake := newFakePlatform()
	server := httptest.NewServer(fake)
	defer server.Close()
	o := testOptions(t)
	o.Endpoint, o.Rows = server.URL, pattern(`python\.c1$|cold\.python|ready|cpu\.platform\.python`)
	report, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"ready.time", "cpu.platform.python"} {
		if row := rowOf(t, report, key); row.NotMeasured != errForeign.Error() {
			t.Errorf("%s: %+v", key, row)
		}
	}
	if row := rowOf(t, report, "warm.python.c1"); len(row.Ratios) == 0 || len(row.Targets) != 1 || row.Reached == nil {
		t.Errorf("warm.python.c1: %+v", row)
	}
	fake.mu.Lock()
	defer fake.mu.Unlock()
	if fake.created == 0 || len(fake.functions) > 0 {
		t.Errorf("%d functions created, left: %v", fake.created, fake.functions)
	}
}

func TestRunEndsWhenInterrupted(t *testing.T) {
	fake := newFakePlatform()
	server := httptest.NewServer(fake)
	defer server.Close()
	o := testOptions(t)
	o.Endpoint, o.Rows = server.URL, pattern(`^warm\.python\.c16$`)
	o.bounds.window = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Progress = writerFunc(func(b []byte) {
		if strings.Contains(string(b), "is warm") {
			time.AfterFunc(10*time.Millisecond, cancel)
		}
	})
	report, err := Run(ctx, o)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want canceled", err)
	}
	if row := rowOf(t, report, "warm.python.c16"); row.NotMeasured == "" {
		t.Errorf("warm.python.c16: %+v", row)
	}
	if len(fake.functions) > 0 {
		t.Errorf("left: %v", fake.functions)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

func TestRunEndsInTime(t *testing.T) {
	o := testOptions(t)
	o.Rows = pattern(`^echo\.c16$`)
	o.bounds.window, o.bounds.total = time.Hour, 200*time.Millisecond
	report, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if row := rowOf(t, report, "echo.c16"); row.NotMeasured != errNotReached.Error() {
		t.Errorf("echo.c16: %+v", row)
	}
}

func TestRunSaysWhyThereIsNoPlatform(t *testing.T) {
	o := testOptions(t)
	o.Rows = pattern(`^(warm\.python\.c1|ready\.time)$`)
	o.Program = writeScript(t, "#!/bin/sh\ncase $1 in dev) echo no such luck >&2; exit 3;; *) exec "+o.Program+" \"$@\";; esac\n")
	report, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"ready.time", "warm.python.c1"} {
		if row := rowOf(t, report, key); !strings.Contains(row.NotMeasured, "no such luck") {
			t.Errorf("%s: %+v", key, row)
		}
	}
	if row := rowOf(t, report, "echo.c1"); row.Figures[Rate] == 0 {
		t.Errorf("the baseline is not measured: %+v", row)
	}
}

func TestRunWithoutRows(t *testing.T) {
	o := testOptions(t)
	o.Rows = pattern(`^nothing$`)
	if _, err := Run(t.Context(), o); err == nil {
		t.Error("no error")
	}
}

func writeScript(t *testing.T, text string) string {
	t.Helper()
	path := t.TempDir() + "/program"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
