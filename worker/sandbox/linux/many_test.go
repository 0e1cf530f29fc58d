//go:build linux

package linux

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// kept is how much of everything a sandbox without instances has: what starts and ends must not add to.
func kept(t *testing.T, s *Sandbox, data string) map[string]int {
	t.Helper()
	lines := func(path string) int {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(b, []byte("\n"))
	}
	entries := func(path string) int {
		list, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	files := func(dir string) (n int) {
		if err := filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	s.mu.Lock()
	launcher, root := s.launcher.pid, s.root.fd
	processes, ids := len(s.processes), len(s.ids)
	s.mu.Unlock()
	s.uids.mu.Lock()
	lent := len(s.uids.free) - s.uids.size
	s.uids.mu.Unlock()
	pids, dirs := members(t, s.cgroups)
	// A process whose parent is the launcher, zombies included; and the namespaces that any process has which came of
	// this one, the launcher's own three among them.
	children, spaces := 0, map[string]bool{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if fields[1] != strconv.Itoa(launcher) {
			continue
		}
		children++
		links, _ := filepath.Glob(filepath.Dir(path) + "/ns/*")
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil {
				spaces[to] = true
			}
		}
	}
	// Others mount on this machine too: what would be this sandbox's has its folder's name.
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	mounted := bytes.Count(table, []byte(data))
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	rss := 0
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", launcher)); err == nil {
		for line := range strings.Lines(string(b)) {
			fmt.Sscanf(line, "RssAnon: %d", &rss)
		}
	}
	return map[string]int{
		"descriptors": entries("/proc/self/fd"), "goroutines": runtime.NumGoroutine(), "threads": entries("/proc/self/task"),
		"descriptors of the launcher": entries(fmt.Sprintf("/proc/%d/fd", launcher)),
		"mounts":                      mounted, "mounts of the launcher": lines(fmt.Sprintf("/proc/%d/mountinfo", launcher)),
		"processes": children, "processes in cgroups": len(pids), "cgroups": dirs, "namespaces": len(spaces),
		"files in the data folder": files(data), "files in the root": files(inside(root, "etc")) + files(inside(root, usersDir)),
		"processes known": processes, "ids known": ids, "uids lent": lent,
		"heap, in MB": int(m.HeapAlloc >> 20), "memory of the launcher, in kB": rss,
	}
}

// slack is how much more of a thing there may be that is not exact: the Go runtime's threads, and goroutines and what
// it allocates for those that are on their way out.
func slack(what string) int {
	switch what {
	case "threads":
		return 8
	case "heap, in MB":
		return 4
	case "memory of the launcher, in kB":
		return 1024 // its heap breathes; a hundred bytes kept of each start would be as much
	}
	return 0
}

// TestTenThousand: ten thousand starts and ends leave no more of anything than the first hundred did.
func TestTenThousand(t *testing.T) {
	needRoot(t)
	many := 10_000
	if testing.Short() {
		many = 500
		t.Logf("-short: %d starts and not 10000", many)
	}
	// The smallest program there is, so that the test is of the sandbox.
	code := t.TempDir()
	if err := os.Chmod(code, 0o755); err != nil {
		t.Fatal(err)
	}
	argv := []string{"/bin/true"}
	if cc, err := exec.LookPath("gcc"); err == nil {
		build := exec.Command(cc, "-static", "-nostdlib", "-O1", "-x", "c", "-o", filepath.Join(code, "end"), "-")
		build.Stdin = strings.NewReader(tinyEnd[runtime.GOARCH])
		if out, err := build.CombinedOutput(); err == nil {
			argv = []string{"/var/task/end"}
		} else {
			t.Logf("%s is used: %v %s", argv[0], err, out)
		}
	}
	data := t.TempDir()
	s := open(t, data)
	var next atomic.Int64
	round := func(upTo int64) {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for {
					n := next.Add(1)
					if n > upTo || t.Failed() {
						return
					}
					if err := oneLife(t, s, int(n), code, argv); err != nil {
						t.Errorf("start %d: %v", n, err)
					}
				}
			})
		}
		wg.Wait()
		next.Store(upTo)
	}
	begin := time.Now()
	round(100)
	before := kept(t, s, data)
	round(int64(many))
	if t.Failed() {
		return
	}
	t.Logf("%d starts and ends in %s", many, time.Since(begin).Round(time.Second))
	var worse []string
	// What is counted here is gone when Done says so, except for threads of this process that have just ended.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		worse = nil
		after := kept(t, s, data)
		for what, n := range after {
			if n > before[what]+slack(what) {
				worse = append(worse, fmt.Sprintf("%s: %d after the first hundred, %d after %d", what, before[what], n, many))
			}
		}
		if len(worse) == 0 {
			t.Log(after)
			break
		}
		if time.Now().After(end) {
			t.Error(strings.Join(worse, "\n"))
			break
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n, err := os.ReadDir(data); err != nil || len(n) > 0 {
		t.Errorf("left in the data folder: %v %v", n, err)
	}
}

// oneLife is one of the ways an instance can begin and end.
func oneLife(t *testing.T, s *Sandbox, n int, code string, argv []string) error {
	c := sleeper(fmt.Sprint("m-", n), code)
	c.Argv = argv
	var p sandbox.Process
	var err error
	switch n % 8 {
	default:
		p, err = s.Start(t.Context(), c)
	case 1, 2: // by way of a parked one
		var k sandbox.Parked
		if k, err = s.Park(t.Context(), sandbox.ParkConfig{ID: "k-" + c.ID, MemoryBytes: c.MemoryBytes, TmpBytes: c.TmpBytes, CPUMilli: c.CPUMilli, MaxProcesses: c.MaxProcesses}); err == nil {
			if n%64 == 1 { // that is not used
				k.Discard()
				<-k.Done()
				return nil
			}
			p, err = k.Start(t.Context(), c)
		}
	case 3: // killed, some while they are frozen
		if n%64 == 3 {
			c.Argv = []string{"/bin/bash", "-c", "sleep 60 & sleep 60"}
		}
		if p, err = s.Start(t.Context(), c); err == nil {
			if n%128 == 3 {
				p.(sandbox.Freezer).Freeze() // an instance that has ended already says so
			}
			p.Kill()
		}
	case 4: // without a program
		if n%32 == 4 {
			c.Argv = []string{"/var/task/none"}
			if _, err := s.Start(t.Context(), c); err == nil {
				return fmt.Errorf("a program that is not there was started")
			}
			return nil
		}
		p, err = s.Start(t.Context(), c)
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, p.Output())
	<-p.Done()
	return err
}

// tinyEnd is a program that ends, for each architecture.
var tinyEnd = map[string]string{
	"amd64": `void _start(void) { __asm__ volatile("mov $60, %eax\n xor %edi, %edi\n syscall"); }`,
	"arm64": `void _start(void) { __asm__ volatile("mov x8, #93\n mov x0, #0\n svc #0"); }`,
}
