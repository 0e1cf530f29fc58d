package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// readyLimit bounds the start; it takes less than a second.
	readyLimit = 30 * time.Second
	// politeLimit is how long the end in order may take before it is hurried, and again before it
	// is forced.
	politeLimit = 10 * time.Second
	lastLines   = 12
)

// server is a running `doze dev` in a process group of its own: a Ctrl-C at the terminal reaches
// the demo, which then ends it in order.
type server struct {
	endpoint string
	cmd      *exec.Cmd
	log      string
	// ended is closed when the process has ended; then err says how.
	ended chan struct{}
	err   error

	stopping sync.Once
	stopped  error
}

var readyLine = regexp.MustCompile(`^doze ready http=(\S+) grpc=(\S+)\n$`)

// startServer starts the binary and waits until it is ready. On an error nothing of it runs.
func startServer(ctx context.Context, out *printer, program, dir string, flags ...string) (*server, error) {
	args := append([]string{"dev", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0",
		"--data-dir", filepath.Join(dir, "data"), "--shutdown-timeout", "5s"}, flags...)
	out.command(program, args...)
	s := &server{log: filepath.Join(dir, "doze.log"), ended: make(chan struct{})}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	stdout, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	s.cmd = exec.Command(program, args...)
	s.cmd.Stdout, s.cmd.Stderr = theirs, log
	// Should the demo be killed outright, the kernel ends the server.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	began := time.Now()
	err = s.begin()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s (make build): %w", program, err)
	}
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- text
	}()
	limit := time.NewTimer(readyLimit)
	defer limit.Stop()
	select {
	case text := <-line:
		match := readyLine.FindStringSubmatch(text)
		if match == nil {
			err = fmt.Errorf("doze dev did not become ready:\n%s", s.lastWordsAtEnd())
			break
		}
		s.endpoint = "http://" + match[1]
		out.ok("ready after %s: API at %s, gRPC at %s", readable(time.Since(began)), s.endpoint, match[2])
		return s, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-limit.C:
		err = fmt.Errorf("doze dev was not ready after %s:\n%s", readyLimit, s.lastWords())
	}
	return nil, errors.Join(err, s.kill())
}

// begin starts the process and the goroutine that waits for it. The thread that starts it lives as
// long as it does: the kernel sends Pdeathsig when the starting *thread* ends.
func (s *server) begin() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	return <-started
}

func (s *server) isRunning() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// stop ends the server in order, and says if that did not go as it should. It may be called again.
func (s *server) stop() error {
	s.stopping.Do(func() { s.stopped = s.end() })
	return s.stopped
}

func (s *server) end() error {
	if !s.isRunning() {
		return errors.Join(fmt.Errorf("doze dev had ended by itself (%v)", s.err), s.kill())
	}
	for range 2 { // the second SIGTERM means: at once
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return errors.Join(err, s.kill())
		}
		if s.endsWithin(politeLimit) {
			if s.err != nil {
				return errors.Join(fmt.Errorf("doze dev ended with an error: %w\n%s", s.err, s.lastWords()), s.kill())
			}
			return s.groupIsGone()
		}
	}
	return errors.Join(fmt.Errorf("doze dev did not end within %s", 2*politeLimit), s.kill())
}

func (s *server) endsWithin(d time.Duration) bool {
	limit := time.NewTimer(d)
	defer limit.Stop()
	select {
	case <-s.ended:
		return true
	case <-limit.C:
		return false
	}
}

// kill ends whatever there is of the process group, and waits for the server.
func (s *server) kill() error {
	if err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return &leftBehind{fmt.Errorf("kill doze dev: %w", err)}
	}
	<-s.ended
	return nil
}

// groupIsGone tells whether the server has left processes of its group behind.
func (s *server) groupIsGone() error {
	// What it has killed may take the kernel a moment.
	for range 100 {
		if !groupRuns(s.cmd.Process.Pid) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(errors.New("doze dev left processes behind"), s.kill())
}

// groupRuns tells whether a process of the group still runs. One that is dead and waits for its
// parent does not; in a container nobody may ever fetch it.
func groupRuns(group int) bool {
	if errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) {
		return false
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return true
	}
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended meanwhile
		}
		// pid (name) state parent group ...; the name may hold anything.
		fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
		if len(fields) > 2 && string(fields[2]) == strconv.Itoa(group) && fields[0][0] != 'Z' && fields[0][0] != 'X' {
			return true
		}
	}
	return false
}

// lastWordsAtEnd is lastWords of a server that is about to end, after it has.
func (s *server) lastWordsAtEnd() string {
	s.endsWithin(politeLimit)
	return s.lastWords()
}

// lastWords is the end of the server's log.
func (s *server) lastWords() string {
	data, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-lastLines):], []byte("\n")))
}
