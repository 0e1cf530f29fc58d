package instance

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/doze-run/doze/worker/sandbox"
)

// hostSandbox runs the real program on the host, with the inner paths put for the outer ones: just
// enough to prove the runtime clients and real functions against this package.
type hostSandbox struct{ t testing.TB }

func (s hostSandbox) Name() string      { return "host" }
func (s hostSandbox) Missing() []string { return nil }
func (s hostSandbox) Close() error      { return nil }

func (s hostSandbox) Start(_ context.Context, c sandbox.Config) (sandbox.Process, error) {
	outer := strings.NewReplacer("/var/task", c.CodeDir, "/var/runtime", c.RuntimeDir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var argv []string
	for _, a := range c.Argv {
		argv = append(argv, outer.Replace(a))
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	for _, e := range c.Env {
		if strings.HasPrefix(e, "LAMBDA_") {
			e = outer.Replace(e)
		}
		cmd.Env = append(cmd.Env, e)
	}
	cmd.Env = append(cmd.Env, "AWS_LAMBDA_RUNTIME_API="+l.Addr().String())
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.CodeDir, w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		l.Close()
		r.Close()
		return nil, errors.Join(sandbox.ErrEntrypoint, err)
	}
	p := &hostProcess{cmd: cmd, listener: l, output: polled{r}, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

type hostProcess struct {
	cmd      *exec.Cmd
	listener net.Listener
	output   sandbox.Output
	done     chan struct{}
	exit     sandbox.Exit
	once     sync.Once
}

func (p *hostProcess) wait() {
	_ = p.cmd.Wait()
	p.Kill() // what it left behind
	p.listener.Close()
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	p.exit.Code = status.ExitStatus()
	if status.Signaled() {
		p.exit.Signal = status.Signal().String()
	}
	close(p.done)
}

func (p *hostProcess) Listener() net.Listener { return p.listener }
func (p *hostProcess) Output() sandbox.Output { return p.output }
func (p *hostProcess) Done() <-chan struct{}  { return p.done }
func (p *hostProcess) Exit() sandbox.Exit     { return p.exit }
func (p *hostProcess) MemoryBytes() int64     { return 0 }
func (p *hostProcess) MemoryPeakBytes() int64 { return 0 }
func (p *hostProcess) Kill() {
	p.once.Do(func() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) })
}
