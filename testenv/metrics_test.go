package testenv

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// metrics are the lines of /metrics: name and labels to value.
func (d *Dev) metrics() map[string]float64 {
	d.t.Helper()
	response, err := http.Get("http://" + d.HTTP + "/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		d.t.Fatalf("/metrics: %s, %v\n%s", response.Status, err, text)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
		if err != nil {
			d.t.Fatalf("%q: %v", line, err)
		}
		all[line[:at]] = value
	}
	return all
}

// What happens is counted on one /metrics, by runtime and never by function; a cold call says where its time
// went: to its caller, in the log, in the metrics.
func TestMetricsTellWhatHappened(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t, "--log-format", "json")
	python := d.Runtime(ctx, "python")
	d.Create(ctx, "secretive", python, Python(t, "def handler(event, context):\n    if event.get('fail'): raise ValueError('x')\n    return event\n"))
	d.Create(ctx, "closed", python, Python(t, "def handler(event, context): return 1\n"))
	client := d.Client()
	if _, err := client.PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{FunctionName: aws.String("closed"), ReservedConcurrentExecutions: aws.Int32(0)}); err != nil {
		t.Fatal(err)
	}

	stdout, stderr, code := d.CLI(ctx, "invoke", "secretive", "--json")
	var cold struct {
		RequestID string
		Cold      bool
		ElapsedMs float64
		TimingUs  map[string]int64
	}
	if err := json.Unmarshal([]byte(stdout), &cold); err != nil || code != 0 || !cold.Cold {
		t.Fatalf("%v, exit %d: %s %s", err, code, stdout, stderr)
	}
	var sum int64
	for _, phase := range []string{"queue", "claim", "mount", "init", "handler"} {
		took, ok := cold.TimingUs[phase]
		if !ok || phase != "queue" && took <= 0 {
			t.Errorf("%s took %d µs", phase, took)
		}
		sum += took
	}
	if elapsed := int64(cold.ElapsedMs * 1000); sum > elapsed {
		t.Errorf("the phases take %d µs of %d: %v", sum, elapsed, cold.TimingUs)
	}
	d.Invoke(ctx, "secretive", "{}")
	d.Invoke(ctx, "secretive", `{"fail":true}`)
	if _, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("closed")}); err == nil {
		t.Error("a function without concurrency was called")
	}
	if _, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("secretive"), InvocationType: types.InvocationTypeEvent}); err != nil {
		t.Fatal(err)
	}

	label := `runtime="` + string(python) + `"`
	want := map[string]float64{
		`doze_invocations_total{outcome="ok",` + label + `}`:                                         3,
		`doze_invocations_total{outcome="handler_error",` + label + `}`:                              1,
		`doze_invocation_seconds_count{` + label + `,start="cold"}`:                                  1,
		`doze_invocation_seconds_count{` + label + `,start="warm"}`:                                  3,
		`doze_cold_start_seconds_count{phase="mount",` + label + `}`:                                 1,
		`doze_cold_start_seconds_count{phase="queue",` + label + `}`:                                 1,
		`doze_throttles_total{reason="` + "ReservedFunctionConcurrentInvocationLimitExceeded" + `"}`: 1,
		`doze_events_accepted_total`:                                                                 1,
		`doze_events_ended_total{condition="Success"}`:                                               1,
		`doze_events{state="ready"}`:                                                                 0,
		`doze_instances{state="idle"}`:                                                               1,
		`doze_calls{state="queued"}`:                                                                 0,
		`doze_calls{state="running"}`:                                                                0,
		`doze_usage_lag_records`:                                                                     0,
		`doze_usage_lag_batches`:                                                                     0,
		`doze_raft_leads`:                                                                            1,
		`doze_raft_log_healthy`:                                                                      1,
		`doze_storage_healthy`:                                                                       1,
		`doze_workers{state="taking_calls"}`:                                                         1,
		`doze_functions`:                                                                             2,
	}
	var got map[string]float64
	missing := func() (all []string) {
		got = d.metrics()
		for name, value := range want {
			if have, ok := got[name]; !ok || have != value {
				all = append(all, name+" is "+strconv.FormatFloat(have, 'g', -1, 64))
			}
		}
		return all
	}
	var wrong []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if wrong = missing(); wrong == nil {
			break
		}
	}
	for _, line := range wrong {
		t.Error(line)
	}
	for _, name := range []string{"go_goroutines", "process_open_fds", "doze_raft_applied_index", "doze_raft_term", `doze_build_info{version="0.1.0"}`} {
		if _, ok := got[name]; !ok {
			t.Errorf("there is no %s", name)
		}
	}
	for name := range got {
		if strings.Contains(name, "secretive") || strings.Contains(name, "000000000000") {
			t.Errorf("%s names a function or an account", name)
		}
	}
	line := regexp.MustCompile(`(?m)^.*"msg":"cold call".*"requestId":"` + cold.RequestID + `".*$`).FindString(d.Stderr())
	var event map[string]any
	if err := json.Unmarshal([]byte(line), &event); err != nil {
		t.Fatalf("no line about the cold call: %v\n%s", err, d.Stderr())
	}
	for _, member := range []string{"function", "runtime", "instance", "parked", "code", "queue", "claim", "mount", "init", "handler"} {
		if _, ok := event[member]; !ok {
			t.Errorf("the log line has no %s: %s", member, line)
		}
	}
}

// /metrics and the probes take GET alone.
func TestMetricsMethods(t *testing.T) {
	d := StartDev(t)
	for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
		for method, want := range map[string]int{http.MethodGet: http.StatusOK, http.MethodPost: http.StatusNotFound} {
			request, err := http.NewRequestWithContext(t.Context(), method, "http://"+d.HTTP+path, strings.NewReader(""))
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			if response.StatusCode != want {
				t.Errorf("%s %s: %s", method, path, response.Status)
			}
		}
	}
}
