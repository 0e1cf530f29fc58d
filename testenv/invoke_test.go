package testenv

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
)

const pythonEcho = `
def handler(event, context):
    return {"event": event, "id": context.aws_request_id, "arn": context.invoked_function_arn,
            "left": context.get_remaining_time_in_millis(), "memory": context.memory_limit_in_mb}
`

const nodeEcho = `
export const handler = async (event, context) =>
  ({event, id: context.awsRequestId, arn: context.invokedFunctionArn, left: context.getRemainingTimeInMillis(), memory: context.memoryLimitInMB});
`

// A sleeping function wakes, answers warm, and sleeps again, in every runtime.
func TestSleepWakeAnswerSleep(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t, "--idle-timeout", "500ms")
	for _, f := range []struct {
		name    string
		runtime types.Runtime
		code    []byte
	}{
		{"python", d.Runtime(ctx, "python"), Python(t, pythonEcho)},
		{"node", d.Runtime(ctx, "nodejs"), Node(t, nodeEcho)},
		{"go", types.RuntimeProvidedal2023, GoFunction(t, "testenv/functions/echo")},
	} {
		t.Run(f.name, func(t *testing.T) {
			d.Create(ctx, f.name, f.runtime, f.code)
			if n := len(d.Instances(ctx, f.name)); n != 0 {
				t.Fatalf("%d instances before the first call", n)
			}
			for call := range 3 {
				out := d.Invoke(ctx, f.name, `{"a":[1,2.50,"é"]}`)
				if out.StatusCode != 200 || out.FunctionError != nil || aws.ToString(out.ExecutedVersion) != "$LATEST" {
					t.Fatalf("call %d: %d %v %s", call, out.StatusCode, aws.ToString(out.FunctionError), out.Payload)
				}
				var got struct {
					Event json.RawMessage `json:"event"`
					ID    string          `json:"id"`
					ARN   string          `json:"arn"`
					Left  int             `json:"left"`
				}
				if err := json.Unmarshal(out.Payload, &got); err != nil {
					t.Fatalf("%v: %s", err, out.Payload)
				}
				if compact(got.Event) != `{"a":[1,2.5,"é"]}` || got.ARN != "arn:aws:lambda:us-east-1:000000000000:function:"+f.name || got.Left < 1000 || got.Left > 10000 {
					t.Errorf("call %d: %s", call, out.Payload)
				}
				log := tailOf(t, out)
				for _, want := range []string{"START RequestId: " + got.ID + " Version: $LATEST", "END RequestId: " + got.ID, "REPORT RequestId: " + got.ID + "\tDuration: "} {
					if !strings.Contains(log, want) {
						t.Errorf("call %d: log lacks %q:\n%s", call, want, log)
					}
				}
				if cold := strings.Contains(log, "Init Duration"); cold != (call == 0) {
					t.Errorf("call %d: Init Duration %v", call, cold)
				}
			}
			if n := len(d.Instances(ctx, f.name)); n != 1 {
				t.Errorf("three calls in a row made %d instances", n)
			}
			d.Eventually(10*time.Second, "asleep again", func() bool { return len(d.Instances(ctx, f.name)) == 0 })
			d.Invoke(ctx, f.name, "{}")
		})
	}
}

func compact(raw json.RawMessage) string {
	var v any
	_ = json.Unmarshal(raw, &v)
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(v)
	return strings.TrimSpace(b.String())
}

func tailOf(t *testing.T, out *lambda.InvokeOutput) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Fifty calls at once to a sleeping function whose handler takes a second start fifty instances,
// and all are answered.
func TestScaleOutFollowsTheCalls(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t, "--idle-timeout", "8s") // none ends before the last has started
	d.Create(ctx, "slow", d.Runtime(ctx, "python"), Python(t, `
import time
def handler(event, context):
    time.sleep(1)
    return event["n"]
`), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(30) })
	client := d.Client()
	var group sync.WaitGroup
	for n := range 50 {
		group.Go(func() {
			out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("slow"), Payload: fmt.Appendf(nil, `{"n":%d}`, n)})
			if err != nil {
				t.Error(err)
			} else if string(out.Payload) != fmt.Sprint(n) {
				t.Errorf("call %d: %s", n, out.Payload)
			}
		})
	}
	group.Wait()
	if n := len(d.Instances(ctx, "slow")); n < 50 || n > 55 {
		t.Errorf("50 calls made %d instances", n)
	}
	d.Eventually(30*time.Second, "asleep again", func() bool { return len(d.Instances(ctx, "slow")) == 0 })
}

