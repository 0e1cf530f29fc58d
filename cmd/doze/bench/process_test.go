//go:build linux

package bench

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	st, err := parseStat([]byte("42 (a (b) c) S 7 42 42 0 -1 4194560 100 200 0 0 11 22 33 44 20 0 1 0 100 0 0"))
	if err != nil || st.parent != 7 || st.waitCPU != 770*time.Millisecond {
		t.Errorf("%+v, %v", st, err)
	}
	for _, bad := range []string{"", "42 no parentheses", "42 (x) S 7", "42 (x) S y 42 42 0 -1 4194560 100 200 0 0 11 22 33 44", "42 (x) S 7 42 42 0 -1 4194560 100 200 0 0 11 22 a 44"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// spin is a shell that uses CPU time until its stdin closes, and then says so.
const spin = `while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo x; done`

func TestTreeCPUAndMemory(t *testing.T) {
	root := exec.Command("/bin/sh", "-c", "read go; sleep 60 & "+spin)
	root.SysProcAttr = childAttr()
	in, err := root.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := root.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l := newLauncher()
	defer l.close()
	if err := l.start(root); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-root.Process.Pid, syscall.SIGKILL)
		_ = root.Wait()
	}()
	before, err := treeCPU(root.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // one turn of the loop has been made
		t.Fatal(err)
	}
	after, err := treeCPU(root.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if used := after.since(before).Platform; used < time.Millisecond {
		t.Errorf("20,000 turns of a shell took %v of CPU", used)
	}
	functions, helpers, err := functionProcesses(root.Process.Pid)
	if err != nil || len(functions)+len(helpers) != 1 {
		t.Errorf("functions %v, helpers %v, %v: want one child", functions, helpers, err)
	}
	use, err := memoryOf(append(slices.Concat(functions, helpers), root.Process.Pid, 1<<30))
	if err != nil || use.Processes != 2 || use.RSS < 100<<10 || use.PSS > use.RSS {
		t.Errorf("%+v, %v", use, err)
	}
}

func TestProcessThatIsGone(t *testing.T) {
	if _, err := treeCPU(1 << 30); err == nil {
		t.Error("no error")
	}
	if _, err := processCPU(1 << 28); err == nil {
		t.Error("no error")
	}
}

func TestMemAvailable(t *testing.T) {
	n, err := memAvailable()
	if err != nil || n < 1<<20 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestChildThatDoesNotEnd(t *testing.T) {
	l := newLauncher()
	defer l.close()
	program := writeScript(t, "#!/bin/sh\ntrap '' TERM\necho ready x\nwhile :; do sleep 0.05; done\n")
	c, rest, err := l.startServer(t.Context(), "stubborn", t.TempDir(), "ready ", 20*time.Second, program)
	if err != nil || rest != "x" {
		t.Fatalf("%q, %v", rest, err)
	}
	if err := c.stop(20 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("stop: %v", err)
	}
	select {
	case <-c.exited:
	default:
		t.Error("it runs on")
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(c.pid())); err == nil {
		t.Error("its process is still there")
	}
}

func TestChildThatIsNeverReady(t *testing.T) {
	l := newLauncher()
	defer l.close()
	program := writeScript(t, "#!/bin/sh\necho hello\necho why >&2\nexec sleep 60\n")
	_, _, err := l.startServer(t.Context(), "silent", t.TempDir(), "ready ", 500*time.Millisecond, program)
	if err == nil || !strings.Contains(err.Error(), "not ready within") || !strings.Contains(err.Error(), "why") {
		t.Errorf("%v", err)
	}
}
