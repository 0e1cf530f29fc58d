//go:build linux

package linux

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// group is one instance's directory in every hierarchy.
type group struct {
	c  *cgroups
	id string

	mu      sync.Mutex
	peak    int64 // as last read; what it was at the end once removed
	oom     bool
	removed bool
}

// born makes the unified directory and opens it, for a process to be cloned into; -1 where there is
// none. On a pure v2 machine it has all limits.
func (g *group) born(l limits) (int, error) {
	c := g.c
	if c.unified == "" {
		return -1, nil
	}
	dir := filepath.Join(c.unified, g.id)
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return -1, &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	if err := g.limit(limits{}, l, true); err != nil {
		return -1, err
	}
	fd, err := openRetry(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

// joined makes the v1 directories with their limits and opens their tasks files, for a process to
// write "0" to: the one way into a v1 group that does not wait for an RCU grace period.
func (g *group) joined(l limits) (tasks []int, err error) {
	defer func() {
		if err != nil {
			closeAll(tasks)
			tasks = nil
		}
	}()
	for _, name := range [...]string{"memory", "cpu", "pids", "freezer"} {
		parent := g.c.v1[name]
		if parent == "" {
			continue
		}
		dir := filepath.Join(parent, g.id)
		// Controllers that are mounted together share a directory.
		made := unix.Mkdir(dir, 0o755)
		if made != nil && made != unix.EEXIST {
			return tasks, &os.PathError{Op: "mkdir", Path: dir, Err: made}
		}
		if made == unix.EEXIST {
			continue
		}
		fd, err := openRetry(filepath.Join(dir, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC)
		if err != nil {
			return tasks, &os.PathError{Op: "open", Path: dir + "/tasks", Err: err}
		}
		tasks = append(tasks, fd)
	}
	return tasks, g.limit(limits{}, l, false)
}

// relimit puts the limits l in the place of was.
func (g *group) relimit(was, l limits) error {
	if g.c.unified != "" {
		if err := g.limit(was, l, true); err != nil {
			return err
		}
	}
	return g.limit(was, l, false)
}

// limit writes those limits that differ, to the unified hierarchy or to the others.
func (g *group) limit(was, l limits, unified bool) error {
	here := func(controller string) bool {
		if unified {
			return g.c.in2[controller]
		}
		return g.c.v1[controller] != ""
	}
	var errs []error
	if l.memory != was.memory && here("memory") {
		errs = append(errs, g.limitMemory(l.memory, l.memory > was.memory && was.memory > 0))
	}
	if l.milli != was.milli && here("cpu") {
		file, value := "cpu.shares", shares(l.milli)
		if unified {
			file, value = "cpu.weight", weight(l.milli)
		}
		errs = append(errs, write(g.path("cpu"), file, strconv.Itoa(value)))
	}
	if l.hard && (!was.hard || l.milli != was.milli) && here("cpu") {
		if unified {
			errs = append(errs, write(g.path("cpu"), "cpu.max", strconv.Itoa(quota(l.milli))+" "+strconv.Itoa(period)))
		} else {
			errs = append(errs, write(g.path("cpu"), "cpu.cfs_period_us", strconv.Itoa(period)),
				write(g.path("cpu"), "cpu.cfs_quota_us", strconv.Itoa(quota(l.milli))))
		}
	}
	if l.processes != was.processes && here("pids") {
		errs = append(errs, write(g.path("pids"), "pids.max", strconv.Itoa(l.processes)))
	}
	return errors.Join(errs...)
}

// limitMemory bounds memory, swap counted. Of v1's two files the wider bound moves first.
func (g *group) limitMemory(memory int64, raise bool) error {
	dir, value := g.path("memory"), strconv.FormatInt(memory, 10)
	if g.c.in2["memory"] {
		err := write(dir, "memory.max", value)
		if swap := write(dir, "memory.swap.max", "0"); !errors.Is(swap, unix.ENOENT) {
			err = errors.Join(err, swap)
		}
		return err
	}
	files := []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
	if !g.c.swap {
		files = files[:1]
	} else if raise {
		slices.Reverse(files)
	}
	for _, file := range files {
		if err := write(dir, file, value); err != nil {
			return err
		}
	}
	// v1 counts the buffers of TCP sockets apart from the rest, and only where they have a limit of their own: without,
	// one instance could take all that the machine has for them.
	if err := write(dir, "memory.kmem.tcp.limit_in_bytes", strconv.FormatInt(tcpMemory(memory), 10)); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// tcpMemory bounds the buffers of an instance's TCP sockets, in bytes, on a v1 machine.
func tcpMemory(memory int64) int64 { return memory / 8 }

// weight, shares and quota put a share of CPU into the kernel's units.
func weight(milli int) int { return min(10000, max(1, milli)) }
func shares(milli int) int { return min(1<<18, max(2, milli*1024/1000)) }
func quota(milli int) int  { return max(1000, milli*period/1000) }

func (g *group) path(controller string) string {
	if g.c.in2[controller] {
		return filepath.Join(g.c.unified, g.id)
	}
	return filepath.Join(g.c.v1[controller], g.id)
}

// usage is the memory charged now, in bytes.
func (g *group) usage() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removed || !g.c.has("memory") {
		return 0
	}
	if g.c.in2["memory"] {
		n := number(g.path("memory"), "memory.current")
		g.peak = max(g.peak, n)
		return n
	}
	return number(g.path("memory"), "memory.usage_in_bytes")
}

// most is the highest charge so far, in bytes. On a v2 kernel before 5.19 it is the highest that usage
// has seen.
func (g *group) most() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.readPeak()
	return g.peak
}

func (g *group) readPeak() {
	if g.removed || !g.c.has("memory") {
		return
	}
	file := "memory.max_usage_in_bytes"
	if g.c.in2["memory"] {
		file = "memory.peak"
	}
	g.peak = max(g.peak, number(g.path("memory"), file))
}

// cpuTime is the CPU time used so far. Every group of a unified hierarchy has it, whether or not that has
// the cpu controller; on a machine without one it is there where cpuacct is mounted with cpu, as it is
// nearly everywhere.
func (g *group) cpuTime() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removed {
		return 0
	}
	if g.c.unified == "" {
		return time.Duration(number(g.path("cpu"), "cpuacct.usage"))
	}
	b, err := readSmall(filepath.Join(g.c.unified, g.id, "cpu.stat"))
	if err != nil {
		return 0
	}
	rest, _ := bytes.CutPrefix(b, []byte("usage_usec "))
	usec, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseInt(string(usec), 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}

// cpuWait is for how long one of its processes at least waited for a CPU: "some" of the kernel's pressure stall
// information, which a kernel may be without.
func (g *group) cpuWait() (time.Duration, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removed {
		return 0, false
	}
	b, err := readSmall(filepath.Join(g.c.unified, g.id, "cpu.pressure"))
	if err != nil {
		return 0, false
	}
	some, _, _ := bytes.Cut(b, []byte("\n"))
	_, total, _ := bytes.Cut(some, []byte(" total="))
	n, err := strconv.ParseInt(string(total), 10, 64)
	return time.Duration(n) * time.Microsecond, err == nil && bytes.HasPrefix(some, []byte("some "))
}

// outOfMemory tells whether the kernel has ended a process of the group at its limit.
func (g *group) outOfMemory() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.readOOM()
	return g.oom
}

func (g *group) readOOM() {
	if g.removed || !g.c.has("memory") {
		return
	}
	file := "memory.oom_control"
	if g.c.in2["memory"] {
		file = "memory.events"
	}
	b, err := readSmall(filepath.Join(g.path("memory"), file))
	if err != nil {
		return
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok && !bytes.Equal(bytes.TrimSpace(rest), []byte("0")) {
			g.oom = true
		}
	}
}

// has tells whether there is this controller, in either version.
func (c *cgroups) has(controller string) bool { return c.v1[controller] != "" || c.in2[controller] }

// canFreeze tells whether freeze works.
func (c *cgroups) canFreeze() bool { return c.unified != "" || c.v1["freezer"] != "" }

var errGone = errors.New("the instance has ended")
var errNoFreezer = errors.New("this machine has no cgroup freezer")

// freeze stops or lets go every process of the group.
func (g *group) freeze(on bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.removed:
		return errGone
	case g.c.unified != "" && on:
		return write(filepath.Join(g.c.unified, g.id), "cgroup.freeze", "1")
	case g.c.unified != "":
		return write(filepath.Join(g.c.unified, g.id), "cgroup.freeze", "0")
	case g.c.v1["freezer"] == "":
		return errNoFreezer
	case on:
		return write(filepath.Join(g.c.v1["freezer"], g.id), "freezer.state", "FROZEN")
	default:
		return write(filepath.Join(g.c.v1["freezer"], g.id), "freezer.state", "THAWED")
	}
}

// thawToDie lets a killed task of a frozen v1 group die. One of a frozen v2 group does so by itself.
func (g *group) thawToDie() {
	if g.c.v1["freezer"] != "" {
		g.freeze(false)
	}
}

// remove reads the last figures and removes the directories, which must be empty of processes.
func (g *group) remove() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removed {
		return nil
	}
	g.readPeak()
	g.readOOM()
	g.removed = true
	var errs []error
	for _, parent := range g.c.parents() {
		errs = append(errs, rmdir(filepath.Join(parent, g.id)))
	}
	return errors.Join(errs...)
}

func number(dir, file string) int64 {
	b, err := readSmall(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// readSmall reads a kernel file of less than a page with three system calls.
func readSmall(path string) ([]byte, error) {
	fd, err := openRetry(path, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 1024)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}
