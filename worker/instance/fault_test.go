package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
)

const startID = "11111111-2222-4333-8444-555555555555"

func TestProcessEnds(t *testing.T) {
	for _, c := range []struct {
		name    string
		exit    sandbox.Exit
		outcome Outcome
		text    string
	}{
		{"status 1", sandbox.Exit{Code: 1}, Exit, "Runtime exited with error: exit status 1"},
		{"status 0", sandbox.Exit{}, Exit, "Runtime exited without providing a reason"},
		{"signal", sandbox.Exit{Code: -1, Signal: "segmentation fault"}, Exit, "Runtime exited with error: signal: segmentation fault"},
		{"memory", sandbox.Exit{Code: -1, Signal: "killed", OutOfMemory: true}, OutOfMemory, "Runtime exited with error: signal: killed"},
	} {
		t.Run("busy, "+c.name, func(t *testing.T) {
			r := newRig(t)
			w := r.dial()
			w.write(getNext)
			r.expect("ready")
			e := event(1, "{}")
			e.Tail = true
			r.invoke(e)
			w.reply()
			fmt.Fprintln(r.process.stdout, "last words")
			r.process.end(c.exit)
			res := r.expect("done")
			want := fmt.Sprintf(`{"errorType":"Runtime.ExitError","errorMessage":"RequestId: %s Error: %s"}`, e.RequestID, c.text)
			if res.Outcome != c.outcome || string(res.Payload) != want || res.FunctionError != "Unhandled" || res.Init == 0 {
				t.Errorf("result %s", describe(res))
			}
			r.expect("ended")
			tail := string(res.LogTail)
			if !strings.Contains(tail, "\nlast words\nRequestId: "+e.RequestID+" Error: "+c.text+"\nRuntime.ExitError\nEND RequestId: "+e.RequestID+"\nREPORT RequestId: "+e.RequestID+"\tDuration: ") ||
				!strings.Contains(tail, "\tStatus: error\tError Type: Runtime.ExitError\n") {
				t.Errorf("tail %q", tail)
			}
		})
		t.Run("init, "+c.name, func(t *testing.T) {
			r := newRig(t)
			fmt.Fprintln(r.process.stdout, "cannot start")
			r.process.end(c.exit)
			res := r.expect("done")
			outcome := InitError
			if c.outcome == OutOfMemory {
				outcome = OutOfMemory
			}
			if res.Outcome != outcome || !strings.Contains(string(res.Payload), "RequestId: "+startID+" Error: "+c.text) || res.Duration != 0 || res.Init <= 0 || res.BilledMs < 1 {
				t.Errorf("result %s", describe(res))
			}
			if !strings.Contains(string(res.LogTail), "cannot start\nINIT_REPORT Init Duration: ") {
				t.Errorf("tail %q", res.LogTail)
			}
			r.expect("ended")
		})
	}
	t.Run("idle", func(t *testing.T) {
		r := newRig(t)
		r.dial().write(getNext)
		r.expect("ready")
		r.process.end(sandbox.Exit{})
		r.expect("ended")
	})
}

// A response that was sent counts, though its sender is gone before it was read.
func TestAnswersAndExits(t *testing.T) {
	for range 20 {
		r := newRig(t)
		w := r.dial()
		w.write(getNext)
		r.expect("ready")
		r.invoke(event(1, "{}"))
		w.reply()
		w.write(respond(event(1, ""), `"made it"`))
		r.process.end(sandbox.Exit{Code: 1})
		if res := r.expect("done"); res.Outcome != OK || string(res.Payload) != `"made it"` {
			t.Fatalf("result %s", describe(res))
		}
		r.expect("ended")
	}
}

func TestInitError(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	payload := `{"errorMessage":"no module","errorType":"Runtime.ImportModuleError","stackTrace":[]}`
	w.write(post("init/error", payload, "Lambda-Runtime-Function-Error-Type: Runtime.ImportModuleError"))
	res := r.expect("done")
	if res.Outcome != InitError || string(res.Payload) != payload || res.FunctionError != "Unhandled" || res.BilledMs < 1 {
		t.Errorf("result %s", describe(res))
	}
	r.expect("ended")
	log := r.logs.String()
	for _, want := range []string{
		"INIT_START Runtime Version: provided.al2023\nINIT_REPORT Init Duration: ", "\tStatus: error\tError Type: Runtime.ImportModuleError\n",
		"START RequestId: " + startID + " Version: $LATEST\nEND RequestId: " + startID + "\nREPORT RequestId: " + startID + "\tDuration: 0.00 ms\tBilled Duration: ",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("log %q lacks %q", log, want)
		}
	}
}

