//go:build linux

package linux

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
)

func TestDetectCgroups(t *testing.T) {
	unified := t.TempDir()
	controllers := func(s string) {
		if err := os.WriteFile(filepath.Join(unified, "cgroup.controllers"), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	v1 := func(name string) string {
		return fmt.Sprintf("32 31 0:29 / /sys/fs/cgroup/%s rw - cgroup cgroup rw,%s\n", name, name)
	}
	self := filepath.Join(t.TempDir(), "cgroup")
	if err := os.WriteFile(self, []byte("1:name=systemd:/\n0::/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v2 := fmt.Sprintf("41 31 0:38 / %s rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", unified)
	closed := "41 31 0:38 / /no/such/cgroup ro shared:4 - cgroup2 cgroup2 rw\n"
	for _, c := range []struct {
		name, mounts, controllers string
		memory, freezer           string // "v1", "v2" or ""
		missing                   int
	}{
		{"v1", v1("memory") + v1("pids") + v1("cpu,cpuacct") + v1("freezer"), "", "v1", "v1", 0},
		{"hybrid", v1("memory") + v1("pids") + v1("cpu") + v1("freezer") + v2, "hugetlb", "v1", "v2", 0},
		{"v2", v2, "cpuset cpu io memory pids", "v2", "v2", 0},
		{"nothing", "1 1 0:1 / / rw - ext4 /dev/vda rw\n", "", "", "", 4},
		{"v2 without controllers", v2, "", "", "v2", 3},
		{"v2 that cannot be written", closed, "", "", "", 5},
		{"hybrid with a v2 that cannot be written", v1("memory") + v1("pids") + v1("cpu") + v1("freezer") + closed, "", "v1", "v1", 0},
		{"v2 without cpu", v2, "memory pids", "v2", "v2", 1},
		{"no memory controller", v1("cpu") + v1("pids") + v2, "hugetlb", "", "v2", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			controllers(c.controllers)
			info := filepath.Join(t.TempDir(), "mountinfo")
			if err := os.WriteFile(info, []byte(c.mounts), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := detectCgroups(info, self, "doze-x")
			if err != nil {
				t.Fatal(err)
			}
			got.swap = true // known once it is opened
			if missing := got.missing(); len(missing) != c.missing {
				t.Errorf("%d things are missing, want %d: %q", len(missing), c.missing, missing)
			}
			if (got.v1["memory"] != "") != (c.memory == "v1") || got.in2["memory"] != (c.memory == "v2") {
				t.Errorf("memory: %+v", got)
			}
			if (got.v1["freezer"] != "") != (c.freezer == "v1") || got.canFreeze() != (c.freezer != "") {
				t.Errorf("freezer: %+v", got)
			}
		})
	}
}

func TestOwnGroup(t *testing.T) {
	for _, c := range []struct{ name, root, self, want string }{
		{"root", "/", "0::/\n", "/sys/fs/cgroup"},
		{"hybrid", "/", "4:memory:/a\n1:name=systemd:/b\n0::/c\n", "/sys/fs/cgroup/c"},
		{"service", "/", "0::/system.slice/doze.service\n", "/sys/fs/cgroup/system.slice/doze.service"},
		{"after it moved", "/", "0::/system.slice/doze.service/doze-platform\n", "/sys/fs/cgroup/system.slice/doze.service"},
		{"part of the hierarchy is mounted", "/system.slice", "0::/system.slice/doze.service\n", "/sys/fs/cgroup/doze.service"},
		{"another part", "/user.slice", "0::/system.slice/doze.service\n", ""},
		{"container that moved", "/", "0::/doze-platform\n", "/sys/fs/cgroup"},
		{"mounted outside of the namespace", "/../..", "0::/\n", ""},
		{"moved out of the namespace", "/", "0::/../other\n", ""},
		{"v1 only", "/", "4:memory:/a\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := ownGroup(mountLine{root: c.root, point: "/sys/fs/cgroup"}, c.self)
			if got != c.want || ok != (c.want != "") {
				t.Errorf("%q %t, want %q", got, ok, c.want)
			}
		})
	}
}

// TestUnifiedDir: a group that systemd has delegated is used, one that it has not is not, though root may write there.
func TestUnifiedDir(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	own := filepath.Join(top, "doze.service")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(t.TempDir(), "cgroup")
	if err := os.WriteFile(self, []byte("0::/doze.service\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ mark, want string }{{"", top}, {"0", top}, {"1", own}} {
		if c.mark != "" {
			if err := unix.Setxattr(own, "trusted.delegate", []byte(c.mark), 0); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := unifiedDir(mountLine{root: "/", point: top}, self); err != nil || got != c.want {
			t.Errorf("mark %q: %s %v, want %s", c.mark, got, err, c.want)
		}
	}
}

// TestLimitsReachKernel reads back what the kernel has been told, in either version, for a start and for a claim.
func TestLimitsReachKernel(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	if missing := s.Missing(); len(missing) > 0 {
		t.Log(missing) // what is missing cannot be read back
	}
	config := sleeper("limits", t.TempDir())
	config.MemoryBytes, config.CPUMilli, config.MaxProcesses, config.HardCPU = 96<<20, 500, 40, true
	want := []struct{ controller, v1, in1, v2, in2 string }{
		{"memory", "memory.limit_in_bytes", "100663296", "memory.max", "100663296"},
		{"memory", "memory.memsw.limit_in_bytes", "100663296", "memory.swap.max", "0"},
		{"cpu", "cpu.shares", "512", "cpu.weight", "500"},
		{"cpu", "cpu.cfs_quota_us", "10000", "cpu.max", "10000 20000"},
		{"cpu", "cpu.cfs_period_us", "20000", "cpu.max", "10000 20000"},
		{"pids", "pids.max", "41", "pids.max", "41"}, // PID 1 is the platform's
	}
	check := func(t *testing.T, p *Process) {
		t.Helper()
		defer func() {
			p.Kill()
			<-p.Done()
		}()
		for _, w := range want {
			file, value := w.v1, w.in1
			if s.cgroups.in2[w.controller] {
				file, value = w.v2, w.in2
			}
			if !s.cgroups.has(w.controller) || strings.Contains(w.v2, "swap") && !s.cgroups.swap {
				continue
			}
			b, err := os.ReadFile(filepath.Join(p.group.path(w.controller), file))
			if got := strings.TrimSpace(string(b)); err != nil || got != value {
				t.Errorf("%s is %q, want %q (%v)", file, got, value, err)
			}
		}
		pids, dirs := members(t, s.cgroups)
		if len(pids) < 2 || dirs == 0 {
			t.Errorf("%d processes in %d groups", len(pids), dirs)
		}
	}
	t.Run("started", func(t *testing.T) {
		p, err := s.Start(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		check(t, p.(*Process))
	})
	t.Run("claimed", func(t *testing.T) {
		k, err := s.Park(t.Context(), sandbox.ParkConfig{ID: "waits", MemoryBytes: 512 << 20, TmpBytes: config.TmpBytes, CPUMilli: 100, MaxProcesses: 8})
		if err != nil {
			t.Fatal(err)
		}
		p, err := k.Start(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		check(t, p.(*Process))
	})
}

// TestSweepFrozen: what a dead worker left is ended and removed, frozen processes and groups in groups too, and
// nothing beside it.
func TestSweepFrozen(t *testing.T) {
	needRoot(t)
	c, err := detectCgroups("/proc/self/mountinfo", "/proc/self/cgroup", parentName(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	dirs := c.parents()
	if len(dirs) == 0 {
		t.Fatal("this machine has no cgroups")
	}
	ended := make(chan error, 2*len(dirs))
	for _, parent := range dirs {
		group := filepath.Join(parent, "left")
		deeper := filepath.Join(group, "deeper")
		for _, dir := range []string{group, deeper} {
			if err := mkdir(dir); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("/bin/sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- cmd.Wait() }()
		if err := write(deeper, "cgroup.procs", strconv.Itoa(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
		if write(deeper, "cgroup.freeze", "1") != nil {
			write(deeper, "freezer.state", "FROZEN") // in the hierarchies that have one
		}
	}
	if err := c.sweep(); err != nil {
		t.Error(err)
	}
	for range dirs {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a process ended by itself")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a process outlives the sweep")
		}
	}
	if err := c.remove(); err != nil {
		t.Error(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}
