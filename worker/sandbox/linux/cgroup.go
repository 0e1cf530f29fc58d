//go:build linux

package linux

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups is what this machine offers, found once: a hierarchy for each controller (v1), or the
// unified one (v2), or both (hybrid). Every instance has a directory of the same name in each of them,
// below one parent directory per sandbox.
type cgroups struct {
	// v1 maps "memory", "cpu", "pids" and "freezer" to the parent directory in that controller's own
	// hierarchy.
	v1 map[string]string
	// unified is the parent directory in the v2 hierarchy, "" where none is mounted.
	unified string
	// in2 says which controllers the unified hierarchy has.
	in2 map[string]bool
	// own is this process's mount of the unified hierarchy where the machine has none.
	own *os.File
	// unusable says why a v2 hierarchy that is mounted is not used.
	unusable error
	// readOnly are the mount points of v1 that cannot be written to (see makeWritable).
	readOnly []string
	// contained says that the v1 mounts show a part of their hierarchies, as they do in a container.
	contained bool
	// swap says that swap is counted.
	swap bool
	// cpus is the number of CPUs, for the parent's weight.
	cpus int
}

// limits of one group.
type limits struct {
	memory    int64 // bytes, swap counted
	milli     int   // thousandths of a CPU
	hard      bool
	processes int
}

// period of the CPU bandwidth limit, in microseconds. Short, so that an instance with a small share is
// halted often and briefly and not for most of a tenth of a second.
const period = 20_000

// detectCgroups reads the mount table, and of the unified hierarchy the place of this process (self is
// /proc/self/cgroup). What is mounted read-only becomes writable.
func detectCgroups(mountinfo, self, parent string) (*cgroups, error) {
	c, unified, err := scanCgroups(mountinfo, parent)
	if err != nil {
		return nil, err
	}
	if err := c.makeWritable(); err != nil {
		return nil, err
	}
	if unified.point == "" {
		return c, nil
	}
	if unified.readOnly {
		_ = clearReadOnly(unified.point) // else it is found out below that it cannot be written
	}
	return c, c.use(unified, self, parent)
}

// scanCgroups reads the mount table: the v1 hierarchies with their controllers, and where the unified one is.
func scanCgroups(mountinfo, parent string) (c *cgroups, unified mountLine, err error) {
	c = &cgroups{v1: map[string]string{}, in2: map[string]bool{}}
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil, unified, fmt.Errorf("cgroups: %w", err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		m, ok := parseMount(s.Text())
		switch {
		case !ok:
		case m.fstype == "cgroup2" && unified.point == "":
			unified = m
		case m.fstype == "cgroup":
			for _, o := range strings.Split(m.options, ",") {
				if slices.Contains([]string{"memory", "cpu", "pids", "freezer"}, o) && c.v1[o] == "" {
					c.v1[o] = filepath.Join(m.point, parent)
					c.contained = c.contained || m.root != "/"
					if m.readOnly && !slices.Contains(c.readOnly, m.point) {
						c.readOnly = append(c.readOnly, m.point)
					}
				}
			}
		}
	}
	return c, unified, nil
}

