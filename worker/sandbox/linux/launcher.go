//go:build linux

package linux

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// launcher is a small process that does what it is told: the one that instances are forked from, and those
// that lead to it.
type launcher struct {
	channel *channel
	pid     int
	// behind is the launcher that this one is a fork of, nil for none. It ends after it.
	behind *launcher
	end    *os.File // of one by fork: its pidfd, in the poller
	pidfd  int
	done   chan struct{}
	mu     sync.Mutex // one request on the socket at a time
}

// execLauncher executes this binary as a launcher.
func execLauncher() (*launcher, error) {
	ch, other, err := newChannel()
	if err != nil {
		return nil, err
	}
	far := os.NewFile(uintptr(other), "launcher")
	defer far.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{stage.Marker}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{far} // descriptor 3
	// The launcher allocates nothing and runs one thread's worth of code: its memory is what every
	// instance's PID 1 begins with.
	cmd.Env = []string{"GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		ch.close()
		return nil, fmt.Errorf("launcher: %w", err)
	}
	l := &launcher{channel: ch, pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		cmd.Wait() // ends when the socket is closed, or by accident: see alive
	}()
	return l, nil
}

// fork makes another launcher of this one, which then belongs to it. flags are those of clone.
func (l *launcher) fork(flags uint32) (*launcher, error) {
	ch, far, err := newChannel()
	if err != nil {
		return nil, err
	}
	p := newProgram(stage.Fork)
	p.fd(far)
	p.flags = flags
	err = l.spawn(p)
	unix.Close(far)
	if err != nil {
		ch.close()
		return nil, fmt.Errorf("launcher: %w", err)
	}
	report, fds, err := ch.receive()
	if err == nil && report.Kind == stage.Failed {
		err = p.failure(report)
	}
	if err == nil && (report.Kind != stage.Spawned || len(fds) != 1) {
		err = fmt.Errorf("report %d with %d descriptors", report.Kind, len(fds))
	}
	if err != nil {
		closeAll(fds)
		ch.close()
		return nil, fmt.Errorf("launcher: %w", err)
	}
	forked := &launcher{channel: ch, pid: int(report.A), behind: l, done: make(chan struct{})}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		closeAll(fds)
		ch.close()
		return nil, os.NewSyscallError("pidfd", err)
	}
	forked.end, forked.pidfd = os.NewFile(uintptr(fds[0]), "pidfd"), fds[0]
	go func() {
		defer close(forked.done)
		awaitEnd(forked.end)
	}()
	return forked, nil
}

// awaitEnd waits until the process of a pidfd in the poller has ended.
func awaitEnd(end *os.File) {
	raw, err := end.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// do lets the launcher itself carry a program out. The descriptors that come back are the caller's.
func (l *launcher) do(p *program) ([]int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.channel.send(p); err != nil {
		return nil, fmt.Errorf("launcher: %w", err)
	}
	report, fds, err := l.channel.receive()
	if err == nil && report.Kind != stage.Done {
		err = p.failure(report)
	}
	if err == nil && len(fds) != len(p.send) {
		err = fmt.Errorf("%d descriptors instead of %d", len(fds), len(p.send))
	}
	if err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("launcher: %w", err)
	}
	return fds, nil
}

// spawn asks for a PID 1. The answer comes on the control socket that goes with the program.
func (l *launcher) spawn(p *program) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.channel.send(p)
}

// alive tells whether the launcher has not ended, nor one that it needs.
func (l *launcher) alive() bool {
	select {
	case <-l.done:
		return false
	default:
		return l.behind == nil || l.behind.alive()
	}
}

// close ends the launcher and those behind it and waits for them. What it has started and is still running ends
// with it.
func (l *launcher) close() {
	l.channel.close()
	select {
	case <-l.done:
	default:
		if l.end != nil {
			unix.PidfdSendSignal(l.pidfd, unix.SIGKILL, nil, 0)
		} else {
			unix.Kill(l.pid, unix.SIGKILL)
		}
		<-l.done
	}
	if l.end != nil {
		l.end.Close()
	}
	if l.behind != nil {
		l.behind.close()
	}
}
