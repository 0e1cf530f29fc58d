package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/doze-run/doze/deploy/examples"
)

// The tests run what was built for deployment, each with the program that will run it. They need
// python3, node and npm, and say so.

// stage builds one example and answers the folder that its zip was made of.
func stage(t *testing.T, name string) string {
	t.Helper()
	t.Chdir("../../..")
	out := t.TempDir()
	if err := build(t.Context(), out, false, []string{name}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(out, name+".zip")); err != nil || info.Size() == 0 {
		t.Fatalf("no zip: %v", err)
	}
	return filepath.Join(out, name)
}

func example(t *testing.T, name string) examples.Example {
	t.Helper()
	for _, e := range examples.All() {
		if e.Name == name {
			return e
		}
	}
	t.Fatalf("no example %s", name)
	return examples.Example{}
}

// ask runs a program that reads a list of events and writes a list of answers.
func ask(t *testing.T, dir string, events []json.RawMessage, name string, args ...string) []json.RawMessage {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s (Debian: apt-get install python3 nodejs npm): %v", name, err)
	}
	input, err := json.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(input)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, complaints.Bytes())
	}
	var answers []json.RawMessage
	if err := json.Unmarshal(output, &answers); err != nil || len(answers) != len(events) {
		t.Fatalf("%d answers to %d events, error %v", len(answers), len(events), err)
	}
	return answers
}

// checkAll compares the first answer with expected.json and each other one with a text it must hold.
func checkAll(t *testing.T, e examples.Example, answers []json.RawMessage, wants []string) {
	t.Helper()
	if err := e.Check(answers[0]); err != nil {
		t.Error(err)
	}
	for i, want := range wants {
		if !strings.Contains(string(answers[i+1]), want) {
			t.Errorf("event %d: answer %s, want one with %s", i+1, answers[i+1], want)
		}
	}
}

func TestReport(t *testing.T) {
	e := example(t, "report")
	const head = `date,order,region,product,quantity,unit_price\n`
	events := []json.RawMessage{
		e.Event(),
		json.RawMessage(`{}`),
		json.RawMessage(`{"csv": "a,b\n1,2\n"}`),
		json.RawMessage(`{"csv": "` + head + `", "groupBy": "password"}`),
		json.RawMessage(`{"csv": "` + head + `"}`),
		json.RawMessage(`{"csv": "` + head + `2026-01-01,1,north,mug,2,0.05\n"}`),
		json.RawMessage(`{"csv": "` + head + `2026-01-01,1,north,mug,2,NaN\n2026-01-01,1,n,m,2,1,9\n"}`),
	}
	answers := ask(t, stage(t, "report"), events, "python3", "-B", "-c", `
import json, sys, report
def call(event):
    try:
        return report.handler(event, None)
    except ValueError as e:
        return str(e)
json.dump([call(e) for e in json.load(sys.stdin)], sys.stdout)`)
	checkAll(t, e, answers, []string{
		"the event has no csv",
		"no column date, order, region, product, quantity, unit_price",
		"groupBy must be one of region, product, date",
		`"orders": 0, "units": 0, "revenue": "0.00", "average": null`,
		`"revenue": "0.10", "average": "0.10"`,
		`"rejected": {"rows": 2, "first": [{"line": 2, "reason": "unit_price 'NaN' is not an amount in whole cents"}, {"line": 3, "reason": "wrong number of columns"}]}`,
	})
}

func TestGraphQL(t *testing.T) {
	e := example(t, "graphql")
	bomb := `{"query": "{authors{...a}} fragment a on Author{books{author{...b}}} fragment b on Author{books{author{...c}}} fragment c on Author{books{author{books{author{name}}}}}"}`
	events := []json.RawMessage{
		e.Event(),
		json.RawMessage(`{}`),
		json.RawMessage(`{"query": "{books{"}`),
		json.RawMessage(`{"query": "{nothing}"}`),
		json.RawMessage(`{"query": "query($g: Genre!){books(genre: $g){id}}", "variables": {"g": "POEM"}}`),
		json.RawMessage(`{"query": "{book(id: 99){title}}"}`),
		json.RawMessage(bomb),
		json.RawMessage(`{"query": "{` + strings.Repeat("authors{id} ", 500) + `}"}`),
		json.RawMessage(`{"query": "{authors{...a}} fragment a on Author{...a}"}`),
	}
	answers := ask(t, stage(t, "graphql"), events, "node", "--input-type=module", "--eval", `
import { handler } from './index.js';
import { readFileSync, writeSync } from 'node:fs';
const answers = [];
for (const event of JSON.parse(readFileSync(0))) answers.push(await handler(event));
writeSync(1, JSON.stringify(answers));`)
	checkAll(t, e, answers, []string{
		"the event has no query",
		"Syntax Error",
		`Cannot query field \"nothing\"`,
		`Value \"POEM\" does not exist`,
		`{"data":{"book":null}}`,
		"levels deep, the limit is 8",
		"1000 tokens",
		`Cannot spread fragment \"a\" within itself`,
	})
}

// TestThumbnail runs the program itself against a Runtime API that has one event.
func TestThumbnail(t *testing.T) {
	e := example(t, "thumbnail")
	dir := stage(t, "thumbnail")
	answers := make(chan []byte, 1)
	events := make(chan []byte, 1)
	events <- e.Event()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/next") {
			select {
			case event := <-events:
				w.Header().Set("Lambda-Runtime-Aws-Request-Id", "00000000-0000-4000-8000-000000000000")
				w.Header().Set("Lambda-Runtime-Deadline-Ms", "4102444800000")
				w.Write(event)
			case <-r.Context().Done():
			}
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || !strings.HasSuffix(r.URL.Path, "/response") {
			t.Errorf("%s: %s, error %v", r.URL.Path, body, err)
		}
		w.WriteHeader(http.StatusAccepted)
		answers <- body
	}))
	defer api.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "bootstrap"))
	cmd.Env = []string{"AWS_LAMBDA_RUNTIME_API=" + strings.TrimPrefix(api.URL, "http://")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case answer := <-answers:
		if err := e.Check(answer); err != nil {
			t.Error(err)
		}
		cancel()
		<-ended
	case err := <-ended:
		cancel()
		t.Fatalf("bootstrap ended: %v", err)
	}
}

func TestCheckTellsDifference(t *testing.T) {
	for _, e := range examples.All() {
		if err := e.Check(e.Expected()); err != nil {
			t.Errorf("%s: its own expectation: %v", e.Name, err)
		}
		if err := e.Check([]byte(`{"data": {}}`)); err == nil {
			t.Errorf("%s: another answer was taken", e.Name)
		}
		if err := e.Check([]byte(`"text"`)); err == nil {
			t.Errorf("%s: a string was taken", e.Name)
		}
	}
}
