package runtimes

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The clients speak to whatever serves the Runtime API, not only to Doze's instance: they must
// take every way HTTP/1.1 has to say an answer, in whatever pieces it comes.

// answer200 are the ways to answer `next` with an event.
var answer200 = []struct {
	name string
	// whole is the answer for a request id and an event.
	whole func(id, event string) string
	// ends: the connection ends behind it.
	ends bool
}{
	{"length", func(id, event string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: %s\r\nContent-Length: %d\r\n\r\n%s", id, len(event), event)
	}, false},
	{"lower case and spaces", func(id, event string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-length:%d\r\nlambda-runtime-aws-request-id:   %s  \r\n\r\n%s", len(event), id, event)
	}, false},
	{"continue first", func(id, event string) string {
		return fmt.Sprintf("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: %s\r\nContent-Length: %d\r\n\r\n%s", id, len(event), event)
	}, false},
	{"chunks", func(id, event string) string {
		half := len(event) / 2
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x;x=y\r\n%s\r\n0\r\nTrailer: 1\r\n\r\n",
			id, half, event[:half], len(event)-half, event[half:])
	}, false},
	{"close", func(id, event string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nConnection: close\r\nLambda-Runtime-Aws-Request-Id: %s\r\nContent-Length: %d\r\n\r\n%s", id, len(event), event)
	}, true},
	{"until the end", func(id, event string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: %s\r\n\r\n%s", id, event)
	}, true},
}

// answer202 are the ways to accept a result. The client may take one like the last for granted.
var answer202 = []string{
	"HTTP/1.1 202 Accepted\r\nContent-Length: 16\r\n\r\n{\"status\":\"OK\"}\n",
	"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
	"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
	"HTTP/1.1 204 No Content\r\n\r\n",
}

// pieces are the ways to cut what is written.
var pieces = []int{0, 1, 16381}

func TestClients(t *testing.T) {
	found, err := Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ language, handler, file, source string }{
		{"nodejs", "app.handler", "app.js", "exports.handler = async (event) => event.text.length"},
		{"python", "app.handler", "app.py", "def handler(event, context): return len(event['text'])"},
	} {
		t.Run(c.language, func(t *testing.T) {
			n := slices.IndexFunc(found, func(r Runtime) bool { return strings.HasPrefix(r.Name, c.language) })
			if n < 0 {
				t.Fatalf("no %s that an unprivileged process can run", c.language)
			}
			code := t.TempDir()
			if err := os.WriteFile(filepath.Join(code, c.file), []byte(c.source), 0o644); err != nil {
				t.Fatal(err)
			}
			talk(t, startClient(t, found[n], code, c.handler))
		})
	}
}

// startClient runs a function as a plain process and returns where it connects to.
func startClient(t *testing.T, r Runtime, code, handler string) *net.TCPListener {
	t.Helper()
	dir := t.TempDir()
	if err := Install(t.Context(), dir, []Runtime{r}); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	argv := r.Argv(128)
	for i, arg := range argv {
		if rest, ok := strings.CutPrefix(arg, RuntimeRoot); ok {
			argv[i] = filepath.Join(dir, rest)
		}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"AWS_LAMBDA_RUNTIME_API=" + listener.Addr().String(), "_HANDLER=" + handler, "LAMBDA_TASK_ROOT=" + code, "LANG=C.UTF-8"}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the client said %s", said.Bytes())
		}
	})
	return listener.(*net.TCPListener)
}

// odd is a Runtime API server's side of a client's connection, and of the one that follows it.
type odd struct {
	t        *testing.T
	listener *net.TCPListener
	c        net.Conn
	in       *bufio.Reader
}

func (o *odd) accept() {
	o.t.Helper()
	if err := o.listener.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		o.t.Fatal(err)
	}
	c, err := o.listener.Accept()
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		o.t.Fatal(err)
	}
	o.c, o.in = c, bufio.NewReader(c)
}

// request reads one request and returns its body.
func (o *odd) request(method, path string) string {
	o.t.Helper()
	r, err := http.ReadRequest(o.in)
	if err != nil {
		o.t.Fatalf("instead of %s %s: %v", method, path, err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != method || r.URL.Path != apiPath+path {
		o.t.Fatalf("%s %s %q %v, want %s %s", r.Method, r.URL.Path, body, err, method, path)
	}
	return string(body)
}

// apiPath is the path that all of the Runtime API is below.
const apiPath = "/2018-06-01/runtime"

func (o *odd) write(text string, piece int) {
	o.t.Helper()
	if piece == 0 {
		piece = len(text)
	}
	for len(text) > 0 {
		n := min(piece, len(text))
		if _, err := io.WriteString(o.c, text[:n]); err != nil {
			o.t.Fatal(err)
		}
		text = text[n:]
	}
}

// talk gives a client events in every combination of the ways to answer.
func talk(t *testing.T, listener *net.TCPListener) {
	o := &odd{t: t, listener: listener}
	o.accept()
	o.request("GET", "/invocation/next")
	n, accepted := 0, ""
	for _, piece := range pieces {
		for _, way := range answer200 {
			for _, text := range []string{"", "grüße €", strings.Repeat("ü", 300<<10)} {
				if piece == 1 && len(text) > 100 { // thousands of writes are enough
					text = text[:600]
				}
				for _, next := range answer202 {
					n++
					id := fmt.Sprintf("id-%d", n)
					// What accepts the last result leaves together with the event.
					o.write(accepted+way.whole(id, `{"text":"`+text+`"}`), piece)
					if way.ends {
						_ = o.c.Close()
						o.accept()
					}
					want := fmt.Sprint(len([]rune(text)))
					if got := o.request("POST", "/invocation/"+id+"/response"); got != want {
						t.Fatalf("event %d (%s, in pieces of %d): answer %q, want %s", n, way.name, piece, got, want)
					}
					o.request("GET", "/invocation/next")
					accepted = next
				}
			}
		}
	}
	// A connection that ends while an event is awaited is made anew.
	o.write(accepted, 0)
	_ = o.c.Close()
	o.accept()
	o.request("GET", "/invocation/next")
}
