package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// Run is what every sandbox does.
func Run(t *testing.T, factory Factory) {
	f := open(t, factory)
	t.Run("exit", func(t *testing.T) { testExit(t, f) })
	t.Run("entrypoint", func(t *testing.T) { testEntrypoint(t, f) })
	t.Run("config", func(t *testing.T) { testConfig(t, f) })
	t.Run("environment", func(t *testing.T) { testEnvironment(t, f) })
	t.Run("descriptors", func(t *testing.T) { testDescriptors(t, f) })
	t.Run("output", func(t *testing.T) { testOutput(t, f) })
	t.Run("listener", func(t *testing.T) { testListener(t, f) })
	t.Run("tree", func(t *testing.T) { testTree(t, f) })
	t.Run("freeze", func(t *testing.T) { testFreeze(t, f) })
	t.Run("memory", func(t *testing.T) { testMemoryFigures(t, f) })
	t.Run("many at once", func(t *testing.T) { testMany(t, f) })
	t.Run("given up", func(t *testing.T) { testContext(t, f) })
	t.Run("close", func(t *testing.T) { testClose(t, factory) })
}

func testExit(t *testing.T, f *fixture) {
	for _, c := range []struct {
		name   string
		argv   []string
		code   int
		signal string
	}{
		{"zero", []string{bash, "-c", "exit 0"}, 0, ""},
		{"code", []string{bash, "-c", "exit 3"}, 3, ""},
		{"255", []string{bash, "-c", "exit 255"}, 255, ""},
		{"127", []string{bash, "-c", "/no/such/program"}, 127, ""},
		{"kills itself", []string{bash, "-c", "kill -9 $$"}, -1, "killed"},
		{"terminates itself", []string{bash, "-c", "kill -15 $$; sleep 10"}, -1, "terminated"},
		{"aborts", []string{python, "-c", "import os; os.abort()"}, -1, "aborted"},
		{"segfaults", []string{python, "-c", "import ctypes; ctypes.string_at(0)"}, -1, "segmentation fault"},
		{"broken pipe", []string{bash, "-c", "kill -PIPE $$"}, -1, "broken pipe"},
		{"hangs up", []string{bash, "-c", "kill -HUP $$; sleep 10"}, -1, "hangup"},
	} {
		t.Run(c.name, func(t *testing.T) {
			exit, out := f.start(t, f.config(c.argv...)).wait(t)
			if exit.Code != c.code || exit.Signal != c.signal || exit.OutOfMemory {
				t.Errorf("%+v, want code %d signal %q; output %q", exit, c.code, c.signal, out)
			}
		})
	}
}

