//go:build linux

package linux

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux/egress"
	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// Process implements sandbox.Process and sandbox.Freezer.
type Process struct {
	s        *Sandbox
	id       string
	uid      int
	group    *group
	census   *census // counts what no cgroup does; nil where cgroups count all
	control  *channel
	listener net.Listener
	output   *output
	line     *egress.Line // nil without a network
	done     chan struct{}
	exit     sandbox.Exit // valid after done

	// What PID 1 said of the program's end, if it did.
	status   syscall.WaitStatus
	reported bool
	// answers gets what a parked PID 1 says to unpark; nil for one that was not parked.
	answers chan stage.Report
	// alias is the instance's id once it has been unparked; guarded by the sandbox's mutex.
	alias string

	mu    sync.Mutex
	pidfd int // of PID 1; -1 before it is known and after its end
	end   *os.File
}

var (
	_ sandbox.Process = (*Process)(nil)
	_ sandbox.Freezer = (*Process)(nil)

	_ sandbox.CPUMeter = (*Process)(nil)
)

// Listener implements sandbox.Process.
func (p *Process) Listener() net.Listener { return p.listener }

// Output implements sandbox.Process.
func (p *Process) Output() sandbox.Output { return p.output }

// Done implements sandbox.Process.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit implements sandbox.Process.
func (p *Process) Exit() sandbox.Exit { return p.exit }

// MemoryBytes implements sandbox.Process. Page cache and /tmp count, as they do for the limit.
func (p *Process) MemoryBytes() int64 {
	if !p.s.cgroups.has("memory") {
		return p.census.usage()
	}
	return p.group.usage()
}

// MemoryPeakBytes implements sandbox.Process.
func (p *Process) MemoryPeakBytes() int64 {
	if !p.s.cgroups.has("memory") {
		return p.census.highest()
	}
	return p.group.most()
}

// CPUTime implements sandbox.CPUMeter.
func (p *Process) CPUTime() time.Duration {
	if p.s.cgroups.unified == "" && !p.s.cgroups.has("cpu") && p.census != nil {
		return p.census.cpuTime()
	}
	return p.group.cpuTime()
}

// CPUWait implements sandbox.CPUMeter.
func (p *Process) CPUWait() (time.Duration, bool) {
	if p.s.cgroups.unified == "" {
		return 0, false
	}
	return p.group.cpuWait()
}

// Freeze implements sandbox.Freezer.
func (p *Process) Freeze() error { return p.freeze(true) }

// Thaw implements sandbox.Freezer.
func (p *Process) Thaw() error { return p.freeze(false) }

func (p *Process) freeze(on bool) error {
	if !p.s.cgroups.canFreeze() && p.census != nil {
		return p.census.stop(on)
	}
	return p.group.freeze(on)
}

// Kill implements sandbox.Process: the end of PID 1 is the end of its namespace.
func (p *Process) Kill() {
	p.listener.Close()
	p.signal()
}

func (p *Process) signal() {
	p.mu.Lock()
	if p.pidfd >= 0 {
		unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0) // ESRCH: it is gone
	}
	p.mu.Unlock()
	p.group.thawToDie()
}

// watch takes the pidfd of PID 1.
func (p *Process) watch(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("pidfd", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pidfd = fd
	p.end = os.NewFile(uintptr(fd), "pidfd") // in the poller: waiting takes no thread
	return nil
}

// gone waits until PID 1, and so every process of the instance, has ended.
func (p *Process) gone() {
	p.mu.Lock()
	end := p.end
	p.mu.Unlock()
	if end == nil {
		return
	}
	awaitEnd(end)
	p.mu.Lock()
	p.pidfd = -1
	p.mu.Unlock()
	end.Close()
}

// live waits for the end of the instance and removes what it was made of. It is the one goroutine that an
// instance has here.
func (p *Process) live() {
	p.ended()
	p.gone()
	p.listener.Close()
	p.control.close()
	if err := p.group.remove(); err != nil {
		p.s.log.Error("a cgroup is left behind", "instance", p.id, "error", err)
	}
	p.line.Release()
	p.exit = exitOf(p.status, p.reported)
	p.exit.OutOfMemory = p.group.outOfMemory()
	if p.census != nil {
		p.exit.OutOfMemory = p.census.close() || p.exit.OutOfMemory
	}
	p.s.release(p.uid)
	p.s.mu.Lock()
	delete(p.s.processes, p)
	delete(p.s.ids, p.id)
	delete(p.s.ids, p.alias)
	p.s.mu.Unlock()
	close(p.done)
}

// ended waits for PID 1's word on how the program ended. Without one, PID 1 was killed.
func (p *Process) ended() {
	for {
		report, fds, err := p.control.receive()
		closeAll(fds)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				p.s.log.Error("control socket", "instance", p.id, "error", err)
				p.signal()
			}
			return
		}
		if p.answers != nil && (report.Kind == stage.Started || report.Kind == stage.Failed) {
			select {
			case p.answers <- report:
				continue
			default:
			}
		}
		switch report.Kind {
		case stage.Exited:
			p.status, p.reported = syscall.WaitStatus(report.A), true
		case stage.Failed:
			p.s.log.Error("the first process of an instance failed", "instance", p.id, "list", report.List, "step", report.A, "errno", report.Errno)
		}
	}
}

func exitOf(status syscall.WaitStatus, reported bool) sandbox.Exit {
	switch {
	case !reported:
		return sandbox.Exit{Code: -1, Signal: syscall.SIGKILL.String()}
	case status.Signaled():
		return sandbox.Exit{Code: -1, Signal: status.Signal().String()}
	default:
		return sandbox.Exit{Code: status.ExitStatus()}
	}
}

// abandon undoes a start that did not come to its end.
func (p *Process) abandon() {
	gone := true
	if p.control != nil {
		// PID 1 ends when it sees the closed socket, whatever it is doing: but it may be known already.
		p.signal()
		gone = p.settle()
		p.control.close()
	}
	if p.listener != nil {
		p.listener.Close()
	}
	if p.output != nil {
		p.output.close()
	}
	if p.census != nil {
		p.census.close()
	}
	if err := p.group.remove(); err != nil {
		p.s.log.Error("a cgroup is left behind", "instance", p.id, "error", err)
	}
	if !gone { // something of it may live: nobody else gets its uid, nor its address
		p.s.log.Error("a uid is left behind", "instance", p.id, "uid", p.uid)
		return
	}
	p.line.Release()
	p.s.release(p.uid)
}

// settle waits for the end of PID 1 of a start that is given up, and tells whether it came. If the launcher has not
// yet said which it is, that comes first: every request to the launcher is answered.
func (p *Process) settle() (gone bool) {
	p.mu.Lock()
	known := p.pidfd >= 0
	p.mu.Unlock()
	if !known {
		p.control.patient()
		for {
			report, fds, err := p.control.receive()
			if err != nil {
				closeAll(fds)
				return !errors.Is(err, os.ErrDeadlineExceeded) // nothing was started, or it is gone
			}
			if report.Kind == stage.Spawned && len(fds) == 1 && p.watch(fds[0]) == nil {
				p.signal()
				break
			}
			closeAll(fds)
		}
	}
	p.gone()
	return true
}
