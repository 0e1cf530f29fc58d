//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
)

// Examine looks at what this machine and this user give the sandbox, with the code that would use it. It changes
// nothing: what it makes for a trial is gone when it returns.
func Examine(ctx context.Context) []sandbox.Finding {
	list := []sandbox.Finding{examineKernel(), examineNamespaces(), examineSeccomp()}
	list = append(list, examineUser()...)
	list = append(list, examineCgroups()...)
	return append(list, examineTrial(ctx))
}

func examineKernel() sandbox.Finding {
	f := sandbox.Finding{Name: "kernel", State: sandbox.OK, Found: "Linux", Needed: true}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Found += " " + unix.ByteSliceToString(u.Release[:])
	}
	// Without a file they only say whether they exist.
	_, tree := unix.OpenTree(-1, "", unix.AT_EMPTY_PATH)
	attr := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	if tree == unix.ENOSYS || attr == unix.ENOSYS {
		f.State, f.Found = sandbox.Missing, f.Found+", without open_tree and mount_setattr"
		f.Means, f.Fix = "the sandbox cannot build an instance's root", "a kernel of version 5.12 or later (or, in a container, a seccomp profile that knows these calls)"
		return f
	}
	f.Found += ", with open_tree and mount_setattr"
	return f
}

func examineNamespaces() sandbox.Finding {
	var there, gone []string
	for _, name := range []string{"mnt", "pid", "net", "uts", "ipc", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + name); err != nil {
			gone = append(gone, name)
		} else {
			there = append(there, name)
		}
	}
	f := sandbox.Finding{Name: "namespaces", State: sandbox.OK, Found: strings.Join(there, " "), Needed: true}
	if len(gone) > 0 {
		f.State, f.Found = sandbox.Missing, "not there: "+strings.Join(gone, " ")
		f.Means, f.Fix = "instances cannot be kept apart", "a kernel with these namespaces (CONFIG_NAMESPACES and those below it)"
	}
	return f
}

func examineSeccomp() sandbox.Finding {
	f := sandbox.Finding{Name: "seccomp", State: sandbox.OK, Needed: true}
	b, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	actions := strings.Fields(string(b))
	if _, assembled := filter(); assembled != nil {
		err = assembled
	}
	if err != nil || !slices.Contains(actions, "errno") || !slices.Contains(actions, "kill_process") {
		f.State, f.Found = sandbox.Missing, fmt.Sprintf("no filters (%v)", err)
		f.Means, f.Fix = "no filter of system calls can be put before a function", "a kernel with CONFIG_SECCOMP_FILTER, version 4.14 or later"
		return f
	}
	f.Found = "filters, with " + strings.Join(actions, " ")
	return f
}

// examineUser looks at who this is and, for an ordinary user, enters a user namespace.
func examineUser() []sandbox.Finding {
	setting, fix := closedSwitch()
	if unix.Geteuid() == 0 {
		spaces := sandbox.Finding{Name: "user namespaces", State: sandbox.OK, Found: "not needed by root"}
		if setting != "" {
			spaces.Found += "; closed to ordinary users (" + setting + "), who open them with: " + fix
		}
		return []sandbox.Finding{
			{Name: "user", State: sandbox.OK, Found: "root: each instance gets a uid of its own, " + fmt.Sprint(defaultUIDCount) + " of them"}, spaces,
		}
	}
	ids := findIdentities()
	spaces := sandbox.Finding{Name: "user namespaces", State: sandbox.OK, Found: "can be entered by this user", Needed: true}
	base, err := execLauncher()
	if err == nil {
		var l *launcher
		if l, err = ids.enter(base); err == nil {
			l.close() // and base behind it
		} else {
			base.close()
		}
	}
	if err != nil {
		spaces.State, spaces.Found = sandbox.Missing, err.Error()
		spaces.Means = "an ordinary user cannot build the walls around a function"
		if spaces.Fix = fix; fix != "" {
			spaces.Fix = "as root: " + fix + "; "
		}
		spaces.Fix += "or run doze as root, or, for functions that you trust as yourself, with --sandbox process"
	}
	user := sandbox.Finding{Name: "user", State: sandbox.OK, Found: fmt.Sprintf("uid %d, with %d subordinate ids: each instance gets a uid of its own", ids.uid, ids.count)}
	if !ids.distinct() {
		user.State, user.Found = sandbox.Degraded, fmt.Sprintf("uid %d, without subordinate ids", ids.uid)
		user.Means = "all instances run as this user behind their walls, not each as one of its own"
		user.Fix = ids.why
	}
	return []sandbox.Finding{user, spaces}
}