// Each fault of a function gets AWS's payload, its line in the log, its record in the bill, and a
// clean next call.
func TestFaults(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	source := `
import os, signal, sys, time, ctypes
COUNT = 0
def handler(event, context):
    global COUNT
    COUNT += 1
    do = event.get("do")
    if do == "raise": raise ValueError("no good")
    if do == "sleep": time.sleep(30)
    if do == "child":
        if os.fork() == 0: time.sleep(60); os._exit(0)
        time.sleep(30)
    if do == "exit": os._exit(event["code"])
    if do == "signal": os.kill(os.getpid(), event["signal"])
    if do == "segfault": ctypes.string_at(0)
    if do == "memory":
        hog = []
        while True: hog.append(bytearray(10 << 20))
    if do == "forks":
        made = 0
        try:
            while made < 20000:
                if os.fork() == 0: time.sleep(60); os._exit(0)
                made += 1
        except OSError: return {"made": made}
        return {"made": made}
    if do == "print":
        for _ in range(event["lines"]): print("x" * 1000)
    if do == "large": return "x" * (7 << 20)
    return {"count": COUNT}
`
	d.Create(ctx, "faulty", d.Runtime(ctx, "python"), Python(t, source), func(in *lambda.CreateFunctionInput) {
		in.Timeout, in.MemorySize = aws.Int32(2), aws.Int32(192)
	})
	tests := []struct {
		name, payload string
		errorType     string
		message       string // a regular expression
		log           string // must be in the log
		dies          bool   // the next call finds fresh globals
	}{
		{"raise", `{"do":"raise"}`, "ValueError", `^no good$`, "[ERROR] ValueError: no good", false},
		{"timeout", `{"do":"sleep"}`, "Sandbox.Timedout", `^RequestId: [0-9a-f-]{36} Error: Task timed out after 2\.00 seconds$`, "Task timed out after 2.00 seconds", true},
		{"timeout with children", `{"do":"child"}`, "Sandbox.Timedout", `Task timed out after 2\.00 seconds$`, "Task timed out", true},
		{"exit 0", `{"do":"exit","code":0}`, "Runtime.ExitError", `^RequestId: [0-9a-f-]{36} Error: Runtime exited without providing a reason$`, "REPORT", true},
		{"exit 3", `{"do":"exit","code":3}`, "Runtime.ExitError", `Error: Runtime exited with error: exit status 3$`, "REPORT", true},
		{"SIGKILL", `{"do":"signal","signal":9}`, "Runtime.ExitError", `Error: Runtime exited with error: signal: killed$`, "REPORT", true},
		{"SIGABRT", `{"do":"signal","signal":6}`, "Runtime.ExitError", `signal: aborted$`, "REPORT", true},
		{"segmentation fault", `{"do":"segfault"}`, "Runtime.ExitError", `signal: segmentation fault$`, "REPORT", true},
		{"out of memory", `{"do":"memory"}`, "Runtime.ExitError", `signal: killed$`, "REPORT", true},
		{"too large", `{"do":"large"}`, "Function.ResponseSizeTooLarge", `^Response payload size exceeded maximum allowed payload size \(6291556 bytes\)\.$`, "REPORT", false},
	}
	calls := int64(0)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out := d.Invoke(ctx, "faulty", test.payload)
			calls++
			if out.StatusCode != 200 || aws.ToString(out.FunctionError) != "Unhandled" {
				t.Fatalf("status %d, error %q: %s", out.StatusCode, aws.ToString(out.FunctionError), out.Payload)
			}
			var got struct {
				ErrorType    string `json:"errorType"`
				ErrorMessage string `json:"errorMessage"`
			}
			if err := json.Unmarshal(out.Payload, &got); err != nil {
				t.Fatalf("%v: %s", err, out.Payload)
			}
			if got.ErrorType != test.errorType || !regexp.MustCompile(test.message).MatchString(got.ErrorMessage) {
				t.Errorf("payload %s", out.Payload)
			}
			log := tailOf(t, out)
			if !strings.Contains(log, test.log) || !strings.Contains(log, "REPORT RequestId:") {
				t.Errorf("log lacks %q:\n%s", test.log, log)
			}
			next := d.Invoke(ctx, "faulty", `{}`)
			calls++
			if next.FunctionError != nil {
				t.Fatalf("next call: %s", next.Payload)
			}
			if fresh := string(next.Payload) == `{"count": 1}`; fresh != test.dies {
				t.Errorf("next call found count %s", next.Payload)
			}
		})
	}
	t.Run("fork bomb", func(t *testing.T) {
		out := d.Invoke(ctx, "faulty", `{"do":"forks"}`)
		calls++
		// Stopped at the bound on processes (or by the memory limit), and nothing outlives it.
		t.Logf("%s %s", aws.ToString(out.FunctionError), out.Payload)
		d.Invoke(ctx, "faulty", `{"do":"exit","code":1}`)
		calls++
	})
	t.Run("endless output", func(t *testing.T) {
		for _, test := range []struct {
			lines int
			fails string
		}{{2000, ""}, {1e9, "Unhandled"}} {
			out := d.Invoke(ctx, "faulty", fmt.Sprintf(`{"do":"print","lines":%d}`, test.lines))
			calls++
			if aws.ToString(out.FunctionError) != test.fails {
				t.Errorf("%d lines: %s", test.lines, out.Payload)
			}
			if log := tailOf(t, out); len(log) > 4096 || !strings.Contains(log, "REPORT RequestId:") {
				t.Errorf("%d lines: tail of %d bytes:\n%s", test.lines, len(log), log)
			}
		}
	})
	d.Eventually(10*time.Second, "every call is billed once", func() bool {
		requests, _ := d.Requests(ctx, "faulty")
		if requests > calls {
			t.Fatalf("%d calls, %d billed", calls, requests)
		}
		return requests == calls
	})
}

