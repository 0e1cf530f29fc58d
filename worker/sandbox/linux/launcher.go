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

// launcher is the small process that instances are forked from.
type launcher struct {
	channel *channel
	cmd     *exec.Cmd
	done    chan struct{}
	mu      sync.Mutex // one request on the socket at a time
}

// startLauncher executes this binary as a launcher and lets it set itself up.
func startLauncher(setup *program) (*launcher, error) {
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
	l := &launcher{channel: ch, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		cmd.Wait() // ends when the socket is closed, or by accident: see alive
	}()
	if err := l.configure(setup); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *launcher) configure(setup *program) error {
	if err := l.channel.send(setup); err != nil {
		return fmt.Errorf("launcher: %w", err)
	}
	report, fds, err := l.channel.receive()
	closeAll(fds)
	if err != nil {
		return fmt.Errorf("launcher: %w", err)
	}
	if report.Kind != stage.Done {
		return fmt.Errorf("launcher: %w", setup.failure(report))
	}
	return nil
}

// spawn asks for a PID 1. The answer comes on the control socket that goes with the program.
func (l *launcher) spawn(p *program) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.channel.send(p)
}

// alive tells whether the launcher has not ended.
func (l *launcher) alive() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// close ends the launcher and waits for it. What it has started and is still running ends with it.
func (l *launcher) close() {
	l.channel.close()
	unix.Kill(l.cmd.Process.Pid, unix.SIGKILL)
	<-l.done
}
