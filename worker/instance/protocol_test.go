package instance

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

const okBody = "{\"status\":\"OK\"}\n"

func TestOneEventAfterTheOther(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	for n := range 3 {
		e := event(n, fmt.Sprintf(`{"n":%d}`, n))
		e.ClientContext = []byte("{\"a\":\r\n1}")
		e.TraceID = "Root=1-2-3"
		r.invoke(e)
		status, head, body := w.reply()
		if status != "200 OK" || body != string(e.Payload) {
			t.Fatalf("next: %s %q", status, body)
		}
		for _, want := range []string{
			"\r\nLambda-Runtime-Aws-Request-Id: " + e.RequestID + "\r\n",
			"\r\nLambda-Runtime-Invoked-Function-Arn: " + e.InvokedARN + "\r\n",
			"\r\nLambda-Runtime-Trace-Id: Root=1-2-3\r\n",
			"\r\nLambda-Runtime-Client-Context: {\"a\":  1}\r\n",
			"\r\nLambda-Runtime-Deadline-Ms: ",
			"\r\nContent-Type: application/json\r\n",
		} {
			if !strings.Contains(head, want) {
				t.Errorf("head %q lacks %q", head, want)
			}
		}
		w.write(respond(e, `"pong"`))
		res := r.expect("done")
		if res.Outcome != OK || string(res.Payload) != `"pong"` || res.FunctionError != "" || res.BilledMs < 1 || res.MaxMemoryMB != 36 {
			t.Fatalf("result %+v", res)
		}
		if (res.Init > 0) != (n == 0) {
			t.Errorf("event %d has init %v", n, res.Init)
		}
		if status, _, body := w.reply(); status != "202 Accepted" || body != okBody {
			t.Fatalf("response: %s %q", status, body)
		}
		w.write(getNext)
		r.expect("idle")
	}
	if r.i.Calls() != 3 || r.i.State() != Idle {
		t.Errorf("calls %d, state %v", r.i.Calls(), r.i.State())
	}
}

