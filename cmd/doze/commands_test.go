package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// timePattern matches what no two runs have in common.
var timePattern = regexp.MustCompile(`\b[0-9]+(\.[0-9]+)? (ms|s)\b|"elapsedMs": [0-9.]+`)

// golden compares with testdata/NAME.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", path, diff)
	}
}

// TestCommands: what each command prints, on which stream, and its exit code.
func TestCommands(t *testing.T) {
	folder := t.TempDir()
	app := filepath.Join(folder, "app")
	if err := os.MkdirAll(app, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(app, "app.py"), []byte("def handler(e, c): return e\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	payload := filepath.Join(folder, "event.json")
	if err := os.WriteFile(payload, []byte(`{"from": "file"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	three := func(f *fakeEndpoint) {
		f.put("alpha", nil)
		f.put("beta", map[string]any{"Runtime": "provided.al2023", "Handler": "bootstrap", "MemorySize": 1024, "Timeout": 30, "CodeSize": 2842547})
		f.put("gamma", map[string]any{"Environment": map[string]any{"Variables": map[string]string{"A": "1"}}})
	}
	answer := func(status int, body string, headers ...string) func(*fakeEndpoint) {
		return func(f *fakeEndpoint) {
			f.invoke = func(w http.ResponseWriter, _ *http.Request) {
				for i := 0; i < len(headers); i += 2 {
					w.Header().Set(headers[i], headers[i+1])
				}
				w.WriteHeader(status)
				fmt.Fprint(w, body)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		setup func(*fakeEndpoint)
		stdin string
		args  string
	}{
		{name: "list", setup: three, args: "list"},
		{name: "list-json", setup: three, args: "list --json"},
		{name: "list-empty", args: "list"},
		{name: "list-empty-json", args: "list --json"},
		{name: "ps", args: "ps"},
		{name: "runtimes", args: "runtimes"},
		{name: "runtimes-json", args: "runtimes --json"},
		{name: "bill", args: "bill"},
		{name: "bill-json", args: "bill --month 2026-10 --json"},
		{name: "bill-wrong-month", args: "bill --month 2026-13"},
		{name: "status", args: "status"},
		{name: "status-json", args: "status --json"},
		{name: "logs", args: "logs thumbnail --since 10m"},
		{name: "logs-json", args: "logs thumbnail --json"},
		{name: "logs-follow-cut", args: "logs thumbnail --follow --since 2026-01-31T12:00:00Z"},
		{name: "logs-wrong-since", args: "logs thumbnail --since yesterday"},
		{name: "logs-no-function", args: "logs none"},
		{name: "delete", setup: three, args: "delete beta"},
		{name: "delete-version", setup: three, args: "delete beta --qualifier 2"},
		{name: "delete-none", args: "delete beta"},
		{name: "invoke", args: `invoke f --payload {"a":1}`},
		{name: "invoke-empty", args: `invoke f`},
		{name: "invoke-file", args: "invoke f --payload " + payload},
		{name: "invoke-stdin", stdin: "[1, 2]", args: "invoke f --payload -"},
		{name: "invoke-tail", args: "invoke f --payload 7 --tail --qualifier 3"},
		{name: "invoke-json", args: `invoke f --payload "text" --tail --json`},
		{name: "invoke-async", setup: answer(202, ""), args: "invoke f --async"},
		{name: "invoke-async-tail", args: "invoke f --async --tail"},
		{name: "invoke-no-payload-file", args: "invoke f --payload missing.json"},
		{name: "invoke-function-error", setup: answer(200, `{"errorType":"ValueError"}`, "X-Amz-Function-Error", "Unhandled", coldHeader, "false"), args: "invoke f"},
		{name: "invoke-not-json", setup: answer(200, "plain \x00"), args: "invoke f --json"},
		{name: "invoke-throttled", setup: answer(429, `{"Type":"User","Message":"Rate Exceeded.","Reason":"ConcurrentInvocationLimitExceeded"}`, "X-Amzn-Errortype", "TooManyRequestsException"), args: "invoke f"},
		{name: "invoke-no-runtime", setup: answer(502, `{"Type":"User","Message":"no worker has python3.13"}`, "X-Amzn-Errortype", "InvalidRuntimeException"), args: "invoke f"},
		{name: "invoke-platform-error", setup: answer(500, `{"Type":"Service","Message":"call lost while it ran"}`, "X-Amzn-Errortype", "ServiceException"), args: "invoke f"},
		{name: "deploy-create", args: "deploy alpha " + app + " --runtime python3.11 --handler app.handler --env A=1 --env B=x=y --memory 256"},
		{name: "deploy-create-json", args: "deploy alpha " + app + " --runtime python3.11 --handler app.handler --json"},
		{name: "deploy-no-runtime-here", args: "deploy alpha " + app + " --runtime nodejs22.x --handler app.handler"},
		{name: "deploy-provided-without-bootstrap", args: "deploy alpha " + app + " --runtime provided.al2023"},
		{name: "deploy-new-needs-runtime", args: "deploy alpha " + app},
		{name: "deploy-new-needs-handler", args: "deploy alpha " + app + " --runtime python3.11"},
		{name: "deploy-update-code", setup: three, args: "deploy alpha " + app},
		{name: "deploy-update-both", setup: three, args: "deploy gamma " + app + " --timeout 9 --memory 128 --env A=2"},
		{name: "deploy-clear-env", setup: three, args: "deploy gamma " + app + " --env="},
		{name: "deploy-busy", setup: func(f *fakeEndpoint) {
			f.put("alpha", map[string]any{"LastUpdateStatus": "InProgress"})
			f.busy = 3
		}, args: "deploy alpha " + app},
		{name: "deploy-failed", setup: func(f *fakeEndpoint) { f.fails = true }, args: "deploy alpha " + app + " --runtime python3.11 --handler app.handler"},
		{name: "deploy-too-slow", setup: func(f *fakeEndpoint) {
			f.put("alpha", map[string]any{"LastUpdateStatus": "InProgress"})
			f.busy = 1 << 30
		}, args: "deploy alpha " + app + " --wait 20ms"},
		{name: "deploy-no-code", args: "deploy alpha " + filepath.Join(folder, "nothing")},
		{name: "deploy-wrong-env", args: "deploy alpha " + app + " --env A"},
		{name: "deploy-env-twice", args: "deploy alpha " + app + " --env A=1 --env A=2"},
		{name: "usage-unknown-command", args: "lst"},
		{name: "usage-unknown-flag", args: "list --jsn"},
		{name: "usage-missing-argument", args: "deploy alpha"},
		{name: "usage-surplus-argument", args: "delete a b"},
		{name: "usage-wrong-endpoint", args: "list --endpoint ftp://x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFakeEndpoint(t)
			f.invoke = echo
			if tc.setup != nil {
				tc.setup(f)
			}
			r := f.doze(tc.stdin, strings.Fields(tc.args)...)
			text := fmt.Sprintf("$ doze %s\nexit %d\n--- stdout\n%s--- stderr\n%s--- requests\n%s\n", tc.args, r.code, r.stdout, r.stderr, strings.Join(f.requests(), "\n"))
			text = strings.ReplaceAll(timePattern.ReplaceAllString(text, "TIME"), folder, "DIR")
			golden(t, tc.name, text)
		})
	}
}

// TestDeployUnchanged: a second deploy of the same folder changes nothing.
func TestDeployUnchanged(t *testing.T) {
	f := newFakeEndpoint(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte("x = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"deploy", "alpha", dir, "--runtime", "python3.11", "--handler", "app.handler", "--timeout", "7"}
	for i, want := range []int{1, 1} {
		if r := f.doze("", args...); r.code != 0 {
			t.Fatalf("deploy %d: %+v", i, r)
		}
		if len(f.requests()) != want {
			t.Fatalf("after deploy %d: requests %q", i, f.requests())
		}
	}
}

func TestServerNotRunning(t *testing.T) {
	f := newFakeEndpoint(t)
	f.Close()
	for _, args := range []string{"list", "ps", "invoke f", "logs f"} {
		r := f.doze("", strings.Fields(args)...)
		want := "doze: no answer at ENDPOINT: is `doze dev` running? Start it, or say where it is with --endpoint or DOZE_ENDPOINT\n"
		if r.code != exitFailed || r.stderr != want || r.stdout != "" {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

// TestInvokeIsSentOnce: the handler may have run; the SDK must not send the call again.
func TestInvokeIsSentOnce(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"500":      func(w http.ResponseWriter, _ *http.Request) { refuse(w, 500, "ServiceException", "x") },
		"throttle": func(w http.ResponseWriter, _ *http.Request) { refuse(w, 429, "TooManyRequestsException", "x") },
		"hang up":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeEndpoint(t)
			f.invoke = answer
			r := f.doze("", "invoke", "f")
			if len(f.requests()) != 1 || r.code != exitFailed {
				t.Errorf("requests %q, %+v", f.requests(), r)
			}
		})
	}
}

func TestPayloadIsPassedAsItIs(t *testing.T) {
	f := newFakeEndpoint(t)
	f.invoke = echo
	for _, payload := range []string{`{"big": 12345678901234567890, "b":1, "a" : 2}`, `"<&>"`, "[ ]"} {
		if r := f.doze(payload, "invoke", "f", "--payload", "-"); r.stdout != payload || r.code != 0 {
			t.Errorf("%q came back as %q", payload, r.stdout)
		}
	}
	if r := f.doze(strings.Repeat(" ", maxPayloadBytes+1), "invoke", "f", "--payload", "-"); !strings.Contains(r.stderr, "longer than the 6291456 bytes") {
		t.Errorf("%+v", r)
	}
}

func TestNotDoze(t *testing.T) {
	f := newFakeEndpoint(t)
	for path, args := range map[string]string{"/elsewhere": "ps", "/else": "list"} {
		r := f.doze("", append(strings.Fields(args), "--endpoint", f.URL+path)...)
		if r.code != exitFailed || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "ENDPOINT") {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

func TestCompletion(t *testing.T) {
	f := newFakeEndpoint(t)
	f.put("alpha", nil)
	if r := f.doze("", "completion", "bash"); r.code != 0 || !strings.Contains(r.stdout, "bash completion") {
		t.Errorf("%d: %.80s", r.code, r.stdout)
	}
	for _, args := range [][]string{{"completion", "tcsh"}, {"help", "nothing"}, {"delete", ""}, {"nothing"}} {
		if r := f.doze("", args...); r.code != exitUsage || r.stdout != "" || r.stderr == "" {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if r := f.doze("", "__complete", "invoke", ""); !strings.HasPrefix(r.stdout, "alpha\n") {
		t.Errorf("functions: %q", r.stdout)
	}
	if r := f.doze("", "__complete", "deploy", "x", ".", "--runtime", ""); !strings.HasPrefix(r.stdout, "provided.al2023\npython3.11\n") {
		t.Errorf("runtimes: %q", r.stdout)
	}
}

func TestVersion(t *testing.T) {
	f := newFakeEndpoint(t)
	if r := f.doze("", "version"); !strings.HasPrefix(r.stdout, "doze "+version) {
		t.Errorf("%+v", r)
	}
	if r := f.doze("", "version", "--json"); !strings.Contains(r.stdout, `"version": "`+version+`"`) {
		t.Errorf("%+v", r)
	}
}
