package testenv

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// A runtime of its own that does with the Runtime API and its sandbox what no decent one does.
const hostileBootstrap = `#!/usr/bin/python3
import json, os, socket, time
host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")

def connect():
    s = socket.create_connection((host, int(port)))
    s.settimeout(20)
    return s

def ask(s, text, body=b""):
    s.sendall(text.encode() + b"Host: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return read(s)

def read(s):
    data = b""
    while b"\r\n\r\n" not in data:
        more = s.recv(65536)
        if not more: return data.decode(), b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = dict(l.lower().split(": ", 1) for l in head.decode().split("\r\n")[1:])
    while len(body) < int(lines.get("content-length", 0)): body += s.recv(65536)
    return head.decode(), body

def post(s, path, value):
    return ask(s, "POST /2018-06-01/runtime/invocation/" + path + " HTTP/1.1\r\n", json.dumps(value).encode())[0].split("\r\n")[0]

s = connect()
while True:
    head, event = ask(s, "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n")
    id = [l.split(": ")[1] for l in head.split("\r\n") if l.lower().startswith("lambda-runtime-aws-request-id")][0]
    do = json.loads(event)["do"]
    if do == "twice":
        post(s, id + "/response", "first")
        post(s, id + "/response", "second")
    elif do == "wrong id":
        wrong = post(s, "00000000-0000-4000-8000-000000000000/response", "for somebody else")
        post(s, id + "/response", wrong)
    elif do == "garbage":
        for junk in (b"GET /\r\n\r\n", b"\0" * 9 + b"\r\n\r\n", b"POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", b"x" * (1 << 20)):
            t = connect()
            try:
                t.sendall(junk)
                while t.recv(65536): pass
            except OSError: pass
            t.close()
        post(s, id + "/response", "still here")
    elif do == "connections":
        many, refused = [], 0
        for _ in range(200):
            try:
                t = connect()
                t.setblocking(False)
                many.append(t)
            except OSError: refused += 1
        post(s, id + "/response", "still here")
        for t in many: t.close()
    elif do == "daemon":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 100)
                while True: time.sleep(0.01)
            os._exit(0)
        post(s, id + "/response", "left one behind")
    elif do == "flood": # requests for nothing, thousands of them in one go
        t = connect()
        wrong = b"POST /2018-06-01/runtime/invocation/00000000-0000-4000-8000-000000000000/response HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"
        sender = os.fork()
        if sender == 0:
            try: t.sendall(wrong * 3000)
            except OSError: pass
            os._exit(0)
        got = b""
        while got.count(b"InvalidRequestID") < 3000:
            more = t.recv(1 << 20)
            if not more: break
            got += more
        os.waitpid(sender, 0)
        post(s, id + "/response", got.count(b"InvalidRequestID"))
        t.close()
    elif do == "heads": # that never end, on as many connections as there may be
        many, refused = [], 0
        for _ in range(64):
            try:
                t = connect()
                t.settimeout(2)
                t.sendall(b"GET /x HTTP/1.1\r\nA: " + b"x" * (127 << 10))
                many.append(t)
            except OSError: refused += 1
        post(s, id + "/response", "still here")
        for t in many: t.close()
    elif do == "slow": # a byte now and then
        many = []
        for _ in range(8):
            t = connect()
            t.sendall(b"POST /2018-06-01/runtime/invocation/" + id.encode() + b"/response HTTP/1.1\r\nContent-Le")
            many.append(t)
        for _ in range(20):
            for t in many: t.sendall(b"n")
            time.sleep(0.01)
        post(s, id + "/response", "still here")
        for t in many: t.close()
    elif do == "bodies": # announced in gigabytes, and in chunks that say a lot about little
        for head, part in ((b"Content-Length: 9999999999", b"x" * (1 << 20)), (b"Transfer-Encoding: chunked", b"1;" + b"x" * 1000 + b"\r\ny\r\n"), (b"Transfer-Encoding: chunked", b"ffffffffffffff\r\n" + b"x" * (1 << 20))):
            t = connect()
            try:
                # To nobody's event, so that this one stays open.
                t.sendall(b"POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\n" + head + b"\r\n\r\n")
                for _ in range(200): t.sendall(part)
            except OSError: pass
            t.close()
        post(s, id + "/response", "still here")
    elif do == "endless": # a response without an end
        t = connect()
        t.sendall(b"POST /2018-06-01/runtime/invocation/" + id.encode() + b"/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(200): t.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
        except OSError: pass
        t.close()
    elif do == "print": # more than anybody reads
        if os.fork() == 0:
            for _ in range(100): os.write(1, b"spam and eggs\n" * 70000)
            os._exit(0)
        os.wait()
        post(s, id + "/response", "printed")
    elif do == "disk":
        written = 0
        try:
            with open("/tmp/big", "wb") as f:
                while written < 1 << 30:
                    written += f.write(b"x" * (1 << 20))
                    f.flush()
        except OSError: pass
        try: os.unlink("/tmp/big")
        except OSError: pass
        post(s, id + "/response", written >> 20)
`

