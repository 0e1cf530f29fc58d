package instance

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// What an instance makes the worker do for nothing is paced, and its next answer ends that.
func TestFloodIsPaced(t *testing.T) {
	r := newRig(t)
	const over = 300
	begin := time.Now()
	flood := r.dial()
	wrong := post("invocation/00000000-0000-4000-8000-000000000000/response", "x")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range freeAttempts + over {
			flood.write(wrong)
		}
	}()
	for range freeAttempts + over {
		if status, _, _ := flood.reply(); status != "400 Bad Request" {
			t.Fatalf("got %s", status)
		}
	}
	<-done
	if took := time.Since(begin); took < over*attemptPause {
		t.Errorf("%d requests for nothing in %s", freeAttempts+over, took)
	}
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	e := event(1, `{}`)
	r.invoke(e)
	w.reply()
	w.write(respond(e, `1`))
	r.expect("done")
	if n := r.i.server.attempts.Load(); n != 0 {
		t.Errorf("%d attempts are counted after an answer", n)
	}
}

// Connections that come and go are paced too.
func TestConnectionFloodIsPaced(t *testing.T) {
	r := newRig(t)
	const over = 100
	begin := time.Now()
	for range freeAttempts + over {
		w := r.dial()
		w.nc.Close()
	}
	// One that has its answer says that those before it have been accepted.
	w := r.dial()
	w.write("GET /x HTTP/1.1\r\n\r\n")
	w.reply()
	if took := time.Since(begin); took < over*attemptPause {
		t.Errorf("%d connections for nothing in %s", freeAttempts+over, took)
	}
}

// However many connections send heads that do not end, they have about one head's memory.
func TestLongHeadsShareABound(t *testing.T) {
	r := newRig(t)
	long := "GET /x HTTP/1.1\r\nA: " + strings.Repeat("x", maxHeadBytes-100)
	var all []*wire
	for range maxConnections - 2 {
		w := r.dial()
		all = append(all, w)
		go w.nc.Write([]byte(long)) // fails where it is refused
	}
	until := time.Now().Add(10 * time.Second)
	refused := func() int {
		r.i.server.mu.Lock()
		defer r.i.server.mu.Unlock()
		return len(all) - len(r.i.server.conns)
	}
	for refused() < len(all)/2 && time.Now().Before(until) {
		time.Sleep(time.Millisecond)
	}
	if n := r.i.server.grown.Load(); n > maxGrownBytes {
		t.Errorf("%d bytes for heads, the bound is %d", n, maxGrownBytes)
	}
	if refused() < len(all)/2 {
		t.Errorf("only %d of %d connections were refused", refused(), len(all))
	}
	for _, w := range all {
		w.nc.Close()
	}
	for r.i.server.grown.Load() != 0 {
		if time.Now().After(until) {
			t.Fatalf("%d bytes are counted without a connection", r.i.server.grown.Load())
		}
		time.Sleep(time.Millisecond)
	}
	w := r.dial()
	w.write("GET /x HTTP/1.1\r\n" + fmt.Sprintf("A: %s\r\n\r\n", strings.Repeat("x", maxHeadBytes-100)))
	if status, _, _ := w.reply(); status != "404 Not Found" {
		t.Errorf("a long head after them: %s", status)
	}
}

// A response of single bytes in size lines of a kilobyte is refused before it has come.
func TestChunkBomb(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	e := event(1, `{}`)
	r.invoke(e)
	w.reply()
	go w.nc.Write([]byte("POST /2018-06-01/runtime/invocation/" + e.RequestID + "/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\ny\r\n", 10_000)))
	if status, _, _ := w.reply(); status != "400 Bad Request" {
		t.Errorf("got %s", status)
	}
	// The event is open still.
	again := r.dial()
	again.write(respond(e, `"whole"`))
	if res := r.expect("done"); string(res.Payload) != `"whole"` {
		t.Errorf("%s", describe(res))
	}
}
