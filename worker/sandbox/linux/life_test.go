//go:build linux

package linux

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
)

// sleeper is an instance that does nothing for a minute.
func sleeper(id, code string) sandbox.Config {
	return sandbox.Config{ID: id, CodeDir: code, Argv: []string{"/bin/bash", "-c", "sleep 60 & sleep 60"}, Env: []string{"PATH=/usr/bin:/bin"},
		MemoryBytes: 64 << 20, TmpBytes: 1 << 20, CPUMilli: 100, MaxProcesses: 16}
}

const workerVar = "DOZE_TEST_WORKER_DATA"

// TestWorker is not a test of its own: it is the worker that TestPredecessor kills.
func TestWorker(t *testing.T) {
	data := os.Getenv(workerVar)
	if data == "" {
		return
	}
	s := open(t, data)
	for i := range 20 {
		p, err := s.Start(t.Context(), sleeper(fmt.Sprint("p-", i), data))
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 && s.cgroups.canFreeze() {
			if err := p.(sandbox.Freezer).Freeze(); err != nil {
				t.Fatal(err)
			}
		}
	}
	fmt.Println("ready")
	select {}
}

func startWorker(t *testing.T, data string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestWorker$", "-test.v")
	cmd.Env = append(os.Environ(), workerVar+"="+data)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(out)
	for s.Scan() {
		if s.Text() == "ready" {
			return cmd
		}
		t.Log(s.Text())
	}
	cmd.Wait()
	t.Fatal("the worker did not get ready")
	return nil
}

// members lists all processes below the sandbox's cgroups.
func members(t *testing.T, c *cgroups) (pids []int, dirs int) {
	t.Helper()
	for _, parent := range c.parents() {
		filepath.WalkDir(parent, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != parent {
				dirs++
				more, _ := processes(path)
				pids = append(pids, more...)
			}
			return nil
		})
	}
	return pids, dirs
}

