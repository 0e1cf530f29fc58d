package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// launcher starts child processes from one thread that lives as long as they do: a child's parent
// death signal goes by the thread that started it, and Go ends threads as it likes.
type launcher struct {
	jobs chan func()
	done chan struct{}
}

func newLauncher() *launcher {
	l := &launcher{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for job := range l.jobs {
			job()
		}
	}()
	return l
}

func (l *launcher) close() {
	close(l.jobs)
	<-l.done
}

// start starts cmd in a process group of its own.
func (l *launcher) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = childAttr()
	result := make(chan error)
	l.jobs <- func() { result <- cmd.Start() }
	return <-result
}

// child is a process that the bench started.
type child struct {
	name    string
	cmd     *exec.Cmd
	log     string // file with its stderr
	exited  chan struct{}
	exitErr error // valid after exited
	stopped sync.Once
}

// startServer starts a program that prints a line beginning with ready when it serves, and returns
// what follows on that line.
func (l *launcher) startServer(ctx context.Context, name, dir, ready string, within time.Duration, argv ...string) (*child, string, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	defer log.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, in, log
	err = l.start(cmd)
	_ = in.Close()
	if err != nil {
		_ = out.Close()
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	c := &child{name: name, cmd: cmd, log: log.Name(), exited: make(chan struct{})}
	lines := make(chan string, 1)
	go func() { // ends when the child does: it holds the pipe's other end
		defer close(c.exited)
		defer out.Close()
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			if rest, ok := strings.CutPrefix(scanner.Text(), ready); ok {
				select {
				case lines <- rest:
				default:
				}
			}
		}
		_, _ = io.Copy(io.Discard, out)
		c.exitErr = cmd.Wait()
	}()
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	select {
	case rest := <-lines:
		return c, rest, nil
	case <-c.exited:
		err = fmt.Errorf("%s ended before it was ready (%v)%s", name, c.exitErr, c.tail())
	case <-timeout.C:
		err = fmt.Errorf("%s was not ready within %v%s", name, within, c.tail())
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = c.stop(time.Second)
	return nil, "", err
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// tail is the end of what the child wrote to stderr, for an error message.
func (c *child) tail() string {
	b, err := os.ReadFile(c.log)
	if err != nil || len(b) == 0 {
		return ""
	}
	if len(b) > 600 {
		b = b[len(b)-600:]
	}
	return ": " + strings.TrimSpace(string(b))
}

// stop asks the child to end, waits for at most grace, and then ends its whole process group.
func (c *child) stop(grace time.Duration) error {
	var err error
	c.stopped.Do(func() {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		timeout := time.NewTimer(grace)
		defer timeout.Stop()
		select {
		case <-c.exited:
			return
		case <-timeout.C:
		}
		_ = syscall.Kill(-c.pid(), syscall.SIGKILL)
		err = fmt.Errorf("%s did not end within %v of SIGTERM and was killed", c.name, grace)
		select {
		case <-c.exited:
		case <-time.After(5 * time.Second):
			err = errors.Join(err, fmt.Errorf("%s: something still holds its output", c.name))
		}
	})
	return err
}