func TestInvalidEntrypoint(t *testing.T) {
	for _, c := range []struct {
		name string
		code func(t *testing.T) string
		fail error
		text string
	}{
		{"none", func(t *testing.T) string { return t.TempDir() }, nil, "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"},
		{"not there inside", func(t *testing.T) string { return codeWithBootstrap(t) }, fmt.Errorf("%w: %w", sandbox.ErrEntrypoint, syscall.ENOENT), "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"},
		{"not executable", func(t *testing.T) string { return codeWithBootstrap(t) }, fmt.Errorf("%w: %w", sandbox.ErrEntrypoint, os.NewSyscallError("execve", syscall.EACCES)), "fork/exec /var/task/bootstrap: permission denied"},
		{"of another machine", func(t *testing.T) string { return codeWithBootstrap(t) }, fmt.Errorf("%w: %w", sandbox.ErrEntrypoint, syscall.ENOEXEC), "fork/exec /var/task/bootstrap: exec format error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(r *rig, l *Launch) {
				l.CodeDir = c.code(t)
				r.sandbox.fail = c.fail
			})
			res := r.expect("done")
			want := `{"errorType":"Runtime.InvalidEntrypoint","errorMessage":"RequestId: ` + startID + ` Error: ` + c.text + `"}`
			if res.Outcome != InitError || string(res.Payload) != want {
				t.Errorf("result %s", describe(res))
			}
			r.expect("ended")
			if r.i.MemoryBytes() != 0 || r.i.State() != Ended {
				t.Error("something of it is left")
			}
		})
	}
}

func TestBootstrapOfALayer(t *testing.T) {
	r := newRig(t, func(r *rig, l *Launch) { l.CodeDir, l.OptDir = t.TempDir(), codeWithBootstrap(t) })
	if got := r.sandbox.config.Argv[0]; got != "/opt/bootstrap" {
		t.Errorf("program %s", got)
	}
}

func TestStartFails(t *testing.T) {
	for _, fail := range []error{sandbox.ErrNoMemory, errors.New("no such device"), fmt.Errorf("x: %w", sandbox.ErrEntrypoint)} {
		h := newRecorder()
		launch := &Launch{ID: "i", Spec: testSpec(), Runtime: runtimes.Runtime{Name: "python3.11", Path: "/usr/bin/python3.11"}}
		o := newRig(t).options
		o.Sandbox = &fakeSandbox{fail: fail}
		if _, err := Start(context.Background(), o, launch, h); !errors.Is(err, fail) {
			t.Errorf("error %v, want %v", err, fail)
		}
		if len(h.said) != 0 {
			t.Error("the handler was called")
		}
	}
	for _, l := range []*Launch{{}, {ID: "i"}, {ID: "i", Spec: testSpec(), RequestID: "a b"}, {ID: strings.Repeat("i", 65), Spec: testSpec()}} {
		if _, err := Start(context.Background(), newRig(t).options, l, newRecorder()); err == nil {
			t.Errorf("launch %+v was taken", l)
		}
	}
	if _, err := Start(context.Background(), &Options{}, &Launch{ID: "i", Spec: testSpec()}, newRecorder()); err == nil {
		t.Error("empty options were taken")
	}
}

func TestStop(t *testing.T) {
	t.Run("starting", func(t *testing.T) {
		r := newRig(t)
		r.i.Stop()
		if res := r.expect("done"); res.Outcome != Killed {
			t.Errorf("result %s", describe(res))
		}
		r.expect("ended")
	})
	t.Run("busy", func(t *testing.T) {
		r := newRig(t)
		w := r.dial()
		w.write(getNext)
		r.expect("ready")
		r.invoke(event(1, "{}"))
		r.i.Stop()
		r.i.Stop()
		if res := r.expect("done"); res.Outcome != Killed {
			t.Errorf("result %s", describe(res))
		}
		r.expect("ended")
	})
	t.Run("within Idle", func(t *testing.T) {
		r := newRig(t)
		r.handler.onIdle = func(i *Instance) {
			i.Stop()
			if i.StopIdle() {
				t.Error("stopped twice")
			}
			if err := i.Invoke(event(1, "{}")); err != ErrEnded {
				t.Errorf("invoke: %v", err)
			}
		}
		r.dial().write(getNext)
		r.expect("ready")
		r.expect("ended")
	})
	t.Run("only when idle", func(t *testing.T) {
		r := newRig(t)
		if r.i.StopIdle() {
			t.Error("stopped while starting")
		}
		w := r.dial()
		w.write(getNext)
		r.expect("ready")
		r.invoke(event(1, "{}"))
		if r.i.StopIdle() {
			t.Error("stopped while busy")
		}
		w.reply()
		w.write(respond(event(1, ""), "1") + getNext)
		r.expect("done")
		r.expect("idle")
		if !r.i.StopIdle() {
			t.Error("not stopped while idle")
		}
		r.expect("ended")
	})
}

// pipeListener is a listener without the kernel, for tests on synctest's clock.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.IPAddr{} }

// silence is an Output that says nothing until it is closed.
type silence struct{ done <-chan struct{} }

func (s silence) Read([]byte) (int, error) { <-s.done; return 0, errors.New("ended") }
func (s silence) Buffered() (int, error)   { return 0, nil }

type quiet struct{ *fakeProcess }

func (q quiet) Output() sandbox.Output { return silence{q.done} }

type quietSandbox struct{ *fakeSandbox }

func (s quietSandbox) Start(ctx context.Context, c sandbox.Config) (sandbox.Process, error) {
	p, err := s.fakeSandbox.Start(ctx, c)
	if err != nil {
		return nil, err
	}
	return quiet{p.(*fakeProcess)}, nil
}

