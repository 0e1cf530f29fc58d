// Package process is the sandbox without walls: an instance is a process group of the worker's own
// user. It is for systems without Linux's walls and for users without the right to build them, and is
// chosen by a person, never in silence: Missing lists what it does not give.
//
// There is no mount namespace, so the program runs in the real directories. The working directory is
// CodeDir. In every argument and in every value of the environment, a path that is or lies below /var/task,
// /opt or /var/runtime is replaced by the real one, also as an element of a list separated by colons. The
// directory of the instance's own temporary files is in TMPDIR, unless Env sets it.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/doze-run/doze/worker/sandbox"
)

// Options say where temporary files go.
type Options struct {
	// DataDir is a directory of the worker. What a predecessor left below it is removed by New.
	DataDir string
	// Logger gets what nobody is there to be told. nil: nothing is logged.
	Logger *slog.Logger
}

// Sandbox implements sandbox.Sandbox.
type Sandbox struct {
	log     *slog.Logger
	dir     string
	spawner *spawner

	mu        sync.Mutex
	closed    bool
	instances map[string]*Process // nil while one starts
	starting  sync.WaitGroup
}

var _ sandbox.Sandbox = (*Sandbox)(nil)

// New makes the directory for temporary files.
func New(options Options) (*Sandbox, error) {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	dataDir, err := filepath.Abs(options.DataDir)
	if err != nil {
		return nil, fmt.Errorf("process sandbox: %w", err)
	}
	dir := filepath.Join(dataDir, "process")
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("process sandbox: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("process sandbox: %w", err)
	}
	return &Sandbox{log: options.Logger, dir: dir, spawner: newSpawner(), instances: map[string]*Process{}}, nil
}

// Name is "process".
func (s *Sandbox) Name() string { return "process" }

// Missing says that there are no walls.
func (s *Sandbox) Missing() []string {
	return append([]string{
		"no isolation: functions run as this user and can read, change and signal all that this user can, one another included",
		"no memory limit: a function can use all of the machine's memory",
		"no CPU share, no bound on processes, no bound on temporary files",
		"no network wall: functions reach whatever this machine reaches, and any process here reaches their Runtime API",
		"/var/task, /opt and /var/runtime are not those paths: programs that name them in their code do not find them",
		"a process that leaves its group (setsid) outlives its instance",
	}, missing...)
}

// Start implements sandbox.Sandbox.
func (s *Sandbox) Start(ctx context.Context, config sandbox.Config) (sandbox.Process, error) {
	if err := config.Check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.enter(config.ID); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", config.ID, err)
	}
	defer s.starting.Done()
	p, err := s.start(config)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.instances, config.ID)
		return nil, fmt.Errorf("sandbox %s: %w", config.ID, err)
	}
	s.instances[config.ID] = p
	go p.live()
	return p, nil
}

func (s *Sandbox) enter(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("the sandbox is closed")
	}
	if _, ok := s.instances[id]; ok {
		return fmt.Errorf("an instance %s is there already", id)
	}
	s.instances[id] = nil
	s.starting.Add(1)
	return nil
}

func (s *Sandbox) start(config sandbox.Config) (_ *Process, err error) {
	p := &Process{s: s, id: config.ID, tmp: filepath.Join(s.dir, config.ID), done: make(chan struct{})}
	var undo []func()
	defer func() {
		if err != nil {
			for _, f := range undo {
				f()
			}
		}
	}()
	if err := os.Mkdir(p.tmp, 0o700); err != nil {
		return nil, err
	}
	undo = append(undo, func() { os.RemoveAll(p.tmp) })
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	undo = append(undo, func() { p.listener.Close() })
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	p.output = &output{file: r}
	undo = append(undo, func() { r.Close() })
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()

	paths := rewriter(config)
	env := []string{"TMPDIR=" + p.tmp}
	for _, v := range config.Env {
		name, value, _ := strings.Cut(v, "=")
		if name == "TMPDIR" {
			env = env[1:]
		}
		env = append(env, name+"="+paths(value))
	}
	env = append(env, "AWS_LAMBDA_RUNTIME_API="+p.listener.Addr().String())
	argv := make([]string, len(config.Argv))
	for i, a := range config.Argv {
		argv[i] = paths(a)
	}
	p.process, err = s.spawner.start(argv, &os.ProcAttr{Dir: config.CodeDir, Env: env, Files: []*os.File{null, w, w}, Sys: attributes()})
	if err != nil {
		return nil, startError(err, config.CodeDir)
	}
	limit(p.process.Pid)
	return p, nil
}

// startError tells a program that cannot be executed from everything else.
func startError(err error, dir string) error {
	if info, e := os.Stat(dir); e != nil || !info.IsDir() {
		return err
	}
	for _, errno := range []syscall.Errno{syscall.ENOENT, syscall.EACCES, syscall.ENOEXEC, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.EPERM, syscall.EINVAL, syscall.ENAMETOOLONG, syscall.ETXTBSY} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", sandbox.ErrEntrypoint, errno)
		}
	}
	if errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN) {
		return fmt.Errorf("%w: %w", sandbox.ErrNoMemory, err)
	}
	return err
}

// rewriter replaces the paths that a wall would have made.
func rewriter(c sandbox.Config) func(string) string {
	pairs := [][2]string{{"/var/task", c.CodeDir}, {"/opt", c.OptDir}, {"/var/runtime", c.RuntimeDir}}
	return func(s string) string {
		if !strings.Contains(s, "/var/task") && !strings.Contains(s, "/opt") && !strings.Contains(s, "/var/runtime") {
			return s
		}
		parts := strings.Split(s, ":")
		for i, part := range parts {
			for _, p := range pairs {
				if p[1] == "" {
					continue
				}
				if rest, ok := strings.CutPrefix(part, p[0]); ok && (rest == "" || rest[0] == '/') {
					parts[i] = p[1] + rest
					break
				}
			}
		}
		return strings.Join(parts, ":")
	}
}

// Close implements sandbox.Sandbox.
func (s *Sandbox) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.starting.Wait()
	s.mu.Lock()
	var all []*Process
	for _, p := range s.instances {
		all = append(all, p)
	}
	s.mu.Unlock()
	for _, p := range all {
		p.Kill()
	}
	for _, p := range all {
		<-p.Done()
	}
	s.spawner.close()
	if err := os.RemoveAll(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("process sandbox: %w", err)
	}
	return nil
}