// The response and the next poll in one segment: the 202 and the event come in one too.
func TestPipelinedResponseAndNext(t *testing.T) {
	r := newRig(t)
	next := 0
	r.handler.onIdle = func(i *Instance) { // Invoke from within Ready and Idle
		next++
		if next <= 50 {
			if err := i.Invoke(event(next, "{}")); err != nil {
				t.Error(err)
			}
		}
	}
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	w.reply()
	for n := 1; n <= 50; n++ {
		w.write(respond(event(n, ""), fmt.Sprint(n)) + getNext)
		if res := r.expect("done"); string(res.Payload) != fmt.Sprint(n) {
			t.Fatalf("payload %q", res.Payload)
		}
		r.expect("idle")
		if n == 50 {
			break
		}
		if status, _, _ := w.reply(); status != "202 Accepted" {
			t.Fatal(status)
		}
		if status, head, _ := w.reply(); status != "200 OK" || !strings.Contains(head, event(n+1, "").RequestID) {
			t.Fatal(status, head)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name, request, status, body string
		closes                      bool
	}{
		{"another id", post("invocation/nobody/response", "{}"), "400 Bad Request", `{"errorType":"InvalidRequestID","errorMessage":"Invalid request ID"}` + "\n", false},
		{"another id's error", post("invocation/nobody/error", "{}"), "400 Bad Request", `{"errorType":"InvalidRequestID","errorMessage":"Invalid request ID"}` + "\n", false},
		{"the last one's again", respond(event(1, ""), "2"), "403 Forbidden", `{"errorType":"InvalidStateTransition","errorMessage":"State transition from settled to InvocationResponse failed for runtime. Error: State transition is not allowed"}` + "\n", false},
		{"init error after init", post("init/error", "{}"), "403 Forbidden", `{"errorType":"InvalidStateTransition","errorMessage":"State transition from settled to InitError failed for runtime. Error: State transition is not allowed"}` + "\n", false},
		{"unknown path", "GET /2018-06-01/runtime/invocation HTTP/1.1\r\n\r\n", "404 Not Found", `{"errorType":"NotFound","errorMessage":"No such operation of the Runtime API"}` + "\n", false},
		{"wrong verb", "GET /2018-06-01/runtime/init/error HTTP/1.1\r\n\r\n", "404 Not Found", "", false},
		{"a body nobody wants", "DELETE /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "404 Not Found", "", false},
		{"a body nobody wants, in chunks", "PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n", "404 Not Found", "", false},
		{"waits to send it", "PUT /x HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", "404 Not Found", "", true},
		{"not HTTP", "hello\r\n\r\n", "400 Bad Request", "", true},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\n", "400 Bad Request", "", true},
		{"version", "GET / HTTP/3.0\r\n\r\n", "505 HTTP Version Not Supported", "", true},
		{"coding", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "501 Not Implemented", "", true},
		{"headers", "GET / HTTP/1.1\r\n" + strings.Repeat("a: b\r\n", maxHeaders+1) + "\r\n", "431 Request Header Fields Too Large", "", true},
		{"head", "GET / HTTP/1.1\r\na: " + strings.Repeat("b", maxHeadBytes), "431 Request Header Fields Too Large", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			w := r.dial()
			w.write(getNext)
			r.expect("ready")
			r.invoke(event(1, "{}"))
			w.reply()
			w.write(respond(event(1, ""), "1"))
			w.reply()
			r.expect("done")

			w.write(c.request)
			status, head, body := w.reply()
			if status != c.status || (c.body != "" && body != c.body) {
				t.Errorf("got %s %q", status, body)
			}
			if closes := strings.Contains(head, "Connection: close"); closes != c.closes {
				t.Errorf("closes %v: %q", closes, head)
			}
			if c.closes {
				if rest := w.ended(); rest != "" {
					t.Errorf("more: %q", rest)
				}
				w = r.dial()
			}
			w.write(getNext) // the instance lives on
			r.expect("idle")
		})
	}
}

func TestErrorOfTheHandler(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	r.invoke(event(1, "{}"))
	w.reply()
	payload := `{"errorMessage": "boom",  "errorType":"E"}`
	w.write(post("invocation/"+event(1, "").RequestID+"/error", payload, "lambda-runtime-function-error-type: E") + getNext)
	res := r.expect("done")
	if res.Outcome != HandlerError || res.FunctionError != "Unhandled" || string(res.Payload) != payload {
		t.Errorf("result %s", describe(res))
	}
	r.expect("idle")
	r.invoke(event(2, "{}"))
	w.reply()
	w.reply()
	w.write(post("invocation/"+event(2, "").RequestID+"/error", "", "Lambda-Runtime-Function-Error-Type: Empty.Body"))
	if res := r.expect("done"); string(res.Payload) != `{"errorType":"Empty.Body","errorMessage":""}` {
		t.Errorf("result %s", describe(res))
	}
}

func TestBodies(t *testing.T) {
	big := strings.Repeat("x", MaxResponseBytes)
	id := event(1, "").RequestID
	chunked := "POST /2018-06-01/runtime/invocation/" + id + "/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
	streaming := chunked + "Lambda-Runtime-Function-Response-Mode: streaming\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n"
	tooLarge := `{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}`
	for _, c := range []struct {
		name, request, status string
		outcome               Outcome
		payload               string
	}{
		{"empty", post("invocation/"+id+"/response", ""), "202 Accepted", OK, ""},
		{"not JSON", post("invocation/"+id+"/response", "\x00\xff"), "202 Accepted", OK, "\x00\xff"},
		{"the largest", post("invocation/"+id+"/response", big), "202 Accepted", OK, big},
		{"one byte more", post("invocation/"+id+"/response", big+"x"), "413 Request Entity Too Large", TooLarge, tooLarge},
		{"chunks", chunked + "\r\n3;ext=1\r\nabc\r\n0005\r\ndefgh\r\n0\r\n\r\n", "202 Accepted", OK, "abcdefgh"},
		{"the largest in chunks", chunked + "\r\n100000\r\n" + big[:1<<20] + "\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(big)-1<<20, big[1<<20:]), "202 Accepted", OK, big},
		{"one byte more in chunks", chunked + "\r\n" + fmt.Sprintf("%x\r\n%s\r\n1\r\ny\r\n0\r\n\r\n", len(big), big), "413 Request Entity Too Large", TooLarge, tooLarge},
		{"stream", streaming + "\r\n3\r\nabc\r\n0\r\n\r\n", "202 Accepted", OK, "abc"},
		{"stream that fails midway", streaming + "\r\n3\r\nabc\r\n0\r\nLambda-Runtime-Function-Error-Type: Bad\r\nLambda-Runtime-Function-Error-Body: " +
			base64.StdEncoding.EncodeToString([]byte(`{"errorType":"Bad"}`)) + "\r\n\r\n", "202 Accepted", HandlerError, `{"errorType":"Bad"}`},
		{"bad chunk size", chunked + "\r\nxyz\r\n", "400 Bad Request", 0, ""},
		{"bad chunk end", chunked + "\r\n1\r\nab\r\n0\r\n\r\n", "400 Bad Request", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			w := r.dial()
			w.write(getNext)
			r.expect("ready")
			r.invoke(event(1, "{}"))
			w.reply()
			written := make(chan struct{})
			go func() {
				defer close(written)
				_, _ = io.WriteString(w.nc, c.request)
			}()
			if status, _, _ := w.reply(); status != c.status {
				t.Errorf("status %s", status)
			}
			<-written
			if c.outcome == 0 { // still open: another connection may answer
				w = r.dial()
				w.write(respond(event(1, ""), "again"))
				if res := r.expect("done"); string(res.Payload) != "again" {
					t.Errorf("result %s", describe(res))
				}
				w.reply()
			} else {
				res := r.expect("done")
				if res.Outcome != c.outcome || string(res.Payload) != c.payload {
					t.Errorf("outcome %d, %d bytes", res.Outcome, len(res.Payload))
				}
			}
			w.write(getNext) // the instance lives on
			r.expect("idle")
		})
	}
}

func TestExpectContinue(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	r.invoke(event(1, "{}"))
	w.reply()
	request := post("invocation/"+event(1, "").RequestID+"/response", "hello", "Expect: 100-continue")
	w.write(strings.TrimSuffix(request, "hello"))
	if status, _, _ := w.reply(); status != "100 Continue" {
		t.Fatal(status)
	}
	w.write("hello")
	if status, _, _ := w.reply(); status != "202 Accepted" {
		t.Fatal(status)
	}
	if res := r.expect("done"); string(res.Payload) != "hello" {
		t.Errorf("result %s", describe(res))
	}
	w.write(getNext)
	r.expect("idle")
	r.invoke(event(2, "{}"))
	w.reply()
	w.write("POST /2018-06-01/runtime/invocation/" + event(2, "").RequestID + "/response HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
	if status, _, _ := w.reply(); status != "413 Request Entity Too Large" {
		t.Fatal(status)
	}
	if res := r.expect("done"); res.Outcome != TooLarge {
		t.Errorf("result %s", describe(res))
	}
}

// A client that opens a connection for each request, as curl in a shell loop does.
func TestConnectionPerRequest(t *testing.T) {
	r := newRig(t)
	for n := range 3 {
		w := r.dial()
		w.write("GET /2018-06-01/runtime/invocation/next HTTP/1.0\r\n\r\n")
		r.expect([]string{"ready", "idle", "idle"}[n])
		r.invoke(event(n, "{}"))
		if _, head, _ := w.reply(); !strings.Contains(head, "Connection: close") {
			t.Errorf("head %q", head)
		}
		if rest := w.ended(); rest != "" {
			t.Errorf("more: %q", rest)
		}
		w = r.dial()
		w.write(post("invocation/"+event(n, "").RequestID+"/response", "1", "Connection: close"))
		w.reply()
		w.ended()
		r.expect("done")
	}
}

// The client of aws-lambda-go, and most others, is a common HTTP library.
func TestNetHTTPClient(t *testing.T) {
	r := newRig(t)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	base := "http://" + r.process.listener.Addr().String() + apiPrefix
	for n := range 3 {
		got := make(chan string, 1)
		go func() {
			resp, err := client.Get(base + "invocation/next")
			if err != nil {
				got <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			got <- resp.Header.Get("Lambda-Runtime-Aws-Request-Id") + string(b)
		}()
		r.expect([]string{"ready", "idle", "idle"}[n])
		e := event(n, strings.Repeat("z", n*1<<20))
		r.invoke(e)
		want := e.RequestID + string(eventPayload(e))
		if g := <-got; g != want {
			t.Fatalf("next: %d bytes, want %d", len(g), len(want))
		}
		// An unknown length makes it chunked.
		resp, err := client.Post(base+"invocation/"+e.RequestID+"/response", "application/json", io.MultiReader(strings.NewReader("12"), strings.NewReader("34")))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 202 || string(b) != okBody {
			t.Errorf("response: %d %q", resp.StatusCode, b)
		}
		if res := r.expect("done"); string(res.Payload) != "1234" {
			t.Errorf("result %s", describe(res))
		}
	}
}

func TestSeveralConnectionsPolling(t *testing.T) {
	r := newRig(t)
	a, b := r.dial(), r.dial()
	a.write(getNext)
	r.expect("ready")
	b.write(getNext)
	waitParked(t, r.i, 2)
	r.invoke(event(1, "1"))
	b.reply() // the newest one gets it, once
	b.write(respond(event(1, ""), "1"))
	b.reply()
	r.expect("done")
	b.write(getNext)
	r.expect("idle")
	waitParked(t, r.i, 2)

	// One goes away while it waits; the other gets the event.
	b.nc.Close()
	waitParked(t, r.i, 1)
	r.invoke(event(2, "2"))
	if _, _, body := a.reply(); body != "2" {
		t.Errorf("body %q", body)
	}
	a.write(respond(event(2, ""), "2"))
	r.expect("done")
}

// All connections went away: the event waits for the next one.
func TestClientReconnects(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	w.nc.Close()
	waitParked(t, r.i, 0)
	r.invoke(event(1, "1"))
	w = r.dial()
	w.write(getNext)
	if _, _, body := w.reply(); body != "1" {
		t.Errorf("body %q", body)
	}
	w.write(respond(event(1, ""), "1"))
	r.expect("done")
}

func waitParked(t *testing.T, i *Instance, n int) {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		i.mu.Lock()
		have := len(i.parked)
		i.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("%d connections wait, want %d", have, n)
		}
	}
}

// Something behind `next` before it was answered cannot be meant: the connection ends.
func TestPipelinedBehindNext(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext + getNext)
	r.expect("ready")
	if rest := w.ended(); rest != "" {
		t.Errorf("got %q", rest)
	}
	waitParked(t, r.i, 0)
}

