package process

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// missing is what more is not given on this system.
var missing []string

// spawner starts processes from one thread that lives as long as the sandbox: the parent death signal comes
// when the thread ends that started the child, not when the process does.
type spawner struct {
	requests chan func()
	wg       sync.WaitGroup
}

func newSpawner() *spawner {
	s := &spawner{requests: make(chan func())}
	s.wg.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for f := range s.requests {
			f()
		}
	})
	return s
}

func (s *spawner) start(argv []string, attr *os.ProcAttr) (p *os.Process, err error) {
	done := make(chan struct{})
	s.requests <- func() {
		p, err = os.StartProcess(argv[0], argv, attr)
		close(done)
	}
	<-done
	return p, err
}

func (s *spawner) close() {
	close(s.requests)
	s.wg.Wait()
}

func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// limit sets the resource limits that need no right, and takes back the priority that the platform
// may have. Children inherit both.
func limit(pid int) {
	unix.Setpriority(unix.PRIO_PROCESS, pid, 0)
	unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: 1024}, nil)
}

// reap waits for the program's end and kills its group while the dead program still owns the number.
func (p *Process) reap() (*os.ProcessState, error) {
	for unix.Waitid(unix.P_PID, p.process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	p.signal(syscall.SIGKILL)
	p.forget()
	return p.process.Wait()
}

func resident(pid int) int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize())
}

func maxRSS(state *os.ProcessState) int64 {
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
		return usage.Maxrss << 10 // kilobytes
	}
	return 0
}

func buffered(f *os.File) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var got error
	if err := raw.Control(func(fd uintptr) { n, got = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
		return 0, nil // closed: everything has been read
	}
	return n, got
}
