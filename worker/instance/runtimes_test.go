package instance

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
)

// real is an instance that runs a real program.
type real struct {
	*rig
	n int
}

// interpreter finds a runtime on this machine by the start of its name. Every machine the tests
// run on has Python and Node.js; .ci/run installs them.
func interpreter(t testing.TB, prefix string) runtimes.Runtime {
	t.Helper()
	found, err := runtimes.Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range found {
		if strings.HasPrefix(r.Name, prefix) {
			return r
		}
	}
	t.Fatalf("no %s that an unprivileged user can run: install it (apt-get install python3 nodejs)", prefix)
	return runtimes.Runtime{}
}

func startReal(t testing.TB, r runtimes.Runtime, handler string, files map[string]string) *real {
	t.Helper()
	return startIn(t, hostSandbox{t}, r, handler, files)
}

// startIn starts a function in a sandbox.
func startIn(t testing.TB, s sandbox.Sandbox, r runtimes.Runtime, handler string, files map[string]string, change ...func(*Launch)) *real {
	t.Helper()
	code, runtimeDir := t.TempDir(), t.TempDir()
	for name, content := range files {
		path := filepath.Join(code, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := runtimes.Install(t.Context(), runtimeDir, []runtimes.Runtime{r}); err != nil {
		t.Fatal(err)
	}
	out := &real{}
	out.rig = newRig(t, func(rig *rig, l *Launch) {
		rig.options.Sandbox = s
		rig.options.RuntimeDir = runtimeDir
		rig.options.FreezeAfter = time.Millisecond
		l.Runtime, l.CodeDir = r, code
		l.ID = "t-" + newUUID()
		l.Spec.Runtime, l.Spec.Handler = r.Name, handler
		for _, c := range change {
			c(l)
		}
	})
	return out
}

// call invokes with a payload and returns the result, log tail included.
func (r *real) call(payload string, change ...func(*Event)) *Result {
	r.t.Helper()
	r.n++
	e := event(r.n, payload)
	e.Tail = true
	for _, c := range change {
		c(e)
	}
	if r.n == 1 {
		r.expect("ready")
	}
	r.invoke(e)
	res := r.expect("done")
	if res.Outcome == OK || res.Outcome == HandlerError || res.Outcome == TooLarge {
		select {
		case s := <-r.handler.said:
			if s.what != "idle" && s.what != "ended" {
				r.t.Fatalf("handler was told %s", s.what)
			}
		case <-time.After(10 * time.Second):
			r.t.Fatal("not idle again")
		}
	}
	return res
}

func (r *real) want(res *Result, outcome Outcome, payload string) {
	r.t.Helper()
	if res.Outcome != outcome || string(res.Payload) != payload {
		r.t.Errorf("got %s\nwant outcome %d, %q\nlog %s", describe(res), outcome, payload, res.LogTail)
	}
}

const pythonApp = `import os, sys, json, decimal, datetime, logging, time
log = logging.getLogger()
log.setLevel("INFO")
calls = 0
def handler(event, context):
    global calls
    calls += 1
    op = event.get("op")
    if op == "echo": return event
    if op == "context":
        c = context
        assert c.get_remaining_time_in_millis() > 1000
        return [c.aws_request_id, c.function_name, c.function_version, c.invoked_function_arn, c.memory_limit_in_mb,
                c.log_group_name, c.log_stream_name == os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
                c.client_context and [c.client_context.custom, c.client_context.env, c.client_context.client.app_title],
                c.identity.cognito_identity_id, os.environ.get("_X_AMZN_TRACE_ID"), calls, os.getcwd() == os.environ["LAMBDA_TASK_ROOT"]]
    if op == "print":
        print("printed", "é")
        print("to stderr", file=sys.stderr)
        log.info("logged %d", 1)
        log.debug("not logged")
        context.log("by context\n")
        sys.stdout.write("no newline")
        return None
    if op == "raise": return inner(event)
    if op == "marshal": return {"at": datetime.datetime.now()}
    if op == "decimal": return [decimal.Decimal("1.5"), float("inf"), "\ud800"]
    if op == "bytes": return b"\x00raw"
    if op == "circle":
        a = []
        a.append(a)
        return a
    if op == "exit": sys.exit(event["status"])
    if op == "quit": exit(3)
    if op == "abort": os.abort()
    if op == "large": return "x" * event["n"]
    if op == "sleep": time.sleep(60)
    if op == "eat": return len(b"x" * (1 << 30))
    return calls
def inner(event):
    raise ValueError("boom %s" % event["text"])
`

func TestPython(t *testing.T) {
	r := startReal(t, interpreter(t, "python3"), "app.handler", map[string]string{"app.py": pythonApp})
	r.want(r.call(`{"op":"echo","text":"grüße \u20ac \"x\"","n":[1,2.5,null,true,{}]}`), OK, `{"op": "echo", "text": "grüße € \"x\"", "n": [1, 2.5, null, true, {}]}`)

	res := r.call(`{"op":"context"}`, func(e *Event) {
		e.ClientContext = []byte(`{"custom":{"é":1},"env":{"l":"de"},"client":{"app_title":"T"}}`)
		e.TraceID = "Root=1-5"
	})
	r.want(res, OK, fmt.Sprintf(`["%s", "f", "$LATEST", "%s", "128", "/aws/lambda/f", true, [{"é": 1}, {"l": "de"}, "T"], null, "Root=1-5", 2, true]`,
		event(2, "").RequestID, testSpec().Arn+":live"))

	res = r.call(`{"op":"print"}`)
	r.want(res, OK, "null")
	log := regexp.MustCompile(`(?s)^START RequestId: \S+ Version: \$LATEST\nprinted é\nto stderr\n\[INFO\]\t\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\t` + event(3, "").RequestID + `\tlogged 1\nby context\nno newline\nEND RequestId: \S+\nREPORT `)
	if !log.Match(res.LogTail) {
		t.Errorf("log %q", res.LogTail)
	}

	res = r.call(`{"op":"raise","text":"ä"}`)
	var got struct {
		ErrorMessage, ErrorType, RequestId string
		StackTrace                         []string
	}
	if err := json.Unmarshal(res.Payload, &got); err != nil || res.Outcome != HandlerError {
		t.Fatalf("%v: %s", err, describe(res))
	}
	if got.ErrorMessage != "boom ä" || got.ErrorType != "ValueError" || got.RequestId != event(4, "").RequestID || len(got.StackTrace) != 2 ||
		!regexp.MustCompile(`^  File ".*/app.py", line \d+, in inner\n    raise ValueError\("boom %s" % event\["text"\]\)\n$`).MatchString(got.StackTrace[1]) {
		t.Errorf("error %s", res.Payload)
	}
	if !strings.Contains(string(res.LogTail), "\n[ERROR] ValueError: boom ä\nTraceback (most recent call last):\n  File ") {
		t.Errorf("log %q", res.LogTail)
	}

	res = r.call(`{"op":"marshal"}`)
	r.want(res, HandlerError, `{"errorMessage": "Unable to marshal response: Object of type datetime is not JSON serializable", "errorType": "Runtime.MarshalError", "requestId": "`+event(5, "").RequestID+`", "stackTrace": []}`)
	if res = r.call(`{"op":"circle"}`); !strings.Contains(string(res.Payload), `"Runtime.MarshalError"`) || res.Outcome != HandlerError {
		t.Errorf("circle: %s", describe(res))
	}
	r.want(r.call(`{"op":"decimal"}`), OK, `[1.5, Infinity, "\ud800"]`)
	r.want(r.call(`{"op":"bytes"}`), OK, "\x00raw")
	if res = r.call(`{"op":`); !strings.Contains(string(res.Payload), `"Runtime.UnmarshalError"`) || !strings.Contains(string(res.Payload), "Unable to unmarshal input: Expecting value: line 1") {
		t.Errorf("bad event: %s", describe(res))
	}
	r.want(r.call(" \n{}\t"), OK, "9")
	if res = r.call(`{"op":"large","n":6291554}`); res.Outcome != OK || len(res.Payload) != MaxResponseBytes {
		t.Errorf("largest: outcome %d, %d bytes", res.Outcome, len(res.Payload))
	}
	if res = r.call(`{"op":"large","n":30000000}`); res.Outcome != TooLarge {
		t.Errorf("too large: outcome %d, %d bytes", res.Outcome, len(res.Payload))
	}
	r.want(r.call(`{"n":"`+strings.Repeat("x", 5<<20)+`"}`), OK, "12")
}

func TestPythonEnds(t *testing.T) {
	py := interpreter(t, "python3")
	for _, c := range []struct{ event, text string }{
		{`{"op":"exit","status":0}`, "Runtime exited without providing a reason"},
		{`{"op":"exit","status":7}`, "Runtime exited with error: exit status 7"},
		{`{"op":"quit"}`, "Runtime exited with error: exit status 3"},
		{`{"op":"abort"}`, "Runtime exited with error: signal: aborted"},
	} {
		r := startReal(t, py, "app.handler", map[string]string{"app.py": pythonApp})
		res := r.call(c.event)
		r.want(res, Exit, `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: `+event(1, "").RequestID+` Error: `+c.text+`"}`)
		r.expect("ended")
	}
	r := startReal(t, py, "app.handler", map[string]string{"app.py": pythonApp})
	res := r.call(`{"op":"sleep"}`, func(e *Event) { e.Timeout = 200 * time.Millisecond })
	r.want(res, Timeout, `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: `+event(1, "").RequestID+` Error: Task timed out after 0.20 seconds"}`)
	r.expect("ended")
}

func TestPythonLoads(t *testing.T) {
	py := interpreter(t, "python3")
	const ok = "def f(event, context): return __name__\n"
	for _, c := range []struct {
		handler string
		files   map[string]string
		want    string // result, or error type
		message string
	}{
		{"dir/mod.f", map[string]string{"dir/mod.py": ok}, `"dir.mod"`, ""},
		{"pkg.mod.f", map[string]string{"pkg/__init__.py": "", "pkg/mod.py": ok}, `"pkg.mod"`, ""},
		{"a.f", map[string]string{"a.py": "import b\nf = b.f\n", "b.py": ok}, `"b"`, ""},
		{"nope.f", nil, "Runtime.ImportModuleError", "Unable to import module 'nope': No module named 'nope'"},
		{"a.f", map[string]string{"a.py": "import gone\n"}, "Runtime.ImportModuleError", "Unable to import module 'a': No module named 'gone'"},
		{"a.g", map[string]string{"a.py": ok}, "Runtime.HandlerNotFound", "Handler 'g' missing on module 'a'"},
		{"a.f", map[string]string{"a.py": "def f(:\n"}, "Runtime.UserCodeSyntaxError", "Syntax error in module 'a': "},
		{"handler", map[string]string{"handler.py": ok}, "Runtime.MalformedHandlerName", "Bad handler 'handler': not enough values to unpack (expected 2, got 1)"},
		{"sys.exit", nil, "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys as a handler module"},
		{"a.f", map[string]string{"a.py": "raise KeyError('at import')\n"}, "KeyError", "'at import'"},
	} {
		t.Run(c.handler+" "+c.want, func(t *testing.T) {
			r := startReal(t, py, c.handler, c.files)
			if c.message == "" {
				r.want(r.call("{}"), OK, c.want)
				return
			}
			expectInitError(r, c.want, c.message)
		})
	}
}

func expectInitError(r *real, errorType, message string) {
	r.t.Helper()
	res := r.expect("done")
	var got struct{ ErrorMessage, ErrorType string }
	if err := json.Unmarshal(res.Payload, &got); err != nil {
		r.t.Fatalf("%v: %s %s", err, describe(res), res.LogTail)
	}
	if res.Outcome != InitError || got.ErrorType != errorType || !strings.HasPrefix(got.ErrorMessage, message) {
		r.t.Errorf("got %s", describe(res))
	}
	if !strings.Contains(string(res.LogTail), errorType) {
		r.t.Errorf("log %q", res.LogTail)
	}
	r.expect("ended")
}

const nodeApp = `
let calls = 0;
exports.handler = async (event, context) => {
  calls++;
  switch (event.op) {
    case 'echo': return event;
    case 'context': return [context.awsRequestId, context.functionName, context.functionVersion, context.invokedFunctionArn,
      context.memoryLimitInMB, context.logGroupName, context.logStreamName === process.env.AWS_LAMBDA_LOG_STREAM_NAME,
      context.clientContext, context.identity === undefined, context.getRemainingTimeInMillis() > 1000, process.env._X_AMZN_TRACE_ID, calls,
      process.cwd() === process.env.LAMBDA_TASK_ROOT];
    case 'print':
      console.log('printed', { a: 1 }, 'é'); console.error('bad'); console.warn('hm'); console.debug('d'); console.info('two\nlines');
      process.stdout.write('plain\n');
      return;
    case 'throw': throw new TypeError('boom ä');
    case 'string': throw 'just text';
    case 'circle': { const a = {}; a.a = a; return a; }
    case 'large': return 'x'.repeat(event.n);
    case 'reject': Promise.reject(new Error('nobody waits')); await new Promise(() => {}); return;
    case 'uncaught': setTimeout(() => { throw new Error('in a timer'); }, 1); await new Promise((r) => setTimeout(r, 5000)); return;
    case 'exit': process.exit(event.status);
  }
  return calls;
};
exports.callback = (event, context, callback) => {
  if (event.nowait) context.callbackWaitsForEmptyEventLoop = false;
  if (event.op === 'timer') { setTimeout(() => console.log('timer ran'), 50); callback(null, 'called'); return; }
  if (event.op === 'error') return callback('text');
  if (event.op === 'both') { callback(null, 1); callback(null, 2); return; }
  if (event.op === 'nothing') return 'ignored';
  if (event.op === 'succeed') return context.succeed('ok');
  if (event.op === 'fail') return context.fail(new Error('failed'));
  if (event.op === 'done') return context.done(null, { d: 1 });
  if (event.op === 'sync') throw new Error('sync');
  setTimeout(() => callback(null, event), 5);
};
exports.nested = { deep: { handler: async () => 'deep' } };
exports.notfn = 5;
`

func TestNode(t *testing.T) {
	r := startReal(t, interpreter(t, "nodejs"), "index.handler", map[string]string{"index.js": nodeApp})
	r.want(r.call(`{"op":"echo","text":"grüße €","n":[1,2.5,null]}`), OK, `{"op":"echo","text":"grüße €","n":[1,2.5,null]}`)
	res := r.call(`{"op":"context"}`, func(e *Event) {
		e.ClientContext = []byte(`{"custom":{"é":1}}`)
		e.TraceID = "Root=1-5"
	})
	r.want(res, OK, fmt.Sprintf(`["%s","f","$LATEST","%s","128","/aws/lambda/f",true,{"custom":{"é":1}},true,true,"Root=1-5",2,true]`,
		event(2, "").RequestID, testSpec().Arn+":live"))
	res = r.call(`{"op":"print"}`)
	r.want(res, OK, "null")
	stamp := `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\t` + event(3, "").RequestID
	log := regexp.MustCompile(`(?s)^START RequestId: \S+ Version: \$LATEST\n` + stamp + `\tINFO\tprinted \{ a: 1 \} é\n` + stamp + `\tERROR\tbad\n` +
		stamp + `\tWARN\thm\n` + stamp + `\tDEBUG\td\n` + stamp + `\tINFO\ttwo\nlines\nplain\nEND RequestId: \S+\nREPORT `)
	if !log.Match(res.LogTail) {
		t.Errorf("log %q", res.LogTail)
	}
	res = r.call(`{"op":"throw"}`)
	var got struct {
		ErrorType, ErrorMessage string
		Trace                   []string
	}
	if err := json.Unmarshal(res.Payload, &got); err != nil || res.Outcome != HandlerError || got.ErrorType != "TypeError" || got.ErrorMessage != "boom ä" ||
		len(got.Trace) < 2 || got.Trace[0] != "TypeError: boom ä" || !strings.Contains(got.Trace[1], "index.js:") {
		t.Errorf("%v: %s", err, describe(res))
	}
	if !strings.Contains(string(res.LogTail), "\tERROR\tInvoke Error \t{\"errorType\":\"TypeError\",\"errorMessage\":\"boom ä\"") {
		t.Errorf("log %q", res.LogTail)
	}
	r.want(r.call(`{"op":"string"}`), HandlerError, `{"errorType":"string","errorMessage":"just text","trace":[]}`)
	if res = r.call(`{"op":"circle"}`); res.Outcome != HandlerError || !strings.Contains(string(res.Payload), "Unable to stringify response body") {
		t.Errorf("circle: %s", describe(res))
	}
	if res = r.call(`{"op":"large","n":6291554}`); res.Outcome != OK || len(res.Payload) != MaxResponseBytes {
		t.Errorf("largest: outcome %d, %d bytes", res.Outcome, len(res.Payload))
	}
	if res = r.call(`{"op":"large","n":30000000}`); res.Outcome != TooLarge {
		t.Errorf("too large: outcome %d, %d bytes", res.Outcome, len(res.Payload))
	}
	r.want(r.call(`{"n":"`+strings.Repeat("x", 5<<20)+`"}`), OK, "9")
	if res = r.call(`{"op":`); res.Outcome != HandlerError || !strings.Contains(string(res.Payload), "SyntaxError") {
		t.Errorf("bad event: %s", describe(res))
	}
}

func TestNodeCallbacks(t *testing.T) {
	r := startReal(t, interpreter(t, "nodejs"), "index.callback", map[string]string{"index.js": nodeApp})
	r.want(r.call(`{"a":1}`), OK, `{"a":1}`)
	res := r.call(`{"op":"timer"}`)
	r.want(res, OK, `"called"`)
	if res.Duration < 40*time.Millisecond || !strings.Contains(string(res.LogTail), "timer ran") {
		t.Errorf("did not wait for the timer: %v, %s", res.Duration, res.LogTail)
	}
	r.want(r.call(`{"op":"timer","nowait":true}`), OK, `"called"`)
	if res := r.call(`{"op":"error"}`); res.Outcome != HandlerError || !strings.HasPrefix(string(res.Payload), `{"errorType":"Error","errorMessage":"text"`) {
		t.Errorf("error: %s", describe(res))
	}
	r.want(r.call(`{"op":"both"}`), OK, "1")
	r.want(r.call(`{"op":"nothing"}`), OK, "null")
	r.want(r.call(`{"op":"succeed"}`), OK, `"ok"`)
	if res := r.call(`{"op":"fail"}`); res.Outcome != HandlerError || !strings.HasPrefix(string(res.Payload), `{"errorType":"Error","errorMessage":"failed","trace":["Error: failed"`) {
		t.Errorf("fail: %s", describe(res))
	}
	r.want(r.call(`{"op":"done"}`), OK, `{"d":1}`)
	if res := r.call(`{"op":"sync"}`); res.Outcome != HandlerError || !strings.HasPrefix(string(res.Payload), `{"errorType":"Error","errorMessage":"sync"`) {
		t.Errorf("sync: %s", describe(res))
	}
}

func TestNodeEnds(t *testing.T) {
	node := interpreter(t, "nodejs")
	for _, c := range []struct {
		event, errorType, message string
		outcome                   Outcome
	}{
		{`{"op":"reject"}`, "Runtime.UnhandledPromiseRejection", "Error: nobody waits", HandlerError},
		{`{"op":"uncaught"}`, "Error", "in a timer", HandlerError},
		{`{"op":"exit","status":0}`, "Runtime.ExitError", "RequestId: " + event(1, "").RequestID + " Error: Runtime exited without providing a reason", Exit},
		{`{"op":"exit","status":4}`, "Runtime.ExitError", "RequestId: " + event(1, "").RequestID + " Error: Runtime exited with error: exit status 4", Exit},
	} {
		t.Run(c.event, func(t *testing.T) {
			r := startReal(t, node, "index.handler", map[string]string{"index.js": nodeApp})
			r.expect("ready")
			r.invoke(event(1, c.event))
			res := r.expect("done")
			var got struct{ ErrorType, ErrorMessage string }
			if err := json.Unmarshal(res.Payload, &got); err != nil || res.Outcome != c.outcome || got.ErrorType != c.errorType || got.ErrorMessage != c.message {
				t.Errorf("%v: %s", err, describe(res))
			}
			r.expect("ended")
		})
	}
}

func TestNodeLoads(t *testing.T) {
	node := interpreter(t, "nodejs")
	const esm = "const v = await Promise.resolve('awaited');\nexport const handler = async () => v + typeof require;\n"
	for _, c := range []struct {
		handler string
		files   map[string]string
		want    string // result, or error type
		message string
	}{
		{"index.handler", map[string]string{"index.mjs": esm}, `"awaitedundefined"`, ""},
		{"index.handler", map[string]string{"index.js": esm, "package.json": `{"type":"module"}`}, `"awaitedundefined"`, ""},
		{"index.handler", map[string]string{"index.cjs": "exports.handler = async () => 'cjs'", "package.json": `{"type":"module"}`}, `"cjs"`, ""},
		{"dir/sub/index.handler", map[string]string{"dir/sub/index.js": "exports.handler = async () => require('./other')", "dir/sub/other.js": "module.exports = 'other'"}, `"other"`, ""},
		{"index.nested.deep.handler", map[string]string{"index.js": nodeApp}, `"deep"`, ""},
		{"index.handler", map[string]string{"index.js": "exports.handler = async () => require('dep')", "node_modules/dep/index.js": "module.exports = 'dep'"}, `"dep"`, ""},
		{"index.handler", nil, "Runtime.ImportModuleError", "Error: Cannot find module 'index'"},
		{"index.handler", map[string]string{"index.js": "require('gone')"}, "Runtime.ImportModuleError", "Error: Cannot find module 'gone'"},
		{"index.handler", map[string]string{"index.mjs": "import 'gone'"}, "Runtime.ImportModuleError", "Error"},
		{"index.handler", map[string]string{"index.js": "exports.handler = ("}, "Runtime.UserCodeSyntaxError", "SyntaxError: Unexpected"},
		{"index.other", map[string]string{"index.js": nodeApp}, "Runtime.HandlerNotFound", "index.other is undefined or not exported"},
		{"index.notfn", map[string]string{"index.js": nodeApp}, "Runtime.HandlerNotFound", "index.notfn is not a function"},
		{"index", map[string]string{"index.js": nodeApp}, "Runtime.MalformedHandlerName", "Bad handler"},
		{"../index.handler", map[string]string{"index.js": nodeApp}, "Runtime.MalformedHandlerName", "'../index.handler' is not a valid handler name"},
		{"index.handler", map[string]string{"index.js": "throw new RangeError('at load')"}, "RangeError", "at load"},
	} {
		t.Run(c.handler+" "+c.want, func(t *testing.T) {
			r := startReal(t, node, c.handler, c.files)
			if c.message == "" {
				r.want(r.call("{}"), OK, c.want)
				return
			}
			expectInitError(r, c.want, c.message)
		})
	}
}

const nodeStream = `
const { pipeline } = require('stream/promises');
const { Readable } = require('stream');
exports.handler = awslambda.streamifyResponse(async (event, stream, context) => {
  switch (event.op) {
    case 'pieces':
      stream.setContentType('text/plain');
      for (const piece of event.pieces) { stream.write(piece); await new Promise((r) => setTimeout(r, 5)); }
      stream.end();
      return;
    case 'large': await pipeline(Readable.from((function* () { for (let i = 0; i < event.n; i++) yield 'x'.repeat(1 << 20); })()), stream); return;
    case 'http': {
      const s = awslambda.HttpResponseStream.from(stream, { statusCode: 201, headers: { a: 'b' } });
      s.write('body');
      s.end(' end');
      return;
    }
    case 'context': stream.end(JSON.stringify([context.awsRequestId, context.getRemainingTimeInMillis() > 1000, context.memoryLimitInMB])); return;
    case 'object': stream.write({ a: 1 }); stream.end(); return 'ignored';
    case 'empty': stream.end(); return;
    case 'before': throw new RangeError('before the first piece');
    case 'midway': stream.write('some'); await new Promise((r) => setTimeout(r, 20)); throw new RangeError('midway');
    case 'after': stream.end('whole'); await new Promise((r) => setTimeout(r, 20)); throw new RangeError('after the end');
    case 'unfinished': stream.write('some'); return;
    case 'uncaught': stream.write('some'); setTimeout(() => { throw new Error('in a timer'); }, 5); await new Promise((r) => setTimeout(r, 5000)); return;
  }
}, { highWaterMark: 4096 });
exports.sync = awslambda.streamifyResponse((event, stream) => { stream.end('x'); });
`

// A handler that streams: whoever called it and waits gets the whole.
func TestNodeStreams(t *testing.T) {
	node := interpreter(t, "nodejs")
	r := startReal(t, node, "index.handler", map[string]string{"index.js": nodeStream})
	r.want(r.call(`{"op":"pieces","pieces":["a","grüße ","€"]}`), OK, "agrüße €")
	r.want(r.call(`{"op":"http"}`), OK, `{"statusCode":201,"headers":{"a":"b"}}`+"\x00\x00\x00\x00\x00\x00\x00\x00body end")
	r.want(r.call(`{"op":"context"}`), OK, `["`+event(3, "").RequestID+`",true,"128"]`)
	res := r.call(`{"op":"object"}`)
	r.want(res, OK, `{"a":1}`)
	r.want(r.call(`{"op":"empty"}`), OK, "")
	if res = r.call(`{"op":"large","n":5}`); res.Outcome != OK || len(res.Payload) != 5<<20 {
		t.Errorf("large: outcome %d, %d bytes", res.Outcome, len(res.Payload))
	}
	if res = r.call(`{"op":"large","n":20}`); res.Outcome != TooLarge {
		t.Errorf("too large: outcome %d, %d bytes", res.Outcome, len(res.Payload))
	}
	for op, message := range map[string]string{"before": "before the first piece", "midway": "midway", "unfinished": "Response stream is not finished."} {
		res = r.call(`{"op":"` + op + `"}`)
		var got struct{ ErrorType, ErrorMessage string }
		if err := json.Unmarshal(res.Payload, &got); err != nil || res.Outcome != HandlerError || got.ErrorMessage != message {
			t.Errorf("%s: %v: %s", op, err, describe(res))
		}
	}
	r.want(r.call(`{"op":"after"}`), OK, "whole")
	r.want(r.call(`{"op":"pieces","pieces":["still there"]}`), OK, "still there")
	r.n++
	r.invoke(event(r.n, `{"op":"uncaught"}`))
	if res = r.expect("done"); res.Outcome != HandlerError || !strings.Contains(string(res.Payload), "in a timer") {
		t.Errorf("uncaught: %s", describe(res))
	}
	r.expect("ended")

	r = startReal(t, node, "index.sync", map[string]string{"index.js": nodeStream})
	if res = r.call("{}"); res.Outcome != HandlerError || !strings.Contains(string(res.Payload), "Streaming does not support non-async handlers.") {
		t.Errorf("sync: %s", describe(res))
	}
	r = startReal(t, node, "index.handler", map[string]string{"index.js": "exports.handler = async () => 1; exports.handler[Symbol.for('aws.lambda.runtime.handler.streaming')] = 'request';"})
	expectInitError(r, "Runtime.MalformedStreamingHandler", "Only response streaming is supported.")
}

const goApp = `package main

import (
	"context"
	"errors"
	"fmt"
	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

func main() {
	lambda.Start(func(ctx context.Context, in struct{ Op string }) (any, error) {
		lc, _ := lambdacontext.FromContext(ctx)
		switch in.Op {
		case "error":
			return nil, errors.New("boom")
		case "panic":
			panic("oh no")
		}
		fmt.Println("hello from Go")
		return lc.AwsRequestID, nil
	})
}
`

func TestGo(t *testing.T) {
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "main.go"), []byte(goApp), 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(src, "bootstrap")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "lambda.norpc", "-o", bin, filepath.Join(src, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	r := startReal(t, runtimes.Runtime{Name: "provided.al2023"}, "bootstrap", map[string]string{"bootstrap": string(program)})
	for n := 1; n <= 5; n++ {
		res := r.call("{}")
		r.want(res, OK, `"`+event(n, "").RequestID+`"`)
		if !strings.Contains(string(res.LogTail), "\nhello from Go\nEND") {
			t.Errorf("log %q", res.LogTail)
		}
	}
	r.want(r.call(`{"Op":"error"}`), HandlerError, `{"errorMessage":"boom","errorType":"errorString"}`)
	r.expectPanic()
}

// expectPanic: aws-lambda-go reports a panic as an error and then exits.
func (r *real) expectPanic() {
	r.t.Helper()
	r.n++
	r.invoke(event(r.n, `{"Op":"panic"}`))
	if res := r.expect("done"); res.Outcome != HandlerError || !strings.Contains(string(res.Payload), "oh no") {
		r.t.Errorf("got %s", describe(res))
	}
	r.expect("ended")
}

const shellApp = `#!/bin/bash
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime"
h=$(mktemp)
while true; do
  event=$(curl -sS -D "$h" "$api/invocation/next")
  id=$(grep -i Lambda-Runtime-Aws-Request-Id "$h" | tr -d '[:space:]' | cut -d: -f2)
  echo "shell got $event"
  echo "[$event]" | curl -sS -X POST -H 'Transfer-Encoding: chunked' -H 'Expect: 100-continue' --data-binary @- "$api/invocation/$id/response" >/dev/null
done
`

func TestShell(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal("this test needs curl: apt-get install curl")
	}
	r := startReal(t, runtimes.Runtime{Name: "provided.al2"}, "x", map[string]string{"bootstrap": shellApp})
	for n := range 3 {
		r.want(r.call(fmt.Sprint(n)), OK, fmt.Sprintf("[%d]\n", n))
	}
}