// Whatever a function does to the Runtime API and to its sandbox, its calls end, the next ones work,
// other functions notice nothing, and nothing of it outlives it.
func TestHostileFunctions(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	client := d.Client()
	d.Create(ctx, "f", types.RuntimeProvidedal2023, Zip(t, map[string]string{"bootstrap": hostileBootstrap}), func(in *lambda.CreateFunctionInput) {
		in.Timeout, in.MemorySize = aws.Int32(30), aws.Int32(1024)
	})
	d.Create(ctx, "other", d.Runtime(ctx, "python"), Python(t, pythonSleep))
	before := len(descendants(t, d.PID()))
	calls := int64(0)
	memory := procStatus(t, d.PID(), "VmRSS:")
	for _, test := range []struct{ do, want string }{
		{"twice", `"first"`},
		{"wrong id", `"HTTP/1.1 400 Bad Request"`},
		{"garbage", `"still here"`},
		{"connections", `"still here"`},
		{"flood", `3000`},
		{"heads", `"still here"`},
		{"slow", `"still here"`},
		{"bodies", `"still here"`},
		{"endless", `{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}`},
		{"print", `"printed"`},
		{"disk", `512`},
		{"daemon", `"left one behind"`},
		{"daemon", `"left one behind"`},
	} {
		t.Run(test.do, func(t *testing.T) {
			for range 2 {
				end := d.background(ctx, "f", `{"do":"`+test.do+`"}`)
				if out := d.Invoke(ctx, "other", `{"s":0}`); string(out.Payload) != `{"s": 0}` {
					t.Errorf("another function answers %s", out.Payload)
				}
				calls++
				if got := <-end; got.err != nil || (got.out.FunctionError != nil) != (test.do == "endless") || string(got.out.Payload) != test.want {
					t.Fatalf("%+v %+v", got.out, got.err)
				}
			}
		})
	}
	// A gigabyte has been thrown at it. What it may hold of that is a response or two, and the log's bound.
	if peak := procStatus(t, d.PID(), "VmHWM:"); peak > memory+256<<10 {
		t.Errorf("doze has taken %d MB at most, with %d MB before it", peak>>10, memory>>10)
	} else {
		t.Logf("doze has taken %d MB at most, with %d MB before it", peak>>10, memory>>10)
	}
	var stored int64
	if err := filepath.WalkDir(d.DataDir, func(path string, e fs.DirEntry, err error) error {
		if info, infoErr := e.Info(); err == nil && infoErr == nil && info.Mode().IsRegular() {
			stored += info.Size()
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	t.Logf("%d MB in the data folder", stored>>20)
	if stored > 256<<20 {
		t.Errorf("%d MB in the data folder after 200 MB were printed", stored>>20)
	}
	d.Eventually(10*time.Second, "every call is billed once", func() bool {
		n, _ := d.Requests(ctx, "f")
		if n > calls {
			t.Fatalf("%d calls, %d billed", calls, n)
		}
		return n == calls
	})
	pids := descendants(t, d.PID())
	if len(pids) < before+4 {
		t.Fatalf("%d processes, before it %d: where are the daemons?", len(pids), before)
	}
	for _, name := range []string{"f", "other"} {
		if _, err := client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: &name}); err != nil {
			t.Fatal(err)
		}
	}
	d.Eventually(10*time.Second, "every instance has ended", func() bool { return len(d.Instances(ctx, "")) == 0 })
	d.Kill()
	d.Eventually(5*time.Second, "every process has ended", func() bool {
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil && !zombie(pid) {
				return false
			}
		}
		return true
	})
	d.Start()
}

// procStatus is a figure of /proc/PID/status, in KB where it is memory.
func procStatus(t *testing.T, pid int, name string) (n int) {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}
