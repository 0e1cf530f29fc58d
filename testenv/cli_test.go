package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// doze runs the binary with this input and these variables added to the environment.
func doze(t *testing.T, stdin string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary(t), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("doze %q: %v, %v\n%s", args, err, ctx.Err(), errs.Bytes())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a client command that has to succeed and answers its stdout.
func (d *Dev) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := d.CLI(t.Context(), args...)
	if code != 0 {
		t.Fatalf("doze %q: exit %d\n%s%s", args, code, out, errs)
	}
	return out
}

// parse reads JSON into v and fails on a member that v has no place for.
func parse(t *testing.T, text string, v any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if decoder.More() {
		t.Fatalf("more than one value in:\n%s", text)
	}
}

// members are the names in a JSON object, sorted.
func members(t *testing.T, object json.RawMessage) []string {
	t.Helper()
	var m map[string]json.RawMessage
	parse(t, string(object), &m)
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

const cliFunction = `
import os
def handler(event, context):
    print("called with", sorted(event))
    if event.get("fail"): raise ValueError("no good")
    return {"event": event, "greeting": os.environ.get("GREETING"), "version": 1}
`

// Each command of a client, in the order in which a user comes to them.
func TestCLI(t *testing.T) {
	d := StartDev(t)
	runtime := string(d.Runtime(t.Context(), "python"))
	folder := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}

	t.Run("nothing yet", func(t *testing.T) {
		for _, command := range []string{"list", "ps"} {
			if out := d.must(t, command, "--json"); out != "[]\n" {
				t.Errorf("doze %s --json printed %q", command, out)
			}
			out, errs, code := d.CLI(t.Context(), command)
			if code != 0 || out != "" || errs == "" {
				t.Errorf("doze %s: exit %d, stdout %q, stderr %q", command, code, out, errs)
			}
		}
		var bill struct {
			Month           string            `json:"month"`
			Functions       []json.RawMessage `json:"functions"`
			TotalNanoUSD    int64             `json:"totalNanoUSD"`
			AlwaysOnNanoUSD int64             `json:"alwaysOnNanoUSD"`
		}
		parse(t, d.must(t, "bill", "--json"), &bill)
		if bill.Functions == nil || len(bill.Functions) != 0 || bill.TotalNanoUSD != 0 || !regexp.MustCompile(`^\d{4}-\d\d$`).MatchString(bill.Month) {
			t.Errorf("an empty bill: %+v", bill)
		}
	})

	t.Run("runtimes", func(t *testing.T) {
		var runtimes []struct{ Name, Path, Version string }
		parse(t, d.must(t, "runtimes", "--json"), &runtimes)
		found := map[string]string{}
		for _, r := range runtimes {
			found[r.Name] = r.Path
		}
		if path, ok := found["provided.al2023"]; !ok || path != "" {
			t.Errorf("provided.al2023 is missing or has an interpreter: %v", found)
		}
		if found[runtime] == "" {
			t.Errorf("%s has no interpreter: %v", runtime, found)
		}
		if out := d.must(t, "runtimes"); !strings.Contains(out, runtime) || !strings.Contains(out, "provided.al2023") {
			t.Errorf("the table lacks a runtime:\n%s", out)
		}
	})

	code := filepath.Join(folder, "code")
	if err := os.Mkdir(code, 0o755); err != nil {
		t.Fatal(err)
	}
	write("code/app.py", cliFunction)
	const arn = "arn:aws:lambda:us-east-1:000000000000:function:"

	t.Run("deploy", func(t *testing.T) {
		_, errs, exit := d.CLI(t.Context(), "deploy", "hello", code)
		if exit != 2 || !strings.Contains(errs, "--runtime") {
			t.Errorf("a new function without --runtime: exit %d, %s", exit, errs)
		}
		out, errs, exit := d.CLI(t.Context(), "deploy", "hello", code, "--runtime", runtime, "--handler", "app.handler", "--env", "GREETING=Hi", "--timeout", "10")
		if exit != 0 || out != arn+"hello\n" || !strings.Contains(errs, "created hello") {
			t.Fatalf("create: exit %d, stdout %q, stderr %s", exit, out, errs)
		}
		// An update of what was given, and of nothing else.
		out, errs, exit = d.CLI(t.Context(), "deploy", "hello", code, "--memory", "256", "--json")
		if exit != 0 || !strings.Contains(errs, "configuration of hello updated") || !strings.Contains(errs, "code of hello is unchanged") {
			t.Fatalf("update: exit %d, stderr %s", exit, errs)
		}
		var got struct {
			FunctionName, FunctionArn, Runtime, Handler, State, LastUpdateStatus, CodeSha256 string
			MemorySize, Timeout                                                              int
			Environment                                                                      struct{ Variables map[string]string }
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got.FunctionName != "hello" || got.FunctionArn != arn+"hello" || got.Runtime != runtime || got.Handler != "app.handler" || got.State != "Active" ||
			got.LastUpdateStatus != "Successful" || got.MemorySize != 256 || got.Timeout != 10 || got.Environment.Variables["GREETING"] != "Hi" {
			t.Errorf("updated to %s", out)
		}
		sum := got.CodeSha256
		// New code, as a zip this time.
		archive := write("new.zip", string(Python(t, strings.Replace(cliFunction, `"version": 1`, `"version": 2`, 1))))
		out, errs, exit = d.CLI(t.Context(), "deploy", "hello", archive, "--json")
		if exit != 0 || !strings.Contains(errs, "code of hello updated") {
			t.Fatalf("update by zip: exit %d, stderr %s", exit, errs)
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.CodeSha256 == sum || got.MemorySize != 256 {
			t.Errorf("updated to %s, error %v", out, err)
		}
		if out := d.must(t, "invoke", "hello"); out != `{"event": {}, "greeting": "Hi", "version": 2}` {
			t.Errorf("the new code answered %s", out)
		}
		_, errs, exit = d.CLI(t.Context(), "deploy", "ruby", code, "--runtime", "ruby3.3", "--handler", "app.handler")
		if exit != 0 || !strings.Contains(errs, "warning") || !strings.Contains(errs, runtime) {
			t.Errorf("a runtime that no worker has: exit %d, %s", exit, errs)
		}
		_, errs, exit = d.CLI(t.Context(), "deploy", "bad", write("bad.zip", "this is no zip"), "--runtime", runtime, "--handler", "app.handler")
		if exit != 1 || !strings.Contains(errs, "zip") {
			t.Errorf("a file that is no zip: exit %d, %s", exit, errs)
		}
	})

	t.Run("invoke", func(t *testing.T) {
		const event, answer = `{"n":1.50}`, `{"event": {"n": 1.5}, "greeting": "Hi", "version": 2}`
		for name, from := range map[string][]string{
			"as it is":   {"--payload", event},
			"file":       {"--payload", write("event.json", event)},
			"stdin":      {"--payload", "-"},
			"short flag": {"-p", event},
		} {
			out, errs, exit := doze(t, event, []string{"DOZE_ENDPOINT=" + d.HTTP}, append([]string{"invoke", "hello"}, from...)...)
			if exit != 0 || out != answer || !strings.Contains(errs, "200") || strings.Contains(errs, "greeting") {
				t.Errorf("%s: exit %d, stdout %q, stderr %q", name, exit, out, errs)
			}
		}
		out, errs, exit := d.CLI(t.Context(), "invoke", "hello", "--payload", `{"fail":true}`)
		if exit != 1 || !strings.Contains(out, `"errorType": "ValueError"`) || !strings.Contains(errs, "function error (Unhandled)") {
			t.Errorf("a function error: exit %d, stdout %q, stderr %q", exit, out, errs)
		}
		out, errs, exit = d.CLI(t.Context(), "invoke", "hello", "--payload", event, "--tail")
		if exit != 0 || out != answer || !strings.Contains(errs, "called with ['n']\n") || !strings.Contains(errs, "REPORT RequestId: ") {
			t.Errorf("--tail: exit %d, stdout %q, stderr %q", exit, out, errs)
		}
		out, errs, exit = d.CLI(t.Context(), "invoke", "hello", "--payload", `{"later":1}`, "--async")
		if exit != 0 || out != "" || !strings.Contains(errs, "202") {
			t.Errorf("--async: exit %d, stdout %q, stderr %q", exit, out, errs)
		}
		var all struct {
			StatusCode int
			Payload    json.RawMessage
			Cold       bool
		}
		if err := json.Unmarshal([]byte(d.must(t, "invoke", "hello", "--payload", event, "--json")), &all); err != nil || all.StatusCode != 200 || compact(all.Payload) != `{"event":{"n":1.5},"greeting":"Hi","version":2}` {
			t.Errorf("--json: %+v, %v", all, err)
		}
		for _, refused := range []struct {
			args []string
			exit int
			text string
		}{
			{[]string{"invoke", "nobody"}, 1, "Function not found"},
			{[]string{"invoke", "hello", "--payload", "no-such-file"}, 2, "neither a file nor JSON"},
			{[]string{"invoke", "hello", "--payload", write("broken.json", "{")}, 1, "JSON"},
			{[]string{"invoke"}, 2, "NAME"},
			{[]string{"invoke", "hello", "--async", "--tail"}, 2, "--tail"},
			{[]string{"invocate", "hello"}, 2, "unknown command"},
		} {
			out, errs, exit := d.CLI(t.Context(), refused.args...)
			if exit != refused.exit || out != "" || !strings.HasPrefix(errs, "doze: ") || !strings.Contains(errs, refused.text) {
				t.Errorf("%q: exit %d, stdout %q, stderr %q", refused.args, exit, out, errs)
			}
		}
	})

	t.Run("list", func(t *testing.T) {
		var functions []map[string]json.RawMessage
		parse(t, d.must(t, "list", "--json"), &functions)
		if len(functions) != 2 || string(functions[0]["FunctionName"]) != `"hello"` || string(functions[1]["FunctionName"]) != `"ruby"` || string(functions[0]["MemorySize"]) != "256" {
			t.Errorf("functions %s", functions)
		}
		if out := d.must(t, "list"); !strings.Contains(out, "hello") || !strings.Contains(out, "256 MB") {
			t.Errorf("the table:\n%s", out)
		}
	})

	t.Run("ps", func(t *testing.T) {
		// The event of --async may still run: one instance at least is there, the last to be idle.
		d.Eventually(10*time.Second, "only idle instances", func() bool {
			for _, i := range d.Instances(t.Context(), "hello") {
				if i.State != "idle" {
					return false
				}
			}
			return true
		})
		out := d.must(t, "ps", "--json")
		var raw []json.RawMessage
		parse(t, out, &raw)
		var instances []Instance
		if err := json.Unmarshal([]byte(out), &instances); err != nil || len(instances) == 0 {
			t.Fatalf("%v: %s", err, out)
		}
		for n, i := range instances {
			for _, want := range []string{"id", "function", "version", "state", "createdAt", "idleMs", "memoryBytes", "calls", "cold"} {
				if !slices.Contains(members(t, raw[n]), want) {
					t.Errorf("no %s in %s", want, raw[n])
				}
			}
			created, err := time.Parse(time.RFC3339, i.CreatedAt)
			if i.ID == "" || i.Function != "hello" || i.Version != "$LATEST" || i.State != "idle" || err != nil || time.Since(created) > time.Hour || i.Memory <= 0 || i.Calls < 1 || i.Cold != (i.Calls == 1) {
				t.Errorf("instance %s", raw[n])
			}
		}
		if table := d.must(t, "ps"); !strings.Contains(table, instances[0].ID) {
			t.Errorf("the table lacks %s:\n%s", instances[0].ID, table)
		}
	})

	t.Run("logs", func(t *testing.T) {
		d.Eventually(10*time.Second, "the event's log is there", func() bool {
			return strings.Contains(d.must(t, "logs", "hello"), "called with ['later']")
		})
		text := d.must(t, "logs", "hello")
		if line := regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (.*)$`); !line.MatchString(text) || !strings.Contains(text, "[ERROR] ValueError: no good") {
			t.Errorf("the log:\n%s", text)
		}
		lines := strings.Split(strings.TrimSpace(d.must(t, "logs", "hello", "--json", "--since", "10m")), "\n")
		kinds := map[string]int{}
		for _, line := range lines {
			if got := members(t, json.RawMessage(line)); !slices.Contains(got, "atMs") || !slices.Contains(got, "stream") || !slices.Contains(got, "message") {
				t.Fatalf("record %s", line)
			}
			var record struct{ Message string }
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				t.Fatal(err)
			}
			kind, _, _ := strings.Cut(record.Message, " ")
			kinds[kind]++
		}
		// One by deploy, four with the event, and one each with an error, a tail, later and --json.
		if kinds["START"] != 9 || kinds["END"] != 9 || kinds["REPORT"] != 9 {
			t.Errorf("lines of nine calls: %v", kinds)
		}
		if out := d.must(t, "logs", "hello", "--since", time.Now().Add(time.Hour).UTC().Format(time.RFC3339)); out != "" {
			t.Errorf("the future's log:\n%s", out)
		}
		_, errs, exit := d.CLI(t.Context(), "logs", "nobody")
		if exit != 1 || !strings.Contains(errs, "Function not found") {
			t.Errorf("nobody's log: exit %d, %s", exit, errs)
		}
		_, errs, exit = d.CLI(t.Context(), "logs", "hello", "--since", "yesterday")
		if exit != 2 || !strings.Contains(errs, "--since") {
			t.Errorf("--since yesterday: exit %d, %s", exit, errs)
		}
	})

	t.Run("logs --follow", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), Binary(t), "logs", "hello", "--follow", "--since", "0s", "--endpoint", d.HTTP)
		var out tail
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		// It shows what comes; before it listens, nothing: so calls go on until it shows one.
		d.Eventually(20*time.Second, "a followed log shows a call", func() bool {
			d.must(t, "invoke", "hello", "--payload", `{"followed":1}`)
			return strings.Contains(out.String(), "called with ['followed']")
		})
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			t.Error("Ctrl-C did not end it")
		}
	})

	t.Run("bill", func(t *testing.T) {
		type line struct {
			Function      string      `json:"function"`
			Requests      int64       `json:"requests"`
			MBMs          int64       `json:"mbMs"`
			GBSeconds     json.Number `json:"gbSeconds"`
			FreeRequests  int64       `json:"freeRequests"`
			FreeGBSeconds json.Number `json:"freeGbSeconds"`
			AmountNanoUSD *int64      `json:"amountNanoUSD"`
		}
		var bill struct {
			Month           string `json:"month"`
			Functions       []line `json:"functions"`
			TotalNanoUSD    *int64 `json:"totalNanoUSD"`
			AlwaysOnNanoUSD *int64 `json:"alwaysOnNanoUSD"`
		}
		d.Eventually(5*time.Second, "the calls are in the bill", func() bool {
			parse(t, d.must(t, "bill", "--json"), &bill)
			return len(bill.Functions) == 1 && bill.Functions[0].Requests >= 10
		})
		f := bill.Functions[0]
		if f.Function != "hello" || f.MBMs < f.Requests*256 || f.MBMs%256 != 0 || f.GBSeconds == "" || f.FreeRequests != f.Requests ||
			f.FreeGBSeconds != f.GBSeconds || f.AmountNanoUSD == nil || *f.AmountNanoUSD != 0 || bill.TotalNanoUSD == nil || *bill.TotalNanoUSD != 0 || bill.AlwaysOnNanoUSD == nil {
			t.Errorf("the bill: %s", d.must(t, "bill", "--json"))
		}
		if out := d.must(t, "bill"); !strings.Contains(out, "hello") || !strings.Contains(out, "always on, at $0.02 an hour") {
			t.Errorf("the table:\n%s", out)
		}
		if out := d.must(t, "bill", "--json", "--month", "2001-02"); !strings.Contains(out, `"functions": []`) || !strings.Contains(out, `"2001-02"`) {
			t.Errorf("an old month: %s", out)
		}
		_, errs, exit := d.CLI(t.Context(), "bill", "--month", "May")
		if exit != 2 || !strings.Contains(errs, "YYYY-MM") && !strings.Contains(errs, "2026-01") {
			t.Errorf("--month May: exit %d, %s", exit, errs)
		}
	})

	t.Run("delete", func(t *testing.T) {
		for _, name := range []string{"hello", "ruby"} {
			if out := d.must(t, "delete", name); out != "" {
				t.Errorf("stdout %q", out)
			}
		}
		_, errs, exit := d.CLI(t.Context(), "delete", "hello")
		if exit != 1 || !strings.Contains(errs, "Function not found") {
			t.Errorf("once more: exit %d, %s", exit, errs)
		}
		if out := d.must(t, "list", "--json"); out != "[]\n" {
			t.Errorf("left: %s", out)
		}
		d.Eventually(20*time.Second, "its instances ended", func() bool { return d.must(t, "ps", "--json") == "[]\n" })
		if out := d.must(t, "bill", "--json"); !strings.Contains(out, `"hello"`) {
			t.Errorf("a deleted function is still to be paid: %s", out)
		}
	})
}

// Without a server every client command says so, and what to do.
func TestCLIWithoutServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil { // nobody has it now
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"deploy", "f", t.TempDir(), "--runtime", "python3.11", "--handler", "app.handler"},
		{"invoke", "f"}, {"list"}, {"delete", "f"}, {"ps"}, {"logs", "f"}, {"bill"}, {"runtimes"}, {"status"},
	} {
		if args[0] == "deploy" {
			if err := os.WriteFile(filepath.Join(args[2], "app.py"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out, errs, exit := doze(t, "", []string{"DOZE_ENDPOINT=http://" + address}, args...)
		if exit != 1 || out != "" || !strings.Contains(errs, "no answer at http://"+address) || !strings.Contains(errs, "doze dev") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", args[0], exit, out, errs)
		}
	}
}

// What keeps `doze dev` from starting is told in one line that says what to do, and harms nobody.
func TestDevRefusesToStart(t *testing.T) {
	d := StartDev(t)
	other := t.TempDir()
	strange := t.TempDir()
	newer := t.TempDir()
	for path, text := range map[string]string{filepath.Join(strange, "letters.txt"): "dear", filepath.Join(newer, "FORMAT"): "doze 999\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const any = "127.0.0.1:0"
	for _, test := range []struct {
		name, http, grpc, dir string
		want                  []string
	}{
		{"one folder for two", any, any, d.DataDir, []string{"in use by process", d.DataDir, "--data-dir"}},
		{"HTTP port in use", d.HTTP, any, other, []string{"--listen " + d.HTTP + " is in use", "another address"}},
		{"gRPC port in use", any, d.GRPC, other, []string{"--grpc-listen " + d.GRPC + " is in use", "another address"}},
		{"a folder of another version", any, any, newer, []string{"has format 999", "newer doze", "--data-dir"}},
		{"somebody's folder", any, any, strange, []string{"letters.txt", "--data-dir"}},
		{"open to the network", "0.0.0.0:0", any, other, []string{"--allow-remote"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, errs, exit := doze(t, "", nil, "dev", "--listen", test.http, "--grpc-listen", test.grpc, "--data-dir", test.dir)
			if exit == 0 || out != "" {
				t.Errorf("exit %d, stdout %q", exit, out)
			}
			for _, want := range test.want {
				if !strings.Contains(errs, want) {
					t.Errorf("stderr lacks %q:\n%s", want, errs)
				}
			}
		})
	}
	if entries, err := os.ReadDir(strange); err != nil || len(entries) != 1 {
		t.Errorf("somebody's folder now has %v, %v", entries, err)
	}
	d.Get(t.Context(), "/doze/v1/status", &struct{}{}) // the first still answers
}
