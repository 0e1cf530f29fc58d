//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// parked implements sandbox.Parked: a PID 1 in its finished namespaces and cgroups that has no function, and
// perhaps a program that waits for one.
type parked struct {
	s       *Sandbox
	p       *Process
	config  sandbox.ParkConfig
	limits  limits
	waiting bool // a program waits
	door    int  // this side of its stdin, or of the child's
	mu      sync.Mutex
	claimed bool
}

var _ sandbox.Parker = (*Sandbox)(nil)

// parkedMilli is the share of CPU of what is parked: the least there is.
const parkedMilli = 1

// Park implements sandbox.Parker.
func (s *Sandbox) Park(ctx context.Context, config sandbox.ParkConfig) (sandbox.Parked, error) {
	if err := config.Check(); err != nil {
		return nil, err
	}
	if err := s.enter(config.ID); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", config.ID, err)
	}
	defer s.starting.Done()
	k, err := s.parkOne(ctx, config)
	if err != nil {
		s.forget(config.ID)
		return nil, fmt.Errorf("sandbox %s: %w", config.ID, err)
	}
	return k, nil
}

func (s *Sandbox) parkOne(ctx context.Context, config sandbox.ParkConfig) (*parked, error) {
	k := &parked{
		s: s, config: config, waiting: config.Argv != nil,
		limits: limits{memory: config.MemoryBytes, milli: parkedMilli, processes: config.MaxProcesses + 1},
	}
	kind := unix.SOCK_SEQPACKET
	if k.waiting {
		kind = unix.SOCK_STREAM
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	k.door = pair[0]
	run := launch{input: pair[1]}
	if k.waiting {
		run.argv, run.env = config.Argv, environment(config.Env)
	}
	p, err := s.make(ctx, config.ID, k.limits, config.TmpBytes, config.Egress, func(p *Process) (*program, error) {
		p.answers = make(chan stage.Report, 1)
		return s.assign(p, k.limits, &run, func(t *trees) error { return t.runtime(config.RuntimeDir, config.ReadOnly) }, s.park)
	})
	closeAll([]int{run.input}) // so that the end of the program is the end of the stream
	if err == nil {
		k.p = p
		if err = k.waits(ctx); err != nil {
			k.end()
		}
	}
	if err != nil {
		closeAll([]int{k.door})
		return nil, err
	}
	return k, nil
}

// waits returns when the program has said that it waits. What it has printed until then is nobody's.
func (k *parked) waits(ctx context.Context) error {
	if !k.waiting {
		return nil
	}
	// A duplicate shares the flags with the door, but they are only set while it is used.
	dup, err := unix.FcntlInt(uintptr(k.door), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		unix.Close(dup)
		return os.NewSyscallError("nonblock", err)
	}
	f := os.NewFile(uintptr(dup), "door")
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	var word [1]byte
	if _, err := io.ReadFull(f, word[:]); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("the program ended or gave up instead of waiting: %w%s", err, k.printed())
	}
	if err := unix.SetNonblock(k.door, false); err != nil {
		return os.NewSyscallError("block", err)
	}
	if words := k.printed(); words != "" {
		k.s.log.Warn("a program printed something while it was parked", "program", k.config.Argv[0], "printed", words)
	}
	return nil
}

// printed takes what is in the output pipe now.
func (k *parked) printed() string {
	n, err := k.p.output.Buffered()
	if err != nil || n == 0 {
		return ""
	}
	b := make([]byte, n)
	if n, err = io.ReadFull(k.p.output, b); err != nil {
		b = b[:n]
	}
	return fmt.Sprintf("; it printed %q", b[:min(len(b), 1024)])
}

// take makes sure that what is parked is used once.
func (k *parked) take() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	first := !k.claimed
	k.claimed = true
	return first
}

// end kills it and waits.
func (k *parked) end() {
	k.p.Kill()
	<-k.p.done
	k.p.output.close()
}

var errUsed = errors.New("this parked sandbox has been used or discarded")

