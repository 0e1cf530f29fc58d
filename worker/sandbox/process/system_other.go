//go:build !linux

package process

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// missing is what more is not given on this system.
var missing = []string{
	"functions outlive a worker that is killed",
	"no memory figures while a function runs",
	"no bound on open files",
}

// spawner starts processes.
type spawner struct{}

func newSpawner() *spawner { return &spawner{} }

func (*spawner) start(argv []string, attr *os.ProcAttr) (*os.Process, error) {
	return os.StartProcess(argv[0], argv, attr)
}

func (*spawner) close() {}

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func limit(int) {}

// reap waits for the program's end and kills what is left of its group. In between the group's number is
// free if nothing is left, and given out again only after all others.
func (p *Process) reap() (*os.ProcessState, error) {
	state, err := p.process.Wait()
	p.signal(syscall.SIGKILL)
	p.forget()
	return state, err
}

// fionread is FIONREAD of the BSDs.
const fionread = 0x4004667f

func resident(int) int64 { return 0 }

func maxRSS(state *os.ProcessState) int64 {
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
		return usage.Maxrss // bytes on darwin
	}
	return 0
}

func buffered(f *os.File) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var got error
	if err := raw.Control(func(fd uintptr) { n, got = unix.IoctlGetInt(int(fd), fionread) }); err != nil {
		return 0, nil
	}
	return n, got
}
