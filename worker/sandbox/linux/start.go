//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux/egress"
	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// start is one start: the launcher forks PID 1, which prepares itself while the rest is made here and
// sent after.
func (s *Sandbox) start(ctx context.Context, config sandbox.Config) (_ *Process, err error) {
	l := limits{memory: config.MemoryBytes, milli: config.CPUMilli, hard: config.HardCPU, processes: config.MaxProcesses + 1} // PID 1
	return s.make(ctx, config.ID, l, config.TmpBytes, config.Egress, func(p *Process) (*program, error) {
		run := launch{input: -1, argv: config.Argv, env: environment(config.Env), processes: config.MaxProcesses}
		return s.assign(p, l, &run, func(t *trees) error {
			return errors.Join(t.code(&config), t.runtime(config.RuntimeDir, config.ReadOnly))
		}, s.run)
	})
}

// environment is a program's, with the address that the sandbox alone knows.
func environment(env []string) []string {
	return append(slices.Clip(env), "AWS_LAMBDA_RUNTIME_API="+apiAddr)
}

// make has a PID 1 made, and sends it what second makes meanwhile. ctx bounds the start.
func (s *Sandbox) make(ctx context.Context, id string, l limits, tmp int64, outside bool, second func(*Process) (*program, error)) (_ *Process, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &Process{s: s, id: id, group: &group{c: s.cgroups, id: id}, pidfd: -1, done: make(chan struct{})}
	if s.counts() {
		p.census = &census{memory: l.memory}
		if !s.cgroups.has("pids") && !s.distinct() {
			p.census.most = l.processes
		}
	}
	if p.uid, err = s.uids.take(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.abandon()
			err = outOfResources(err)
		}
	}()
	network := -1
	if outside {
		if p.line, err = s.line(ctx); err != nil {
			return nil, err
		}
		network = p.line.FD()
	}
	var far int
	if p.control, far, err = newChannel(); err != nil {
		return nil, err
	}
	cgroup, err := p.group.born(l)
	if err != nil {
		unix.Close(far)
		return nil, err
	}
	first := s.prepare(far, cgroup, network, p.uid, tmp, l.memory)
	err = s.spawn(first)
	closeAll([]int{far, cgroup})
	if err != nil {
		return nil, err
	}
	program, err := second(p)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, p.control.interrupt)
	defer stop()
	if err := p.started(first, program); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	if !stop() && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	s.mu.Lock()
	s.processes[p] = struct{}{}
	s.mu.Unlock()
	go p.live()
	return p, nil
}

// line is a network that reaches outside.
func (s *Sandbox) line(ctx context.Context) (*egress.Line, error) {
	if s.noEgress != nil {
		return nil, fmt.Errorf("%w: %w", sandbox.ErrNoEgress, s.noEgress)
	}
	l, err := s.egress.Take(ctx)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", sandbox.ErrNoEgress, err)
	}
	return l, err
}

// assign makes what belongs to this instance and sends it to the PID 1 that is being prepared. It closes
// what it opened: the descriptors have been sent.
func (s *Sandbox) assign(p *Process, l limits, run *launch, mounts func(*trees) error, write func(launch) *program) (_ *program, err error) {
	t := s.trees()
	defer t.close()
	if run.tasks, err = p.group.joined(l); err != nil {
		return nil, err
	}
	defer closeAll(run.tasks)
	run.uid = p.uid
	if run.passwd, err = t.root.passwd(p.uid); err != nil {
		return nil, err
	}
	if err := mounts(t); err != nil {
		return nil, err
	}
	run.trees = t.list
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("output pipe: %w", err)
	}
	defer unix.Close(pipe[1])
	if p.output, err = newOutput(pipe[0]); err != nil {
		return nil, err
	}
	run.output = pipe[1]
	program := write(*run)
	return program, p.tell(program)
}

// tell sends PID 1 a program. One that has failed already has said why.
func (p *Process) tell(program *program) error {
	if err := p.control.send(program); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	return nil
}

// started waits until the program runs, or says why it does not. PID 1 may be faster with its report than the
// launcher with its own.
func (p *Process) started(first, second *program) error {
	for spawned := false; !spawned || p.listener == nil; {
		report, fds, err := p.control.receive()
		if err != nil {
			closeAll(fds)
			return fmt.Errorf("the first process ended while it was starting: %w", err)
		}
		switch {
		case report.Kind == stage.Spawned && len(fds) == 1:
			spawned = true
			err = p.watch(fds[0])
		case report.Kind == stage.Started && len(fds) == len(second.send):
			if p.census != nil {
				p.census.open(fds[1], fds[2], fds[3])
			}
			err = p.listen(fds[0])
		case report.Kind == stage.Exited: // a short life, and a slow launcher
			p.status, p.reported = syscall.WaitStatus(report.A), true
		case report.Kind == stage.Failed && report.List>>8 == stage.Step:
			closeAll(fds)
			err = failed(second, report)
		case report.Kind == stage.Failed:
			closeAll(fds)
			err = first.failure(report)
		default:
			closeAll(fds)
			err = fmt.Errorf("control socket: report %d with %d descriptors", report.Kind, len(fds))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// failed words a failure and tells a program that cannot be executed from everything else.
func failed(p *program, report stage.Report) error {
	if list := report.List & 0xff; int(list) < len(p.names) && int(report.A) < len(p.names[list]) && p.names[list][report.A] == execName {
		switch errno := unix.Errno(report.Errno); errno {
		case unix.ENOENT, unix.EACCES, unix.ENOEXEC, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ELIBBAD, unix.EPERM, unix.EINVAL, unix.ENAMETOOLONG, unix.ETXTBSY:
			return fmt.Errorf("%w: %w", sandbox.ErrEntrypoint, errno)
		}
	}
	return p.failure(report)
}

// outOfResources marks the errors that say the machine is full.
func outOfResources(err error) error {
	for _, errno := range []unix.Errno{unix.ENOMEM, unix.EAGAIN, unix.ENFILE, unix.EMFILE, unix.ENOSPC} {
		if errors.Is(err, errno) && !errors.Is(err, sandbox.ErrNoMemory) && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%w: %w", sandbox.ErrNoMemory, err)
		}
	}
	return err
}

// listen makes the socket that PID 1 has sent the listener of this instance.
func (p *Process) listen(fd int) error {
	f := os.NewFile(uintptr(fd), "runtime-api")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("Runtime API listener: %w", err)
	}
	p.listener = l
	return nil
}