// Discard implements sandbox.Parked.
func (k *parked) Discard() {
	if !k.take() {
		return
	}
	k.p.Kill()
	k.p.output.close()
	closeAll([]int{k.door})
}

// Done implements sandbox.Parked.
func (k *parked) Done() <-chan struct{} { return k.p.done }

// MemoryBytes implements sandbox.Parked.
func (k *parked) MemoryBytes() int64 { return k.p.MemoryBytes() }

// Start implements sandbox.Parked.
func (k *parked) Start(ctx context.Context, config sandbox.Config) (_ sandbox.Process, err error) {
	fail := func(err error) error { return fmt.Errorf("sandbox %s: %w", config.ID, err) }
	if err := config.Check(); err != nil {
		return nil, err
	}
	if !k.take() {
		return nil, fail(errUsed)
	}
	defer closeAll([]int{k.door})
	if err := k.s.rename(k.p, config.ID); err != nil {
		k.end()
		return nil, fail(err)
	}
	defer k.s.starting.Done()
	if err := k.start(ctx, &config); err != nil {
		k.end()
		return nil, fail(outOfResources(err))
	}
	return k.p, nil
}

// rename registers the start of a parked process under the instance's id. starting.Done must follow.
func (s *Sandbox) rename(p *Process, id string) error {
	if err := s.enter(id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.processes[p]; !ok {
		delete(s.ids, id)
		s.starting.Done()
		return errors.New("the parked sandbox has ended")
	}
	p.alias = id
	return nil
}

func (k *parked) start(ctx context.Context, config *sandbox.Config) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p, s := k.p, k.s
	if k.waiting && (config.RuntimeDir != k.config.RuntimeDir || !slices.Equal(config.ReadOnly, k.config.ReadOnly)) {
		return errors.New("parked with another runtime")
	}
	if config.Egress != k.config.Egress {
		return errors.New("parked with another network")
	}
	l := limits{memory: config.MemoryBytes, milli: config.CPUMilli, hard: config.HardCPU, processes: config.MaxProcesses + 1}
	t := s.trees()
	defer t.close()
	err := t.code(config)
	if k.config.RuntimeDir == "" && k.config.ReadOnly == nil {
		err = errors.Join(err, t.runtime(config.RuntimeDir, config.ReadOnly))
	}
	if err != nil {
		return err
	}
	run := launch{trees: t.list, argv: config.Argv, env: environment(config.Env), processes: config.MaxProcesses}
	var resize []tmpSize
	if config.TmpBytes != k.config.TmpBytes {
		resize = append(resize, tmpSize{"/tmp", config.TmpBytes})
	}
	if size := shmBytes(config.MemoryBytes); size != shmBytes(k.config.MemoryBytes) {
		resize = append(resize, tmpSize{"/dev/shm", size})
	}
	if err := p.group.relimit(k.limits, l); err != nil {
		return err
	}
	if p.census != nil {
		p.census.relimit(l)
	}
	var exec *program
	var message []byte
	if k.waiting {
		message = handover(run.env)
	} else {
		exec = s.exec(run)
		if message, err = exec.encode(); err != nil {
			return err
		}
	}
	program := s.unpark(run, resize, k.waiting, k.door, message)
	if err := p.tell(program); err != nil {
		return err
	}
	return k.answer(ctx, program, exec)
}

// answer waits for what PID 1 says to the program it was told, or its child to what that handed over.
func (k *parked) answer(ctx context.Context, told, exec *program) error {
	var report stage.Report
	select {
	case report = <-k.p.answers:
	case <-ctx.Done():
		return ctx.Err()
	case <-k.p.done:
		select {
		case report = <-k.p.answers: // it has ended since
		default:
			return errors.New("the parked sandbox has ended")
		}
	}
	if report.Kind == stage.Failed && report.List>>8 == stage.Exec {
		return failed(exec, report)
	}
	if report.Kind == stage.Failed {
		return failed(told, report)
	}
	return nil
}
