package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const nextRequest = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"

func dialLoop(t *testing.T, payload string) (*bareLoop, net.Conn, *bufio.Reader) {
	t.Helper()
	b, err := newBareLoop([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	c, err := net.Dial("tcp", b.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return b, c, bufio.NewReader(c)
}

func readAnswer(t *testing.T, in *bufio.Reader) (int, http.Header, string) {
	t.Helper()
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, r.Header, string(body)
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func TestBareLoopServesEvents(t *testing.T) {
	b, c, in := dialLoop(t, `{"a":1}`)
	b.allow(2)
	send(t, c, nextRequest)
	status, header, body := readAnswer(t, in)
	if status != 200 || body != `{"a":1}` || header.Get("Lambda-Runtime-Aws-Request-Id") == "" || header.Get("Lambda-Runtime-Deadline-Ms") == "" {
		t.Fatalf("next: %d %v %s", status, header, body)
	}
	// The response and the next `next` at once, the response in chunks.
	send(t, c, "POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"b\r\n4\r\n\":2}\r\n0\r\n\r\n"+nextRequest)
	if status, _, _ := readAnswer(t, in); status != 202 {
		t.Fatalf("response: %d", status)
	}
	if status, _, body := readAnswer(t, in); status != 200 || body != `{"a":1}` {
		t.Fatalf("second next: %d %s", status, body)
	}
	if n, err := b.count(); n != 1 || err != nil {
		t.Errorf("count: %d, %v", n, err)
	}
	if a := b.firstAnswer(); string(a) != `{"b":2}` {
		t.Errorf("first answer %q", a)
	}
	// No token is left: the 202 comes, the third event does not before it is allowed.
	send(t, c, "POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"+nextRequest)
	if status, _, _ := readAnswer(t, in); status != 202 {
		t.Fatalf("response: %d", status)
	}
	if in.Buffered() > 0 {
		t.Error("an event without a token")
	}
	b.allow(1)
	if status, _, _ := readAnswer(t, in); status != 200 {
		t.Fatalf("third next: %d", status)
	}
}

func TestBareLoopTellsFailures(t *testing.T) {
	for name, text := range map[string]string{
		"error":        "POST /2018-06-01/runtime/init/error HTTP/1.1\r\nContent-Length: 9\r\n\r\nno module",
		"unknown":      "GET /elsewhere HTTP/1.1\r\n\r\n",
		"length":       "POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
		"chunk":        "POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nq\r\n",
		"not a header": strings.Repeat("x", maxRuntimeHead+1),
	} {
		t.Run(name, func(t *testing.T) {
			b, c, _ := dialLoop(t, "{}")
			send(t, c, text)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			select {
			case <-b.news:
			case <-ctx.Done():
				t.Fatal("nothing was told")
			}
			if _, err := b.count(); !errors.Is(err, errRuntimeAPI) {
				t.Errorf("count: %v", err)
			}
		})
	}
}

func FuzzReadRuntimeRequest(f *testing.F) {
	f.Add([]byte(nextRequest))
	f.Add([]byte("POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("POST /x/error HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(b), maxRuntimeHead)
		for range 100 {
			r, err := readRuntimeRequest(in)
			if err != nil {
				return
			}
			if r.kind == 0 || len(r.body) > len(b) {
				t.Fatalf("%d bytes made %+v", len(b), r)
			}
		}
	})
}