func examineCgroups() []sandbox.Finding {
	var c *cgroups
	var reason string
	var err error
	root := unix.Geteuid() == 0
	if root {
		var unified mountLine // what is mounted is looked at; what could be mounted or made writable is left as it is
		if c, unified, err = scanCgroups("/proc/self/mountinfo", "doze-none"); err == nil && unified.point != "" {
			err = c.use(unified, "/proc/self/cgroup", "doze-none")
		}
	} else {
		c, reason, err = delegatedCgroups("/proc/self/mountinfo", "/proc/self/cgroup", "doze-none")
	}
	if err != nil {
		return []sandbox.Finding{{Name: "cgroups", State: sandbox.Missing, Found: err.Error(), Needed: root,
			Means: "no limit of memory or processes can be had", Fix: "mount a cgroup v2 hierarchy (boot with systemd.unified_cgroup_hierarchy=1), with the memory and pids controllers"}}
	}
	version := "none that this user may use"
	switch {
	case c.unified != "" && len(c.v1) > 0:
		version = "hybrid: v2, and v1 for " + strings.Join(keys(c.v1), " ")
	case c.unified != "":
		version = "v2"
	case len(c.v1) > 0:
		version = "v1"
	}
	first := sandbox.Finding{Name: "cgroups", State: sandbox.OK, Found: version}
	fix := "boot with the controller on (cgroup_enable=memory on some machines)"
	if !root {
		fix = "systemd-run --user --scope -p Delegate=yes doze dev; for cpu, as root, Delegate=cpu memory pids in user@.service"
		if c.unified == "" {
			first.State, first.Means, first.Fix = sandbox.Degraded, reason, fix
		}
	}
	list := []sandbox.Finding{first}
	for _, k := range []struct{ name, means string }{
		{"memory", fmt.Sprintf("what instances use is looked at every %s and may be more than their limit in between", censusEvery)},
		{"cpu", "instances share the CPU without regard to their memory, and none is capped"},
		{"pids", "the processes of an instance are bounded by its uid or, without one of its own, looked at"},
	} {
		f := sandbox.Finding{Name: k.name + " controller", State: sandbox.OK, Found: "v1"}
		switch {
		case c.in2[k.name]:
			f.Found = "v2"
		case c.v1[k.name] == "":
			f.State, f.Found, f.Means, f.Fix = sandbox.Degraded, "none", k.means, fix
		}
		list = append(list, f)
	}
	freezer := sandbox.Finding{Name: "freezing", State: sandbox.OK, Found: "by the kernel"}
	if !c.canFreeze() {
		freezer.State, freezer.Found = sandbox.Degraded, "by signals"
		freezer.Means, freezer.Fix = "the processes of an idle instance are stopped one by one", fix
	}
	swap := sandbox.Finding{Name: "swap accounting", State: sandbox.OK, Found: "swap counts toward an instance's memory"}
	switch v1 := c.v1["memory"]; {
	case v1 != "":
		if _, err := os.Stat(v1[:strings.LastIndexByte(v1, '/')] + "/memory.memsw.limit_in_bytes"); err != nil && !swapless() {
			swap.State, swap.Found = sandbox.Degraded, "none"
			swap.Means, swap.Fix = "an instance can use swap beyond its memory limit", "boot with swapaccount=1"
		}
	case !c.in2["memory"] && !swapless():
		swap.State, swap.Found, swap.Means, swap.Fix = sandbox.Degraded, "none", "an instance can use swap beyond its memory limit", fix
	}
	if swapless() {
		swap.Found = "this machine has no swap"
	}
	return append(list, freezer, swap)
}

// swapless tells whether the machine has no swap: a heading only.
func swapless() bool {
	b, err := os.ReadFile("/proc/swaps")
	return err == nil && strings.Count(strings.TrimSpace(string(b)), "\n") == 0
}

func keys(m map[string]string) []string {
	var list []string
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// examineTrial starts a program behind all walls but the cgroups, which are left as they are.
func examineTrial(ctx context.Context) sandbox.Finding {
	f := sandbox.Finding{Name: "trial", State: sandbox.OK, Needed: true}
	took, err := trial(ctx)
	if err != nil {
		f.State, f.Found = sandbox.Missing, err.Error()
		f.Means, f.Fix = "no function can run in the linux sandbox here", "what is missing above; or, for functions that you trust as yourself, --sandbox process"
		return f
	}
	f.Found = fmt.Sprintf("a program ran behind all walls, started in %s", took.Round(10*time.Microsecond))
	return f
}

func trial(ctx context.Context) (took time.Duration, err error) {
	dir, err := os.MkdirTemp("", "doze-doctor-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	code := filepath.Join(dir, "code")
	if err := errors.Join(os.Mkdir(code, 0o755), os.Chmod(code, 0o755)); err != nil { // for any uid, whatever the umask
		return 0, err
	}
	s, err := New(Options{DataDir: dir, withoutCgroups: true})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	began := time.Now()
	p, err := s.Start(ctx, sandbox.Config{ID: "trial", CodeDir: code, Argv: []string{"/bin/sh", "-c", "echo ran"},
		MemoryBytes: 64 << 20, TmpBytes: 1 << 20, CPUMilli: 100, MaxProcesses: 16})
	if err != nil {
		return 0, err
	}
	took = time.Since(began)
	out, err := io.ReadAll(io.LimitReader(p.Output(), 4096))
	p.Kill()
	<-p.Done()
	if err == nil && string(out) != "ran\n" {
		err = fmt.Errorf("a program in the sandbox ended with %+v and said %q", p.Exit(), out)
	}
	return took, err
}