func TestTooManyConnections(t *testing.T) {
	r := newRig(t)
	for range maxConnections {
		w := r.dial()
		w.write("GET /x HTTP/1.1\r\n\r\n")
		w.reply()
	}
	w := r.dial()
	if rest := w.ended(); rest != "" {
		t.Errorf("got %q", rest)
	}
}

// A large event goes in the background; one that is answered without having been read is cut off
// before its payload is given back.
func TestLargeEvent(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	e := event(1, strings.Repeat("y", 6<<20))
	r.invoke(e)
	if _, _, body := w.reply(); body != string(e.Payload) {
		t.Fatal("payload differs")
	}
	w.write(respond(e, "1") + getNext)
	r.expect("done")
	r.expect("idle")

	e = event(2, strings.Repeat("y", 64<<20)) // more than any socket buffers
	r.invoke(e)
	other := r.dial()
	other.write(respond(e, "2"))
	if res := r.expect("done"); string(res.Payload) != "2" {
		t.Errorf("result %s", describe(res))
	}
	copy(e.Payload, "no longer read by anybody") // the race detector would tell
	other.reply()
	other.write(getNext)
	r.expect("idle")
}

func TestInvokeRefuses(t *testing.T) {
	r := newRig(t)
	if err := r.i.Invoke(event(1, "{}")); err != ErrNotIdle {
		t.Errorf("starting: %v", err)
	}
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	for _, id := range []string{"", "a b", "a\r\nb", strings.Repeat("a", 65)} {
		if err := r.i.Invoke(&Event{RequestID: id}); err != ErrRequestID {
			t.Errorf("id %q: %v", id, err)
		}
	}
	r.invoke(event(1, "{}"))
	if err := r.i.Invoke(event(2, "{}")); err != ErrNotIdle {
		t.Errorf("busy: %v", err)
	}
	r.i.Stop()
	r.expect("done")
	r.expect("ended")
	if err := r.i.Invoke(event(3, "{}")); err != ErrEnded {
		t.Errorf("ended: %v", err)
	}
}
