//go:build linux

package linux

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// Where the kernel tells it, an instance whose processes are more than there are CPUs is seen to wait for them, and
// one that sleeps is not.
func TestCPUWait(t *testing.T) {
	needRoot(t)
	s := open(t, t.TempDir())
	told := false
	if s.cgroups.unified != "" {
		_, err := os.Stat(filepath.Join(s.cgroups.unified, "cpu.pressure"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		told = err == nil
	}
	start := func(id, script string) sandbox.CPUMeter {
		c := sleeper(id, t.TempDir())
		c.Argv = []string{"/bin/sh", "-c", script}
		p, err := s.Start(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Kill(); <-p.Done() })
		return p.(sandbox.CPUMeter)
	}
	busy := start("busy", strings.Repeat("while :; do :; done & ", 2*runtime.NumCPU())+"wait")
	idle := start("idle", "exec sleep 100")
	const enough = 200 * time.Millisecond
	// used is what of the wait, or where that is not told of the CPU time, is behind the busy one.
	used := func() time.Duration {
		wait, ok := busy.CPUWait()
		if ok != told {
			t.Fatalf("told: %v, where there is such a file: %v", ok, told)
		}
		if !told {
			return busy.CPUTime()
		}
		return wait
	}
	more := func() {
		for from, end := used(), time.Now().Add(20*time.Second); used() < from+enough; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited %v after %v of CPU time", used(), busy.CPUTime())
			}
		}
	}
	more() // what the idle one waits for when it starts is past
	before, _ := idle.CPUWait()
	more()
	if wait, ok := idle.CPUWait(); ok != told || wait-before > enough/4 {
		t.Errorf("one that sleeps waited %v, %v", wait-before, ok)
	}
}
