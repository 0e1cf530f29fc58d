package process

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// Process implements sandbox.Process and sandbox.Freezer.
type Process struct {
	s        *Sandbox
	id       string
	tmp      string
	process  *os.Process
	listener net.Listener
	output   *output
	done     chan struct{}
	exit     sandbox.Exit // valid after done

	mu     sync.Mutex
	reaped bool // the group's number may belong to others
	peak   int64
}

var (
	_ sandbox.Process = (*Process)(nil)
	_ sandbox.Freezer = (*Process)(nil)
)

// Listener implements sandbox.Process. It is on the machine's own loopback.
func (p *Process) Listener() net.Listener { return p.listener }

// Output implements sandbox.Process.
func (p *Process) Output() sandbox.Output { return p.output }

// Done implements sandbox.Process.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit implements sandbox.Process. OutOfMemory is never set: there is no limit.
func (p *Process) Exit() sandbox.Exit { return p.exit }

// MemoryBytes implements sandbox.Process: the resident memory of the first process, where the system
// tells.
func (p *Process) MemoryBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return 0
	}
	n := resident(p.process.Pid)
	p.peak = max(p.peak, n)
	return n
}

// MemoryPeakBytes implements sandbox.Process: the most that MemoryBytes has seen, and, after the end, what
// the system recorded.
func (p *Process) MemoryPeakBytes() int64 {
	p.MemoryBytes()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peak
}

// Kill implements sandbox.Process.
func (p *Process) Kill() {
	p.listener.Close()
	p.signal(syscall.SIGKILL)
}

// Freeze implements sandbox.Freezer, for the processes of the group.
func (p *Process) Freeze() error { return p.signal(syscall.SIGSTOP) }

// Thaw implements sandbox.Freezer.
func (p *Process) Thaw() error { return p.signal(syscall.SIGCONT) }

func (p *Process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return syscall.Kill(-p.process.Pid, sig)
}

// live waits for the program and ends what it left in its group.
func (p *Process) live() {
	state, err := p.reap()
	p.listener.Close()
	if err != nil {
		p.s.log.Error("wait for a function's process", "instance", p.id, "error", err)
		p.exit = sandbox.Exit{Code: -1, Signal: syscall.SIGKILL.String()}
	} else {
		p.exit = exitOf(state)
		p.mu.Lock()
		p.peak = max(p.peak, maxRSS(state))
		p.mu.Unlock()
	}
	// A process that left the group may hold the pipe. It is not waited for.
	p.output.file.SetReadDeadline(time.Now().Add(time.Second))
	if err := os.RemoveAll(p.tmp); err != nil {
		p.s.log.Error("a temporary directory is left behind", "instance", p.id, "error", err)
	}
	p.s.mu.Lock()
	delete(p.s.instances, p.id)
	p.s.mu.Unlock()
	close(p.done)
}

// forget says that the group's number may belong to others from now on.
func (p *Process) forget() {
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
}

func exitOf(state *os.ProcessState) sandbox.Exit {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return sandbox.Exit{Code: -1, Signal: status.Signal().String()}
	}
	return sandbox.Exit{Code: state.ExitCode()}
}

// output is the read end of an instance's stdout and stderr.
type output struct{ file *os.File }

// Read implements io.Reader. At the end it gives the pipe back.
func (o *output) Read(b []byte) (int, error) {
	n, err := o.file.Read(b)
	if err != nil {
		o.file.Close()
		err = io.EOF
	}
	return n, err
}

// SyscallConn implements syscall.Conn: with it the caller can read what there is without waiting.
func (o *output) SyscallConn() (syscall.RawConn, error) { return o.file.SyscallConn() }

// Buffered implements sandbox.Output.
func (o *output) Buffered() (int, error) { return buffered(o.file) }