func TestInitFaults(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	python := d.Runtime(ctx, "python")
	for _, test := range []struct{ name, source, errorType, message string }{
		{"import", "import nothing_like_this\n", "Runtime.ImportModuleError", "nothing_like_this"},
		{"syntax", "def handler(:\n", "Runtime.UserCodeSyntaxError", ""},
		{"nohandler", "x = 1\n", "Runtime.HandlerNotFound", "handler"},
		{"raises", "raise KeyError('k')\n", "KeyError", "k"},
		{"exits", "import os\nos._exit(7)\n", "Runtime.ExitError", "exit status 7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d.Create(ctx, test.name, python, Python(t, test.source))
			for range 2 {
				out := d.Invoke(ctx, test.name, "{}")
				if aws.ToString(out.FunctionError) != "Unhandled" || !strings.Contains(string(out.Payload), `"errorType"`) ||
					!strings.Contains(string(out.Payload), test.errorType) || !strings.Contains(string(out.Payload), test.message) {
					t.Errorf("%v %s", aws.ToString(out.FunctionError), out.Payload)
				}
			}
			d.Eventually(10*time.Second, "two billed", func() bool { n, _ := d.Requests(ctx, test.name); return n == 2 })
		})
	}
	t.Run("no bootstrap", func(t *testing.T) {
		d.Create(ctx, "empty", types.RuntimeProvidedal2023, Zip(t, map[string]string{"readme": "nothing"}))
		out := d.Invoke(ctx, "empty", "{}")
		if aws.ToString(out.FunctionError) != "Unhandled" || !strings.Contains(string(out.Payload), "Runtime.InvalidEntrypoint") {
			t.Errorf("%v %s", aws.ToString(out.FunctionError), out.Payload)
		}
	})
	t.Run("a runtime that no worker has", func(t *testing.T) {
		d.Create(ctx, "ruby", types.RuntimeRuby33, Zip(t, map[string]string{"app.rb": ""}))
		_, err := d.Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("ruby")})
		var api *types.InvalidRuntimeException
		if !errors.As(err, &api) || !strings.Contains(api.ErrorMessage(), string(python)) {
			t.Errorf("error %v", err)
		}
	})
}