func testEntrypoint(t *testing.T, f *fixture) {
	f.write(t, "plain", "echo hello\n", 0o644)
	f.write(t, "noexec", "neither a script nor a program\n", 0o755)
	f.write(t, "orphan", "#!/no/such/interpreter\n", 0o755)
	f.write(t, "good", "#!/bin/bash\necho fine \"$1\"\n", 0o755)
	f.write(t, "truncated", "\x7fELF", 0o755)
	if err := os.Mkdir(filepath.Join(f.code, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"missing", "plain", "noexec", "orphan", "truncated", "folder", "plain/below"} {
		t.Run(name, func(t *testing.T) {
			p, err := f.Start(t.Context(), f.config("/var/task/"+name))
			if !errors.Is(err, sandbox.ErrEntrypoint) {
				t.Fatalf("%v (%v), want ErrEntrypoint", err, p)
			}
		})
	}
	for _, argv := range [][]string{{"/var/task/good", "one"}, {"./good", "one"}} {
		exit, out := f.start(t, f.config(argv...)).wait(t)
		want(t, exit, out, "fine one")
	}
	t.Run("no code", func(t *testing.T) {
		c := f.config(bash, "-c", "true")
		c.CodeDir = filepath.Join(f.code, "gone")
		if _, err := f.Start(t.Context(), c); err == nil || errors.Is(err, sandbox.ErrEntrypoint) {
			t.Errorf("%v, want an error that is not ErrEntrypoint", err)
		}
	})
}

func testConfig(t *testing.T, f *fixture) {
	c := f.config(bash, "-c", "true")
	c.ID = "../up"
	if _, err := f.Start(t.Context(), c); err == nil {
		t.Error("an id that climbs was accepted")
	}
	first := f.config(bash, "-c", "sleep 60")
	one := f.start(t, first)
	two := f.config(bash, "-c", "true")
	two.ID = first.ID
	if _, err := f.Start(t.Context(), two); err == nil {
		t.Error("an id was given to two instances")
	}
	one.Kill()
	one.wait(t)
	f.start(t, two).wait(t)

	long := f.config(bash, "-c", "true")
	long.Env = append(long.Env, "LONG="+strings.Repeat("x", 300<<10))
	if _, err := f.Start(t.Context(), long); err == nil {
		t.Error("an environment of 300 KB was accepted")
	}
}

func testEnvironment(t *testing.T, f *fixture) {
	c := f.config("/usr/bin/env")
	c.Env = []string{"A=1", "EMPTY=", "B=two words = more", "TMPDIR=/tmp"}
	t.Setenv("DOZE_SECRET_OF_THE_WORKER", "leaked")
	i := f.start(t, c)
	exit, out := i.wait(t)
	want(t, exit, out, c.Env...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(c.Env)+1 {
		t.Errorf("more than was asked for:\n%s", out)
	}
	want(t, exit, out, "AWS_LAMBDA_RUNTIME_API="+i.Listener().Addr().String())

	f.write(t, "marker", "here\n", 0o644)
	exit, out = f.sh(t, `cat marker; (pwd; echo x) >/dev/null; echo "arg: $0" "$#"; read -r line; echo "stdin: $? [$line]"`)
	want(t, exit, out, "here", "arg: "+bash+" 0", "stdin: 1 []")
}

func testDescriptors(t *testing.T, f *fixture) {
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	exit, out := f.py(t, `
import os
for fd in sorted(int(n) for n in os.listdir("/proc/self/fd")):
    try: print(fd, os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
    except OSError: pass # the listing's own
print("blocked", [l for l in open("/proc/self/status") if l.startswith(("SigBlk", "SigIgn"))])
`)
	want(t, exit, out, "0 /dev/null", "1 pipe", "2 pipe")
	for line := range strings.Lines(out) {
		if len(line) > 1 && line[0] >= '3' && line[0] <= '9' {
			t.Errorf("inherited: %s", line)
		}
	}
	// Python itself ignores SIGPIPE and SIGXFSZ (bits 13 and 25). Without isolation, what this process
	// was started with is inherited too.
	allowed := uint64(1<<12 | 1<<24)
	if f.Name() == "process" {
		allowed |= ignoredHere(t)
	}
	if ignored := ignoredSignals(t, out); !strings.Contains(out, `SigBlk:\t0000000000000000`) || ignored&^allowed != 0 {
		t.Errorf("signals blocked or ignored: %s", out)
	}
}

// ignoredHere is the set of signals that this process ignores.
func ignoredHere(t *testing.T) uint64 {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	return ignoredSignals(t, string(raw))
}

var ignoredLine = regexp.MustCompile(`SigIgn:(?:\\t|\t)([0-9a-f]{16})`)

// ignoredSignals finds the ignored signals in /proc/PID/status, or in Python's way to print its lines.
func ignoredSignals(t *testing.T, status string) uint64 {
	t.Helper()
	m := ignoredLine.FindStringSubmatch(status)
	if m == nil {
		t.Fatalf("no SigIgn in %q", status)
	}
	n, err := strconv.ParseUint(m[1], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func testOutput(t *testing.T, f *fixture) {
	t.Run("order", func(t *testing.T) {
		exit, out := f.sh(t, `for i in 1 2 3; do echo out$i; echo err$i >&2; done`)
		if exit.Code != 0 || out != "out1\nerr1\nout2\nerr2\nout3\nerr3\n" {
			t.Errorf("%+v %q", exit, out)
		}
	})
	t.Run("device", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("opens /dev/stdout")
		}
		exit, out := f.sh(t, `echo one > /dev/stdout; echo two > /dev/stderr`)
		want(t, exit, out, "one", "two")
	})
	t.Run("buffered", func(t *testing.T) {
		p, err := f.Start(t.Context(), f.config(bash, "-c", `printf 0123456789; exec sleep 60`))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			p.Kill()
			<-p.Done()
		}()
		b := make([]byte, 4)
		if n, err := p.Output().Read(b); n != 4 || err != nil { // it has written all ten at once
			t.Fatalf("%d %v", n, err)
		}
		if n, err := p.Output().Buffered(); n != 6 || err != nil {
			t.Errorf("%d bytes buffered, %v; want 6", n, err)
		}
		p.Kill()
		if rest := readAll(t, p.Output()); rest != "456789" {
			t.Errorf("the rest is %q", rest)
		}
		if n, err := p.Output().Buffered(); n != 0 || err != nil {
			t.Errorf("%d bytes buffered after the end, %v", n, err)
		}
	})
	t.Run("much", func(t *testing.T) {
		exit, out := f.sh(t, `head -c 3000000 /dev/zero`)
		if exit.Code != 0 || len(out) != 3000000 {
			t.Errorf("%+v, %d bytes", exit, len(out))
		}
	})
	t.Run("unread", func(t *testing.T) {
		p, err := f.Start(t.Context(), f.config(bash, "-c", `while :; do echo more; done`))
		if err != nil {
			t.Fatal(err)
		}
		p.Kill()
		select {
		case <-p.Done():
		case <-time.After(patience):
			t.Fatal("an instance whose output nobody reads does not end")
		}
		readAll(t, p.Output())
	})
}

func testListener(t *testing.T, f *fixture) {
	i := f.start(t, f.config(python, "-c", `
import os, urllib.request
print(urllib.request.urlopen("http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/hello").read().decode())
`))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "served "+r.URL.Path) })}
	served := make(chan error, 1)
	go func() { served <- server.Serve(i.Listener()) }()
	exit, out := i.wait(t)
	want(t, exit, out, "served /hello")
	select { // the end of the program closes the listener
	case <-served:
	case <-time.After(patience):
		t.Error("the listener outlives the instance")
	}
	server.Close()
}