// use takes the unified hierarchy for what v1 does not have, and for freezing.
func (c *cgroups) use(unified mountLine, self, parent string) error {
	dir, err := unifiedDir(unified, self)
	if err != nil {
		c.unusable = err
		return nil
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	for _, name := range strings.Fields(string(b)) {
		c.in2[name] = c.v1[name] == ""
	}
	c.unified = filepath.Join(dir, parent)
	delete(c.v1, "freezer") // the unified one is faster, and its frozen tasks can be killed
	return nil
}

// mountLine is a mount: root is the directory of the file system that is seen at point.
type mountLine struct {
	root, point, fstype, options string
	readOnly                     bool // here; whoever mounted it elsewhere may write
}

// parseMount takes the root, mount point, type and super options out of a line of mountinfo.
func parseMount(line string) (mountLine, bool) {
	left, right, ok := strings.Cut(line, " - ")
	a, b := strings.Fields(left), strings.Fields(right)
	if !ok || len(a) < 6 || len(b) < 3 {
		return mountLine{}, false
	}
	return mountLine{unescape(a[3]), unescape(a[4]), b[0], b[2], slices.Contains(strings.Split(a[5], ","), "ro")}, true
}

// unescape turns the mount table's octal escapes back into characters.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parents lists the parent directories, each once.
func (c *cgroups) parents() []string {
	var dirs []string
	for _, d := range c.v1 {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	slices.Sort(dirs)
	if c.unified != "" {
		dirs = append(dirs, c.unified)
	}
	return dirs
}

// open makes the parent directories.
func (c *cgroups) open() error {
	for _, name := range []string{"memory", "cpu", "pids", "freezer"} {
		dir := c.v1[name]
		if dir == "" {
			continue
		}
		if err := mkdir(dir); err != nil {
			return fmt.Errorf("cgroups: %w", err)
		}
	}
	if dir := c.v1["cpu"]; dir != "" {
		// Functions together weigh as much as two busy tasks for each CPU: the platform, and who else
		// is on the machine, must not starve them.
		if err := write(dir, "cpu.shares", strconv.Itoa(2048*max(1, c.cpus))); err != nil {
			return err
		}
	}
	if dir := c.v1["memory"]; dir != "" {
		_, err := os.Stat(filepath.Join(dir, "memory.memsw.limit_in_bytes"))
		c.swap = err == nil
		// The kernel turns its count of socket memory on with the first group that has a limit and off with the last, and
		// rewrites its own code for that: better once than with every lonely instance.
		if err := write(dir, "memory.kmem.tcp.limit_in_bytes", "-1"); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	if c.unified == "" {
		return nil
	}
	var enable []string
	for _, name := range []string{"memory", "cpu", "pids"} {
		if c.in2[name] {
			enable = append(enable, "+"+name)
		}
	}
	if len(enable) > 0 {
		if err := enableControllers(filepath.Dir(c.unified), enable); err != nil {
			return err
		}
	}
	if err := mkdir(c.unified); err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	if len(enable) > 0 {
		if err := write(c.unified, "cgroup.subtree_control", strings.Join(enable, " ")); err != nil {
			return err
		}
	}
	if c.in2["memory"] {
		c.swap = true // with no swap on the machine there may be no file, and nothing to count
	}
	if c.in2["cpu"] {
		if err := write(c.unified, "cpu.weight", strconv.Itoa(min(10000, 200*max(1, c.cpus)))); err != nil {
			return err
		}
	}
	return nil
}

// platformLeaf is the group that the platform's own processes move to in a group that they share with instances.
const platformLeaf = "doze-platform"

// enableControllers hands controllers on to the children of dir. Where dir is not the hierarchy's root and holds
// this very process (a container, a delegated service), it may not: processes are in leaves only. Then all that are in
// it move to a leaf, which stays as long as they do.
func enableControllers(dir string, enable []string) error {
	for try := 0; ; try++ {
		err := write(dir, "cgroup.subtree_control", strings.Join(enable, " "))
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		pids, listErr := processes(dir)
		if listErr != nil {
			return listErr
		}
		// A process that is forked meanwhile is in dir as well.
		if len(pids) == 0 || try == 10 {
			return fmt.Errorf("cgroups: %s holds processes that cannot be moved, so it can have no groups with limits below: %w", dir, err)
		}
		leaf := filepath.Join(dir, platformLeaf)
		if err := mkdir(leaf); err != nil {
			return fmt.Errorf("cgroups: %w", err)
		}
		for _, pid := range pids {
			if err := write(leaf, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
}

// missing says what instances go without.
func (c *cgroups) missing() (lines []string) {
	if c.unusable != nil && !c.has("memory") {
		lines = append(lines, c.unusable.Error())
	}
	if !c.has("memory") {
		lines = append(lines, "no memory cgroup controller (boot with cgroup_enable=memory, or have it delegated): an instance can use more than its memory limit")
	}
	if !c.has("pids") {
		lines = append(lines, "no pids cgroup controller (have it delegated): an instance can have as many processes as the machine has room for")
	}
	if !c.has("cpu") {
		lines = append(lines, "no cpu cgroup controller: instances share the CPU without regard to their memory")
	}
	if c.has("memory") && !c.swap {
		lines = append(lines, "no swap accounting (boot with swapaccount=1): an instance can use swap beyond its memory limit")
	}
	if c.unified == "" && c.v1["freezer"] == "" {
		lines = append(lines, "no cgroup v2 hierarchy and no freezer controller: idle instances are not frozen")
	}
	return lines
}

// remove takes the parent directories away. They must be empty.
func (c *cgroups) remove() error {
	var errs []error
	for _, dir := range c.parents() {
		errs = append(errs, rmdir(dir))
	}
	return errors.Join(errs...)
}

// sweep ends every process below the parent directories and removes the directories below them: what a
// worker that died left behind.
func (c *cgroups) sweep() error {
	var errs []error
	for _, parent := range c.parents() {
		var dirs []string
		err := filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what vanishes meanwhile need not be swept
		})
		errs = append(errs, err)
		slices.Reverse(dirs) // the innermost first
		for _, dir := range dirs {
			if err := empty(dir); err != nil {
				errs = append(errs, err)
				continue
			}
			errs = append(errs, rmdir(dir))
		}
	}
	return errors.Join(errs...)
}

// empty ends every process of one group, within a bound.
func empty(dir string) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		pids, err := processes(dir)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(pids) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if write(dir, "cgroup.kill", "1") != nil { // v1, or before Linux 5.14
			for _, pid := range pids {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		// A task in a frozen v1 group does not die before it is thawed.
		if _, err := os.Stat(filepath.Join(dir, "freezer.state")); err == nil {
			write(dir, "freezer.state", "THAWED")
		}
		if time.Now().After(end) {
			return fmt.Errorf("cgroups: processes %v in %s do not end", pids, dir)
		}
	}
}

// processes lists the members of a group.
func processes(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, unix.ENODEV) { // the group is going away
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("cgroups: %s: %w", dir, err)
		}
		if pid > 0 { // 0 is a process of an outer PID namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func mkdir(dir string) error {
	err := unix.Mkdir(dir, 0o755)
	if err != nil && err != unix.EEXIST {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return nil
}

// rmdir removes a group. A group whose last process has just been reaped may still be busy.
func rmdir(dir string) error {
	wait := 50 * time.Microsecond
	for end := time.Now().Add(2 * time.Second); ; {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EINTR && (err != unix.EBUSY || time.Now().After(end)) {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(wait)
		wait = min(2*wait, 10*time.Millisecond)
	}
}

// write sets one file of a group. Limit writes can be interrupted by the signals that the Go runtime
// preempts with.
func write(dir, file, value string) error {
	path := filepath.Join(dir, file)
	fd, err := openRetry(path, unix.O_WRONLY|unix.O_CLOEXEC)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for {
		_, err := unix.Write(fd, []byte(value))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "write " + value + " to", Path: path, Err: err}
		}
		return nil
	}
}

func openRetry(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
