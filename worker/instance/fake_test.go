package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSandbox starts fakeProcesses: the test is the program inside.
type fakeSandbox struct {
	fail    error
	freezer bool
	plain   bool // Output without a pollable descriptor
	listen  func() (net.Listener, error)

	mu      sync.Mutex
	config  sandbox.Config
	process *fakeProcess
}

func (s *fakeSandbox) Name() string      { return "fake" }
func (s *fakeSandbox) Missing() []string { return nil }
func (s *fakeSandbox) Close() error      { return nil }

func (s *fakeSandbox) Start(_ context.Context, config sandbox.Config) (sandbox.Process, error) {
	if s.fail != nil {
		return nil, s.fail
	}
	listen := s.listen
	if listen == nil {
		listen = func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	}
	l, err := listen()
	if err != nil {
		return nil, err
	}
	p := &fakeProcess{listener: l, done: make(chan struct{})}
	var reader *os.File
	if reader, p.stdout, err = os.Pipe(); err != nil {
		return nil, err
	}
	p.output = polled{reader}
	if s.plain {
		p.output = &struct{ sandbox.Output }{p.output}
	}
	s.mu.Lock()
	s.config, s.process = config, p
	s.mu.Unlock()
	if s.freezer {
		return &freezable{fakeProcess: p}, nil
	}
	return p, nil
}

// polled is a pipe as the sandboxes give it.
type polled struct{ *os.File }

func (p polled) Buffered() (n int, err error) {
	raw, err := p.SyscallConn()
	if err != nil {
		return 0, err
	}
	var got error
	err = raw.Control(func(fd uintptr) { n, got = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n, errors.Join(err, got)
}

type fakeProcess struct {
	listener net.Listener
	output   sandbox.Output
	stdout   *os.File
	done     chan struct{}
	peak     int64

	mu    sync.Mutex
	ended bool
	exit  sandbox.Exit
	conns []net.Conn
}

func (p *fakeProcess) Listener() net.Listener { return p.listener }
func (p *fakeProcess) Output() sandbox.Output { return p.output }
func (p *fakeProcess) Done() <-chan struct{}  { return p.done }
func (p *fakeProcess) Exit() sandbox.Exit     { return p.exit }
func (p *fakeProcess) MemoryBytes() int64     { return 7 << 20 }
func (p *fakeProcess) MemoryPeakBytes() int64 { return 35<<20 + 1 }
func (p *fakeProcess) Kill()                  { p.end(sandbox.Exit{Code: -1, Signal: "killed"}) }

// end is the end of the program, for whatever reason.
func (p *fakeProcess) end(e sandbox.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.ended, p.exit = true, e
	for _, c := range p.conns {
		c.Close()
	}
	p.stdout.Close()
	p.listener.Close()
	close(p.done)
}

// freezable notes what it is told.
type freezable struct {
	*fakeProcess
	orders chan string
	fm     sync.Mutex
	frozen bool
	gate   chan struct{} // when set, Freeze waits for it
}

func (f *freezable) Freeze() error {
	if f.gate != nil {
		<-f.gate
	}
	f.fm.Lock()
	defer f.fm.Unlock()
	f.frozen = true
	if f.orders != nil {
		f.orders <- "freeze"
	}
	return nil
}

func (f *freezable) Thaw() error {
	f.fm.Lock()
	defer f.fm.Unlock()
	f.frozen = false
	if f.orders != nil {
		f.orders <- "thaw"
	}
	return nil
}

// said is one call of the Handler.
type said struct {
	what   string
	result *Result
}

// recorder is a Handler that writes down what it is told.
type recorder struct {
	said chan said
	// onIdle runs inside Ready and Idle.
	onIdle func(*Instance)
}

func newRecorder() *recorder { return &recorder{said: make(chan said, 4096)} }

func (r *recorder) Ready(i *Instance, _ time.Duration) {
	r.said <- said{what: "ready"}
	if r.onIdle != nil {
		r.onIdle(i)
	}
}
func (r *recorder) Done(_ *Instance, res *Result) { r.said <- said{what: "done", result: res} }
func (r *recorder) Idle(i *Instance) {
	r.said <- said{what: "idle"}
	if r.onIdle != nil {
		r.onIdle(i)
	}
}
func (r *recorder) Ended(*Instance) { r.said <- said{what: "ended"} }

// lines is a LogSink that keeps text.
type lines struct {
	mu    sync.Mutex
	text  []string
	calls int
	hold  func()
}

func (l *lines) Lines(_ *dozev1.FunctionSpec, _ string, _ int64, batch [][]byte) {
	if l.hold != nil {
		l.hold()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	for _, line := range batch {
		l.text = append(l.text, string(line))
	}
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.text, "\n")
}

// rig is an instance with the test as its function.
type rig struct {
	t       testing.TB
	sandbox *fakeSandbox
	process *fakeProcess
	handler *recorder
	logs    *lines
	i       *Instance
	options *Options
}

func testSpec() *dozev1.FunctionSpec {
	return &dozev1.FunctionSpec{
		Account: "000000000000", Function: "f", Version: "$LATEST", Arn: "arn:aws:lambda:us-east-1:000000000000:function:f",
		Runtime: "provided.al2023", Handler: "h", MemoryMb: 128, TimeoutSeconds: 3, EphemeralStorageMb: 512,
	}
}

func codeWithBootstrap(t testing.TB) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bootstrap"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func newRig(t testing.TB, change ...func(*rig, *Launch)) *rig {
	t.Helper()
	r := &rig{t: t, sandbox: &fakeSandbox{}, handler: newRecorder(), logs: &lines{}}
	r.options = &Options{Sandbox: r.sandbox, Logs: r.logs, Logger: slog.New(slog.DiscardHandler), Region: "us-east-1"}
	launch := &Launch{ID: "i-1", Spec: testSpec(), Runtime: runtimes.Runtime{Name: "provided.al2023"}, CodeDir: codeWithBootstrap(t),
		RequestID: "11111111-2222-4333-8444-555555555555"}
	for _, c := range change {
		c(r, launch)
	}
	i, err := Start(t.Context(), r.options, launch, r.handler)
	if err != nil {
		t.Fatal(err)
	}
	r.i, r.process = i, r.sandbox.process
	t.Cleanup(func() {
		i.Stop()
		for i.State() != Ended {
			select {
			case s := <-r.handler.said:
				if s.what == "ended" {
					return
				}
			case <-time.After(10 * time.Second):
				t.Error("the instance did not end")
				return
			}
		}
	})
	return r
}

// expect takes the next thing the Handler was told.
func (r *rig) expect(what string) *Result {
	r.t.Helper()
	select {
	case s := <-r.handler.said:
		if s.what != what {
			r.t.Fatalf("handler was told %s (%s), want %s", s.what, describe(s.result), what)
		}
		return s.result
	case <-time.After(30 * time.Second):
		r.t.Fatalf("handler was not told %s; state %v", what, r.i.State())
		return nil
	}
}

func describe(r *Result) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("outcome %d, %q", r.Outcome, r.Payload)
}