func testTree(t *testing.T, f *fixture) {
	t.Run("killed", func(t *testing.T) {
		i := f.start(t, f.config(bash, "-c", `(trap '' TERM HUP; bash -c 'trap "" TERM; echo child; while :; do sleep 1; done' & wait) & echo parent; wait`))
		i.until(t, "child")
		begin := time.Now()
		i.Kill()
		i.Kill() // dead stays dead
		exit, _ := i.wait(t)
		if exit.Signal != "killed" || exit.Code != -1 {
			t.Errorf("%+v", exit)
		}
		if took := time.Since(begin); took > sandbox.KillGrace {
			t.Errorf("took %s", took)
		}
		i.Kill()
		if z, ok := i.Process.(sandbox.Freezer); ok && (z.Freeze() == nil || z.Thaw() == nil) {
			t.Error("a dead instance was frozen")
		}
	})
	t.Run("program ends first", func(t *testing.T) {
		exit, out := f.sh(t, `sleep 1000 & echo left behind; exit 7`)
		if exit.Code != 7 || out != "left behind\n" {
			t.Errorf("%+v %q", exit, out)
		}
	})
	t.Run("zombies", func(t *testing.T) {
		exit, out := f.sh(t, `for i in 1 2 3 4 5; do (sleep 0.01 & ) ; done; sleep 0.2; ps -e -o stat= 2>/dev/null | grep -c Z; exit 0`)
		if exit.Code != 0 {
			t.Errorf("%+v %q", exit, out)
		}
	})
}