func bubble(t *testing.T, f func(t *testing.T, r *rig, l *pipeListener)) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
		r := newRig(t, func(r *rig, launch *Launch) {
			r.sandbox.listen = func() (net.Listener, error) { return l, nil }
			r.options.Sandbox = quietSandbox{r.sandbox}
		})
		f(t, r, l)
	})
}

func (l *pipeListener) dial(r *rig) *wire {
	here, there := net.Pipe()
	l.conns <- there
	r.process.mu.Lock()
	r.process.conns = append(r.process.conns, here)
	r.process.mu.Unlock()
	return &wire{r.t, here}
}

func TestTimeout(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, l *pipeListener) {
		w := l.dial(r)
		w.write(getNext)
		r.expect("ready")
		// Calls that are in time, longer than their deadline in all: the alarm rings in vain.
		for n := range 5 {
			e := event(n, "{}")
			e.Timeout = 3 * time.Second
			r.invoke(e)
			w.reply()
			time.Sleep(2 * time.Second)
			w.write(respond(e, "1"))
			if res := r.expect("done"); res.Outcome != OK || res.Duration != 2*time.Second || res.BilledMs != 2000 {
				t.Fatalf("result %s after %v, %d ms", describe(res), res.Duration, res.BilledMs)
			}
			w.reply()
			w.write(getNext)
			r.expect("idle")
		}
		e := event(9, "{}")
		e.Timeout, e.Tail = 3*time.Second, true
		began := time.Now()
		r.invoke(e)
		w.reply()
		res := r.expect("done")
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("told after %v", took)
		}
		want := `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: ` + e.RequestID + ` Error: Task timed out after 3.00 seconds"}`
		if res.Outcome != Timeout || string(res.Payload) != want || res.Duration != 3*time.Second || res.BilledMs != 3000 {
			t.Errorf("result %s", describe(res))
		}
		r.expect("ended")
		wantLog := "START RequestId: " + e.RequestID + " Version: $LATEST\n" +
			time.Now().UTC().Format("2006-01-02T15:04:05.000Z") + " " + e.RequestID + " Task timed out after 3.00 seconds\n" +
			"END RequestId: " + e.RequestID + "\nREPORT RequestId: " + e.RequestID +
			"\tDuration: 3000.00 ms\tBilled Duration: 3000 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\tStatus: timeout\n"
		if string(res.LogTail) != wantLog {
			t.Errorf("tail %q, want %q", res.LogTail, wantLog)
		}
	})
}

// What was left of the function's timeout is a little less than all of it; the owner knows all.
func TestTimeoutIsNamedAsConfigured(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, l *pipeListener) {
		w := l.dial(r)
		w.write(getNext)
		r.expect("ready")
		e := event(1, "{}")
		e.Timeout = 2980 * time.Millisecond
		r.invoke(e)
		w.reply()
		if res := r.expect("done"); !strings.Contains(string(res.Payload), "Task timed out after 3.00 seconds") || res.BilledMs != 2980 {
			t.Errorf("result %s, billed %d", describe(res), res.BilledMs)
		}
		r.expect("ended")
	})
}

func TestInitNeverEnds(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, l *pipeListener) {
		began := time.Now()
		res := r.expect("done")
		if took := time.Since(began); took != InitLimit {
			t.Errorf("told after %v", took)
		}
		want := `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: ` + startID + ` Error: Task timed out after 10.00 seconds"}`
		if res.Outcome != InitError || string(res.Payload) != want || res.Init != InitLimit || res.BilledMs != 10000 {
			t.Errorf("result %s", describe(res))
		}
		r.expect("ended")
		if log := r.logs.String(); !strings.Contains(log, "INIT_REPORT Init Duration: 10000.00 ms\tPhase: init\tStatus: timeout") {
			t.Errorf("log %q", log)
		}
	})
}

// A response whose body has begun when the time is up is too late, and answers nothing.
func TestTimeoutWhileAnswering(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, l *pipeListener) {
		w := l.dial(r)
		w.write(getNext)
		r.expect("ready")
		e := event(1, "{}")
		r.invoke(e)
		w.reply()
		request := respond(e, "12345")
		w.write(request[:len(request)-2])
		if res := r.expect("done"); res.Outcome != Timeout {
			t.Errorf("result %s", describe(res))
		}
		r.expect("ended")
	})
}

// The client dies with a half-sent response: another may answer, and if none does, time does.
func TestHalfAResponse(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	e := event(1, "{}")
	r.invoke(e)
	w.reply()
	request := respond(e, "12345")
	w.write(request[:len(request)-2])
	w.nc.Close()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until the server saw the end
		w = r.dial()
		w.write(respond(e, "whole"))
		if status, _, _ := w.reply(); status == "202 Accepted" {
			break
		} else if status != "403 Forbidden" || time.Now().After(until) {
			t.Fatal(status)
		}
	}
	if res := r.expect("done"); string(res.Payload) != "whole" {
		t.Errorf("result %s", describe(res))
	}
}