func event(n int, payload string) *Event {
	return &Event{
		RequestID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n), InvokedARN: testSpec().Arn + ":live",
		Payload: []byte(payload), Timeout: 5 * time.Second,
	}
}

func (r *rig) invoke(e *Event) {
	r.t.Helper()
	if err := r.i.Invoke(e); err != nil {
		r.t.Fatal(err)
	}
}

// wire is a client that writes and reads bytes.
type wire struct {
	t  testing.TB
	nc net.Conn
}

func (r *rig) dial() *wire {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.process.listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	r.process.mu.Lock()
	r.process.conns = append(r.process.conns, nc)
	r.process.mu.Unlock()
	r.t.Cleanup(func() { nc.Close() })
	return &wire{r.t, nc}
}

func (w *wire) write(s string) {
	w.t.Helper()
	if _, err := io.WriteString(w.nc, s); err != nil {
		w.t.Fatal(err)
	}
}

// reply reads one answer: its status, head and body.
func (w *wire) reply() (status, head, body string) {
	w.t.Helper()
	var got bytes.Buffer
	one := make([]byte, 1)
	for !bytes.HasSuffix(got.Bytes(), headEnd) {
		if _, err := io.ReadFull(w.nc, one); err != nil {
			w.t.Fatalf("answer ended after %q: %v", got.String(), err)
		}
		got.Write(one)
	}
	head = got.String()
	_, status, _ = strings.Cut(strings.SplitN(head, "\r\n", 2)[0], " ")
	length := 0
	for line := range strings.SplitSeq(head, "\r\n") {
		if v, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			fmt.Sscan(v, &length)
		}
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(w.nc, b); err != nil {
		w.t.Fatal(err)
	}
	return status, head, string(b)
}

// ended reads to the end of the connection and returns what came.
func (w *wire) ended() string {
	w.t.Helper()
	b, err := io.ReadAll(w.nc)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		w.t.Fatal(err)
	}
	return string(b)
}

const getNext = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"

func post(path, body string, headers ...string) string {
	h := ""
	for _, line := range headers {
		h += line + "\r\n"
	}
	return fmt.Sprintf("POST /2018-06-01/runtime/%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s", path, h, len(body), body)
}

func respond(e *Event, body string) string { return post("invocation/"+e.RequestID+"/response", body) }
