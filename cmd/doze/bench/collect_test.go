package bench

import (
	"bytes"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}, {[]float64{7}, 7}, {nil, math.NaN()}} {
		if got := median(tt.in); got != tt.want && !(math.IsNaN(got) && math.IsNaN(tt.want)) {
			t.Errorf("median(%v) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestRecordKeepsWhatIsOutsideTheRange(t *testing.T) {
	h := newHistogram()
	for _, v := range []int64{-5, 0, 1, int64(longest) * 3} {
		record(h, v)
	}
	if h.TotalCount() != 4 || h.Max() < int64(longest) {
		t.Errorf("%d values, the largest %d", h.TotalCount(), h.Max())
	}
}

func TestWantedBringsBaselines(t *testing.T) {
	got := wanted(catalog(), pattern(`^(cpu\.platform\.go|warm\.node\.c1)$`))
	want := []string{"cpu.platform.go", "warm.go.c64", "floor.go.p8", "echo.c64", "warm.node.c1", "echo.c1"}
	for _, k := range want {
		if !got[k] {
			t.Errorf("%s is missing", k)
		}
	}
	if len(got) != len(want) {
		t.Errorf("wanted %v, want %v", got, want)
	}
	if len(wanted(catalog(), nil)) != len(catalog()) {
		t.Error("without a pattern not all rows are wanted")
	}
}

func TestCatalogIsConsistent(t *testing.T) {
	rows := make(map[string]Row)
	for _, r := range catalog() {
		if _, twice := rows[r.Key]; twice {
			t.Errorf("two rows %s", r.Key)
		}
		rows[r.Key] = r
	}
	for _, r := range rows {
		for _, g := range r.goals {
			if base, ok := rows[g.To]; g.To != "" && (!ok || !base.Baseline) {
				t.Errorf("%s is held against %q, which is no baseline", r.Key, g.To)
			}
			if g.Op != "<=" && g.Op != ">=" {
				t.Errorf("%s: %+v", r.Key, g)
			}
		}
		for _, x := range r.ratios {
			if !rows[x.To].Baseline {
				t.Errorf("%s is divided by %q, which is no baseline", r.Key, x.To)
			}
		}
	}
}

// sampled is a closed loop's sample with these latencies.
func sampled(rate int64, ms ...int64) *Sample {
	s := &Sample{Latency: newHistogram(), Window: time.Second, InWindow: rate, Calls: int64(len(ms)), Elapsed: time.Second, GeneratorCPU: 100 * time.Millisecond}
	for _, v := range ms {
		record(s.Latency, v*int64(time.Millisecond))
	}
	return s
}

func TestFinishComparesWithinRounds(t *testing.T) {
	rows := catalog()
	c := newCollector(rows, wanted(rows, pattern(`^warm\.python\.(c1|c64)$`)))
	// The machine is three times slower in the second round: the ratios are 4, 4 and 9.
	for round, ms := range []int64{1, 3, 1} {
		c.load("echo.c1", round, sampled(1000, ms, ms), false)
		factor := int64(4)
		if round == 2 {
			factor = 9
		}
		c.load("warm.python.c1", round, sampled(100, ms*factor, ms*factor), false)
	}
	// Only one of the two has this round.
	c.load("echo.c1", 3, sampled(1000, 100), false)
	c.skip(errors.New("no python"), "warm.python.c64")
	out := make(map[string]Row)
	for _, r := range c.finish() {
		out[r.Key] = r
	}
	warm := out["warm.python.c1"]
	if len(warm.Ratios) != 3 || warm.Ratios[0].Figure != P50 || math.Abs(warm.Ratios[0].Value-4) > 0.02 {
		t.Errorf("ratios %+v", warm.Ratios)
	}
	if len(warm.Targets) != 1 || !warm.Targets[0].Reached || warm.Reached == nil || !*warm.Reached {
		t.Errorf("targets %+v, reached %v", warm.Targets, warm.Reached)
	}
	if p := warm.Figures[P50]; math.Abs(p-9) > 0.1 { // of 4, 4, 9, 9, 12, 12
		t.Errorf("p50 of all rounds %v", p)
	}
	if warm.Figures[Rate] != 100 || warm.Rounds != 3 || warm.Calls != 6 {
		t.Errorf("%+v", warm)
	}
	if r := out["warm.python.c64"]; r.NotMeasured != "no python" || r.Reached != nil {
		t.Errorf("%+v", r)
	}
	if r := out["echo.c64"]; r.NotMeasured != errNotReached.Error() {
		t.Errorf("%+v", r)
	}
}

func TestFinishJudges(t *testing.T) {
	rows := catalog()
	for _, tt := range []struct {
		name    string
		rate    int64
		ms      int64
		errors  int64
		reached bool
	}{{"good", 620, 101, 0, true}, {"slow", 620, 130, 0, false}, {"few", 500, 101, 0, false}, {"failed", 620, 101, 1, false}} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCollector(rows, wanted(rows, pattern(`^sleep100\.go\.c64$`)))
			s := sampled(tt.rate, tt.ms)
			s.Errors, s.FirstError = tt.errors, "status 502"
			c.load("sleep100.go.c64", 0, s, false)
			for _, r := range c.finish() {
				if r.Key == "sleep100.go.c64" && (r.Reached == nil || *r.Reached != tt.reached) {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}

func TestFinishSubtractsTheFloorOfTheSameRound(t *testing.T) {
	rows := catalog()
	c := newCollector(rows, wanted(rows, pattern(`^cpu\.platform\.go$`)))
	for round, loop := range []float64{20, 40, 30} {
		c.observe("floor.go.p8", round, Figures{LoopCPU: loop, FunctionCPU: 200})
		c.observe("cpu.platform.go", round, Figures{PlatformCPU: loop + 100 + float64(round), FunctionCPU: 190})
	}
	for _, r := range c.finish() {
		if r.Key == "cpu.platform.go" && (r.Figures[AboveFloorCPU] != 101 || r.Figures[LoopCPU] != 30 || !*r.Reached) {
			t.Errorf("%+v", r)
		}
	}
}

func TestTable(t *testing.T) {
	yes, no := true, false
	report := &Report{Machine: Machine{CPU: "Test CPU", Cores: 2, MemoryMB: 2048, Kernel: "6.1", Cgroup: "v2", Load1: "0.10", Go: "go1.26", Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		Seconds: 61.4, Method: []string{"how it was done"}, Rows: []Row{
			{Key: "echo.c1", Baseline: true, Handler: "echo", Connections: 1, Figures: Figures{Rate: 16000, P50: 0.0512, P99: 0.2, OpenRate: 8000, OpenP50: 0.06, OpenP99: 1.234, GeneratorCPU: 0.153}},
			{Key: "warm.python.c64", Runtime: "python3.11", Handler: "echo", MemorySize: 128, Connections: 64, Figures: Figures{Rate: 9123.4},
				Ratios:  []Ratio{{P50, "echo.c64", 4}, {Rate, "echo.c64", 0.1517}, {Rate, "floor.python.p8", 0.4}},
				Targets: []Target{{Goal: Goal{Figure: Rate, To: "echo.c64", Op: ">=", Value: 0.15}, Measured: 0.1517, Reached: true}}, Reached: &yes},
			{Key: "sleep100.go.c64", Errors: 1, Calls: 9, FirstError: "status 502", Figures: Figures{Rate: 610, P99: 130},
				Targets: []Target{{Goal: Goal{Figure: Rate, Op: ">=", Value: 600}, Reached: true}, {Goal: Goal{Figure: P99, Op: "<=", Value: 115}}}, Reached: &no},
			{Key: "cold.node", NotMeasured: "no node\non this machine", Note: "a note"},
			{Key: "warm.node.c1", NotMeasured: "no node\non this machine"},
		}}
	var b bytes.Buffer
	if err := report.Write(&b); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/table.txt"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the table is not %s (UPDATE_GOLDEN=1 writes it):\n%s", golden, b.String())
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "|") && strings.Count(line, "|") != 11 {
			t.Errorf("a row of another width: %s", line)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0512: "0.051", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 5: "5", -31.62: "-31.6", 61234.4: "61234"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
}