// TestPredecessor: the functions of a worker that was killed end with it, frozen ones included, and the next
// one removes the rest.
func TestPredecessor(t *testing.T) {
	needRoot(t)
	data := t.TempDir()
	if err := os.Chmod(data, 0o755); err != nil {
		t.Fatal(err)
	}
	worker := startWorker(t, data)
	if s, err := New(Options{DataDir: data}); err == nil {
		s.Close()
		t.Error("two sandboxes share a data directory")
	}
	c, err := detectCgroups("/proc/self/mountinfo", "/proc/self/cgroup", parentName(data))
	if err != nil {
		t.Fatal(err)
	}
	pids, _ := members(t, c)
	if len(pids) < 40 {
		t.Fatalf("only %d processes in the cgroups", len(pids))
	}
	worker.Process.Kill()
	worker.Wait()
	begin := time.Now()
	for {
		pids, _ = members(t, c)
		if len(pids) == 0 {
			break
		}
		if time.Since(begin) > time.Minute { // what a frozen group keeps does not end at all; an emulated processor is slow
			t.Fatalf("%d processes outlive their worker", len(pids))
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Logf("all gone %s after the worker", time.Since(begin))
	s := open(t, data)
	if pids, dirs := members(t, c); dirs != 0 || len(pids) != 0 {
		t.Errorf("%d directories and %d processes are left", dirs, len(pids))
	}
	p, err := s.Start(t.Context(), sleeper("p-0", data)) // the name is free again
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	<-p.Done()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestLauncherDies: its instances die with it, and the next start has another.
func TestLauncherDies(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	code := t.TempDir()
	var all []sandbox.Process
	for i := range 4 {
		p, err := s.Start(t.Context(), sleeper(fmt.Sprint("l-", i), code))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	s.mu.Lock()
	l := s.launcher
	s.mu.Unlock()
	unix.Kill(l.pid, unix.SIGKILL)
	for _, p := range all {
		select {
		case <-p.Done():
		case <-time.After(10 * time.Second):
			t.Fatal("an instance outlives the launcher")
		}
		if p.Exit().Signal != "killed" {
			t.Errorf("%+v", p.Exit())
		}
	}
	<-l.done
	c := sleeper("l-next", code)
	c.Argv = []string{"/bin/bash", "-c", "echo again"}
	p, err := s.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(p.Output()); err != nil || string(b) != "again\n" {
		t.Errorf("%q %v", b, err)
	}
	<-p.Done()
}

// TestLauncherIsSmall holds the memory that a PID 1 has for itself: what an idle instance costs beyond
// its program.
func TestLauncherIsSmall(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	p, err := s.Start(context.Background(), sleeper("small", t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		<-p.Done()
	}()
	pids, _ := members(t, s.cgroups)
	for _, pid := range pids {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !strings.HasPrefix(string(cmdline), "[doze-sandbox-stage]") {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if f[0] == "Private_Dirty:" {
				t.Logf("PID 1 has %s kB for itself", f[1])
				if n, _ := strconv.Atoi(f[1]); n > 512 {
					t.Errorf("PID 1 has %d kB for itself", n)
				}
				return
			}
		}
	}
	t.Error("no PID 1 found")
}

// TestMarkerNeedsSocket: the name alone does not make a launcher of this binary.
func TestMarkerNeedsSocket(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"[doze-sandbox-stage]"}
	cmd.Env = append(os.Environ(), "DOZE_TEST_MARKER=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "this is the test binary") {
		t.Errorf("%v %q", err, out)
	}
}

func TestMain(m *testing.M) {
	if os.Getenv("DOZE_TEST_MARKER") == "1" {
		fmt.Println("this is the test binary")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// BenchmarkStartParked is BenchmarkStart with a sandbox that was parked.
func BenchmarkStartParked(b *testing.B) {
	s := open(b, b.TempDir())
	defer s.Close()
	benchmarkStart(b, func(c sandbox.Config) func() (sandbox.Process, error) {
		k, err := s.Park(context.Background(), sandbox.ParkConfig{ID: "parked-" + c.ID,
			MemoryBytes: c.MemoryBytes, TmpBytes: c.TmpBytes, CPUMilli: c.CPUMilli, MaxProcesses: c.MaxProcesses})
		if err != nil {
			b.Fatal(err)
		}
		return func() (sandbox.Process, error) { return k.Start(context.Background(), c) }
	})
}

// BenchmarkStart starts a program in sparse arrivals, 20 ms apart, and reports the median time until Start
// returns, until its first byte is there, and until nothing of it is left.
func BenchmarkStart(b *testing.B) {
	s := open(b, b.TempDir())
	defer s.Close()
	benchmarkStart(b, func(c sandbox.Config) func() (sandbox.Process, error) {
		return func() (sandbox.Process, error) { return s.Start(context.Background(), c) }
	})
}

func benchmarkStart(b *testing.B, prepare func(sandbox.Config) func() (sandbox.Process, error)) {
	c := sleeper("", b.TempDir())
	c.Argv = []string{"/bin/echo", "hello"}
	c.MemoryBytes, c.TmpBytes, c.CPUMilli = 128<<20, 512<<20, 1769
	var started, first, gone []time.Duration
	buf := make([]byte, 64)
	for b.Loop() {
		c.ID = fmt.Sprint("b-", len(gone))
		start := prepare(c)
		time.Sleep(20 * time.Millisecond)
		begin := time.Now()
		p, err := start()
		if err != nil {
			b.Fatal(err)
		}
		started = append(started, time.Since(begin))
		p.Output().Read(buf)
		first = append(first, time.Since(begin))
		io.Copy(io.Discard, p.Output())
		<-p.Done()
		gone = append(gone, time.Since(begin))
	}
	for unit, l := range map[string][]time.Duration{"started-p50-ms": started, "first-byte-p50-ms": first, "gone-p50-ms": gone} {
		slices.Sort(l)
		b.ReportMetric(float64(l[len(l)/2])/1e6, unit)
	}
	b.ReportMetric(0, "ns/op")
}