func testFreeze(t *testing.T, f *fixture) {
	i := f.start(t, f.config(bash, "-c", `n=0; while :; do n=$((n+1)); echo $n; sleep 0.001; done`))
	z, ok := i.Process.(sandbox.Freezer)
	if !ok {
		t.Skip("this sandbox does not freeze")
	}
	i.until(t, "3\n")
	if err := z.Freeze(); err != nil {
		t.Fatal(err)
	}
	// The order has been taken; what was on its way out of the kernel comes out. Two equal looks that are far
	// apart compared to the loop's millisecond say that it stands.
	still := func() bool {
		before := i.so()
		time.Sleep(100 * time.Millisecond)
		return before == i.so()
	}
	for end := time.Now().Add(patience); !still(); {
		if time.Now().After(end) {
			t.Fatal("it goes on while it is frozen")
		}
	}
	length := len(i.so())
	if err := z.Thaw(); err != nil {
		t.Fatal(err)
	}
	for end := time.After(patience); len(i.so()) == length; {
		select {
		case <-i.changed:
		case <-end:
			t.Fatal("it does not go on after it was thawed")
		}
	}
	if err := z.Freeze(); err != nil {
		t.Fatal(err)
	}
	i.Kill() // whoever kills, thaws
	exit, _ := i.wait(t)
	if exit.Signal != "killed" {
		t.Errorf("%+v", exit)
	}
}

func testMemoryFigures(t *testing.T, f *fixture) {
	i := f.start(t, f.config(python, "-c", `
import time
b = bytearray(40 << 20)
print("big", flush=True); del b
time.sleep(60)
`))
	i.until(t, "big")
	now, peak := i.MemoryBytes(), i.MemoryPeakBytes()
	if now == 0 {
		t.Skip("this sandbox cannot tell")
	}
	if now < 1<<20 || now > 128<<20 {
		t.Errorf("uses %d bytes", now)
	}
	i.Kill()
	i.wait(t)
	if last := i.MemoryPeakBytes(); last < peak || last < 40<<20 || last > 128<<20 {
		t.Errorf("peak %d, and %d after the end", peak, last)
	}
	if i.MemoryBytes() != 0 {
		t.Error("a dead instance uses memory")
	}
}

func testMany(t *testing.T, f *fixture) {
	const many = 60
	var wg sync.WaitGroup
	for n := range many {
		wg.Go(func() {
			p, err := f.Start(t.Context(), f.config(bash, "-c", fmt.Sprintf("echo i am %d; exit %d", n, n)))
			if err != nil {
				t.Error(err)
				return
			}
			out := readAll(t, p.Output())
			<-p.Done()
			if p.Exit().Code != n || out != fmt.Sprintf("i am %d\n", n) {
				t.Errorf("%d: %+v %q", n, p.Exit(), out)
			}
		})
	}
	wg.Wait()
}

func testContext(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Start(ctx, f.config(bash, "-c", "true")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// Wherever in a start the end of the context falls, there is an instance or an error, and never both or
	// neither.
	for d := range 30 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(d)*200*time.Microsecond)
		p, err := f.Start(ctx, f.config(bash, "-c", "sleep 60"))
		switch {
		case err == nil:
			p.Kill()
			readAll(t, p.Output())
			<-p.Done()
		case !errors.Is(err, context.DeadlineExceeded):
			t.Errorf("after %d steps: %v", d, err)
		}
		cancel()
	}
}

func testClose(t *testing.T, factory Factory) {
	f := open(t, factory)
	var all []*instance
	for range 5 {
		all = append(all, f.start(t, f.config(bash, "-c", "sleep 60")))
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for _, i := range all {
		select {
		case <-i.Done():
		default:
			t.Error("an instance outlives its sandbox")
		}
	}
	if _, err := f.Start(t.Context(), f.config(bash, "-c", "true")); err == nil {
		t.Error("a closed sandbox starts instances")
	}
	if left, err := os.ReadDir(f.data); err != nil || len(left) > 0 {
		t.Errorf("left in the data directory: %v %v", left, err)
	}
}
