//go:build linux

package linux

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// census is an instance as it can be counted, and held to its limits, without cgroups: by looking into its own /proc,
// in which nobody else's processes are, now and then. What it may grow to between two looks is not bounded.
type census struct {
	mu       sync.Mutex
	proc     *os.File // its /proc; nil before it has started and after its end
	tmp, shm int      // its other memory
	memory   int64    // limit in bytes
	most     int      // processes and threads, PID 1's included; 0 when that is bounded elsewhere
	stopped  bool
	peak     int64
	oom      bool
}

// censusEvery is how often running instances are looked at.
const censusEvery = 20 * time.Millisecond

// open takes the descriptors that PID 1 has sent.
func (c *census) open(proc, tmp, shm int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proc, c.tmp, c.shm = os.NewFile(uintptr(proc), "proc"), tmp, shm
}

// close gives them back, and tells whether a process was ended at the memory limit.
func (c *census) close() (oom bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		c.proc.Close()
		closeAll([]int{c.tmp, c.shm})
		c.proc = nil
	}
	return c.oom
}

func (c *census) relimit(l limits) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memory = l.memory
	if c.most > 0 {
		c.most = l.processes
	}
}

// member is one process of the instance other than PID 1.
type member struct {
	name     string // its number, inside
	resident int64  // bytes
}

// members lists the processes, and what is in memory of all together: what each has for itself, the most that one of
// them shares, and the files of /tmp and /dev/shm. c.mu is held.
func (c *census) members() (list []member, bytes int64) {
	if c.proc == nil {
		return nil, 0
	}
	if _, err := c.proc.Seek(0, 0); err != nil {
		return nil, 0
	}
	names, err := c.proc.Readdirnames(-1)
	if err != nil {
		return nil, 0
	}
	var shared int64
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' || name == "1" {
			continue
		}
		if fields := c.fields(name + "/statm"); len(fields) > 2 {
			page := int64(os.Getpagesize())
			resident, common := digits(fields[1])*page, digits(fields[2])*page
			list = append(list, member{name, resident})
			bytes += max(0, resident-common)
			shared = max(shared, common)
		}
	}
	return list, bytes + shared + c.files()
}

// files is what is in /tmp and /dev/shm, in bytes.
func (c *census) files() (n int64) {
	for _, fd := range []int{c.tmp, c.shm} {
		var s unix.Statfs_t
		if unix.Fstatfs(fd, &s) == nil {
			n += int64(s.Blocks-s.Bfree) * s.Bsize
		}
	}
	return n
}

// fields are the words of one of the files in /proc.
func (c *census) fields(name string) [][]byte {
	return bytes.Fields(c.read(name))
}

func (c *census) read(name string) []byte {
	fd, err := unix.Openat(int(c.proc.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	b := make([]byte, 4096)
	n, err := unix.Read(fd, b)
	if err != nil {
		return nil
	}
	return b[:n]
}

// line is the number in a "Name:   123 kB" line, in bytes, or without the unit as it is.
func line(b []byte, name string) int64 {
	for l := range bytes.Lines(b) {
		if f := bytes.Fields(l); len(f) > 1 && string(f[0]) == name {
			if len(f) > 2 {
				return digits(f[1]) << 10
			}
			return digits(f[1])
		}
	}
	return 0
}

func digits(b []byte) int64 {
	n, err := strconv.ParseInt(string(b), 10, 52)
	if err != nil {
		return 0
	}
	return n
}

// usage is the memory in use now, in bytes.
func (c *census) usage() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, n := c.members()
	c.peak = max(c.peak, n)
	return n
}

// highest is the most that has been seen in use, and at least the most that one of the present processes has used.
func (c *census) highest() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	list, n := c.members()
	c.peak = max(c.peak, n)
	for _, m := range list {
		c.peak = max(c.peak, line(c.read(m.name+"/status"), "VmHWM:"))
	}
	return c.peak
}

// cpuTime is the CPU time used so far, of ended processes too: who waited for them has theirs.
func (c *census) cpuTime() (sum time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list, _ := c.members()
	for _, m := range append(list, member{name: "1"}) {
		if c.proc == nil {
			return 0
		}
		_, after, _ := bytes.Cut(c.read(m.name+"/stat"), []byte(") "))
		const first, tick = 11, 10 * time.Millisecond // utime, stime, cutime and cstime, in the kernel's USER_HZ
		for i, f := range bytes.Fields(after) {
			if i >= first && i < first+4 {
				sum += time.Duration(digits(f)) * tick
			}
		}
	}
	return sum
}

// hold looks once. What is over the memory limit loses its largest process, as the kernel would do it. over names
// the first limit that this instance was found beyond, once; end tells that all of it must end.
func (c *census) hold() (over string, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == nil || c.stopped {
		return "", false
	}
	list, used := c.members()
	c.peak = max(c.peak, used)
	if used > c.memory && c.proportional(list) > c.memory {
		largest := member{}
		for _, m := range list {
			if m.resident > largest.resident {
				largest = m
			}
		}
		if c.signal(largest.name, unix.SIGKILL) == nil && !c.oom {
			c.oom = true
			over = "memory"
		}
		return over, false
	}
	if c.most == 0 {
		return "", false
	}
	tasks := int64(1) // PID 1
	for _, m := range list {
		tasks += line(c.read(m.name+"/status"), "Threads:")
	}
	if tasks <= int64(c.most) {
		return "", false
	}
	return "processes and threads", true
}

// proportional is the memory in use with shared pages counted once; it takes the kernel a while to tell.
func (c *census) proportional(list []member) (n int64) {
	for _, m := range list {
		b := c.read(m.name + "/smaps_rollup")
		if b == nil {
			n += m.resident
			continue
		}
		n += line(b, "Pss:")
	}
	return n + c.files()
}

// stop stops every process or lets all go on. Who forks faster than it looks is not stopped.
func (c *census) stop(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == nil {
		return errGone
	}
	c.stopped = on
	sig := unix.SIGCONT
	if on {
		sig = unix.SIGSTOP
	}
	for told := map[string]bool{}; ; {
		list, _ := c.members()
		fresh := 0
		for _, m := range list {
			if !told[m.name] {
				told[m.name] = true
				fresh++
				c.signal(m.name, sig)
			}
		}
		if fresh == 0 || !on || len(told) > 10_000 {
			return nil
		}
	}
}

// signal signals one process. A folder of /proc stands for its process as a pidfd does, in whatever namespace.
func (c *census) signal(name string, sig unix.Signal) error {
	fd, err := unix.Openat(int(c.proc.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// watch holds the instances to the limits that no cgroup holds, until quit is closed.
func (s *Sandbox) watch(quit <-chan struct{}) {
	ticker := time.NewTicker(censusEvery)
	defer ticker.Stop()
	var all []*Process
	for {
		select {
		case <-quit:
			return
		case <-ticker.C:
		}
		all = all[:0]
		s.mu.Lock()
		for p := range s.processes {
			all = append(all, p)
		}
		s.mu.Unlock()
		for _, p := range all {
			over, end := p.census.hold()
			if over != "" {
				s.log.Info("an instance was over a limit", "instance", p.id, "limit", over)
			}
			if end {
				p.signal()
			}
		}
	}
}