func TestPayloads(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	d.Create(ctx, "echo", types.RuntimeProvidedal2023, Zip(t, map[string]string{"bootstrap": bashEcho}))
	client := d.Client()
	for _, size := range []int{2, 1000, 128 << 10, 1 << 20, 5 << 20, 6291456} {
		payload := `"` + strings.Repeat("é", (size-2)/2) + strings.Repeat("x", size%2) + `"`
		out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("echo"), Payload: []byte(payload)})
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if string(out.Payload) != payload {
			t.Errorf("%d bytes came back as %d", len(payload), len(out.Payload))
		}
	}
	for payload, code := range map[string]string{
		strings.Repeat(" ", 6291457): "RequestEntityTooLargeException",
		"{":                          "InvalidRequestContentException",
		"\xff":                       "InvalidRequestContentException",
		"\"\xff\"":                   "InvalidRequestContentException",
	} {
		_, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("echo"), Payload: []byte(payload)})
		var api smithy.APIError
		if !errors.As(err, &api) || api.ErrorCode() != code {
			t.Errorf("want %s: %v", code, err)
		}
	}
	// Text that any other encoder would change comes back byte by byte.
	exact := `{"n":1.0,"big":12345678901234567890, "html":"<&>", "u":"\u00e9"}`
	if out := d.Invoke(ctx, "echo", exact); string(out.Payload) != exact {
		t.Errorf("came back as %s", out.Payload)
	}
}

// A custom runtime as people write them.
const bashEcho = `#!/bin/bash
set -euo pipefail
while true; do
  python3 - <<'EOF'
import os, urllib.request
api = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
with urllib.request.urlopen(api + "next") as r:
    id, body = r.headers["Lambda-Runtime-Aws-Request-Id"], r.read()
urllib.request.urlopen(urllib.request.Request(api + id + "/response", data=body, method="POST")).read()
EOF
done
`

func TestConcurrencyLimits(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	client := d.Client()
	d.Create(ctx, "capped", d.Runtime(ctx, "python"), Python(t, `
import time
def handler(event, context):
    time.sleep(0.5)
`))
	if _, err := client.PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{FunctionName: aws.String("capped"), ReservedConcurrentExecutions: aws.Int32(2)}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	answered, throttled := 0, 0
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			_, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("capped")})
			var tooMany *types.TooManyRequestsException
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				answered++
			case errors.As(err, &tooMany) && tooMany.Reason == types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded:
				throttled++
			default:
				t.Error(err)
			}
		})
	}
	group.Wait()
	if answered != 2 || throttled != 4 {
		t.Errorf("%d answered, %d throttled of 6 with a cap of 2", answered, throttled)
	}
	if _, err := client.PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{FunctionName: aws.String("capped"), ReservedConcurrentExecutions: aws.Int32(0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("capped")}); err == nil {
		t.Error("a function with no concurrency answered")
	}
	if _, err := client.DeleteFunctionConcurrency(ctx, &lambda.DeleteFunctionConcurrencyInput{FunctionName: aws.String("capped")}); err != nil {
		t.Fatal(err)
	}
	d.Invoke(ctx, "capped", "{}")
}

// Under constant load an update fails no call, and after it is Successful no call runs the old
// code.
func TestUpdateUnderLoad(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	client := d.Client()
	code := func(n int) []byte {
		return Python(t, fmt.Sprintf("def handler(event, context):\n    return %d\n", n))
	}
	d.Create(ctx, "f", d.Runtime(ctx, "python"), code(0))
	load, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for load.Err() == nil {
				out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f")})
				if err != nil || out.FunctionError != nil {
					t.Errorf("a call failed during an update: %v", err)
					return
				}
			}
		})
	}
	for n := 1; n <= 5; n++ {
		if _, err := client.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: aws.String("f"), ZipFile: code(n)}); err != nil {
			t.Fatal(err)
		}
		d.WaitActive(ctx, "f")
		for range 20 {
			if out := d.Invoke(ctx, "f", "{}"); string(out.Payload) != fmt.Sprint(n) {
				t.Fatalf("after update %d was successful the answer was %s", n, out.Payload)
			}
		}
	}
	stop()
	group.Wait()
}

func TestCodeDownloads(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	code := Python(t, pythonEcho)
	d.Create(ctx, "f", d.Runtime(ctx, "python"), code)
	out, err := d.Client().GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: aws.String("f")})
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Get(aws.ToString(out.Code.Location))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got, err := io.ReadAll(response.Body); err != nil || string(got) != string(code) {
		t.Errorf("downloaded %d bytes of %d: %v", len(got), len(code), err)
	}
}
