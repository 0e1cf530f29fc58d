// Package testenv runs real doze processes for tests: the binary as users run it, on ports of its
// own, in a folder of its own, ended by real signals. Tests speak to it as any client does.
package testenv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
)

// readyLimit is how long a process may take to its ready line, on a machine that is also busy
// with the tests of other packages.
const readyLimit = 30 * time.Second

var (
	buildOnce sync.Once
	buildPath string
	errBuild  error
)

// Binary is the path of the doze binary under test: DOZE_BINARY, or one built from this tree, once
// for a test process.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("DOZE_BINARY"); path != "" {
		return path
	}
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "doze-test-bin-")
		if err != nil {
			errBuild = err
			return
		}
		buildPath = filepath.Join(dir, "doze")
		build := exec.Command("go", "build", "-o", buildPath, "github.com/doze-run/doze/cmd/doze")
		if out, err := build.CombinedOutput(); err != nil {
			errBuild = fmt.Errorf("build doze: %w\n%s", err, out)
		}
	})
	if errBuild != nil {
		t.Fatal(errBuild)
	}
	return buildPath
}

// RemoveBinary removes what Binary built; a TestMain calls it last.
func RemoveBinary() {
	if buildPath != "" {
		_ = os.RemoveAll(filepath.Dir(buildPath))
	}
}

// Dev is one running process of Doze, of `doze dev` unless it is a Member's.
type Dev struct {
	// HTTP and GRPC are its addresses, DataDir its folder.
	HTTP, GRPC, DataDir string
	// KeyID and Secret are what its clients sign with.
	KeyID, Secret string

	t      testing.TB
	binary string
	by     []string // the command that executes the binary; nil for none
	// verb is the command of doze; places, its folder and addresses, come before args.
	verb   string
	places []string
	args   []string
	env    []string // nil: as command makes it
	// command makes the commands of the user that it runs as.
	command func(program string, args ...string) *exec.Cmd
	// place is the machine that it runs on, nil for this one.
	place  *Place
	cmd    *exec.Cmd
	stderr *tail
	log    io.Writer     // of the whole log, nil for none
	lines  <-chan string // the ready line
	exited chan struct{}
	err    error
}

// StartDev starts `doze dev` in a new folder with the given flags and waits for its ready line. It
// is ended, and checked to have ended, when the test ends.
func StartDev(t testing.TB, flags ...string) *Dev {
	t.Helper()
	return startDev(t, nil, nil, flags)
}

// StartDevWith is StartDev with variables added to the process's environment.
func StartDevWith(t testing.TB, env []string, flags ...string) *Dev {
	t.Helper()
	return startDev(t, env, nil, flags)
}

// StartDevBy is StartDev, by a command that in the end executes the rest of its arguments.
func StartDevBy(t testing.TB, by []string, flags ...string) *Dev {
	t.Helper()
	return startDev(t, nil, by, flags)
}

func startDev(t testing.TB, env, by, flags []string) *Dev {
	t.Helper()
	d := &Dev{t: t, binary: Binary(t), by: by, DataDir: t.TempDir(), args: flags, env: append(os.Environ(), env...), command: exec.Command, KeyID: "AKIDTEST", Secret: "secret"}
	d.verb, d.places = "dev", []string{"--data-dir", d.DataDir, "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"}
	d.run()
	return d
}

// run starts it until the end of the test.
func (d *Dev) run() {
	t := d.t
	t.Helper()
	d.Start()
	t.Cleanup(func() {
		if d.cmd != nil {
			if err := d.Stop(); err != nil {
				t.Errorf("doze dev: %v\n%s", err, d.stderr)
			}
		}
		if t.Failed() {
			t.Logf("last lines of doze dev:\n%s", d.stderr)
		}
	})
}

// Start starts the process (again) in its folder.
func (d *Dev) Start() {
	d.t.Helper()
	if err := d.start(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *Dev) start() error {
	if err := d.launch(); err != nil {
		return err
	}
	return d.await()
}

// launch starts the process, and await waits until it is ready.
func (d *Dev) launch() error {
	whole := slices.Concat(d.by, []string{d.binary, d.verb}, d.places, d.args)
	d.cmd = d.command(whole[0], whole[1:]...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if d.env != nil {
		d.cmd.Env = d.env
	}
	d.stderr = &tail{}
	d.cmd.Stderr = d.stderr
	if d.log != nil {
		d.cmd.Stderr = io.MultiWriter(d.stderr, d.log)
	}
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	start := d.cmd.Start
	if d.place != nil {
		start = func() error { return d.place.Start(d.cmd) }
	}
	if err := start(); err != nil {
		d.cmd = nil
		return err
	}
	lines := make(chan string, 1)
	d.lines, d.exited = lines, make(chan struct{})
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		lines <- line
		_, _ = io.Copy(io.Discard, stdout)
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	return nil
}

func (d *Dev) await() error {
	var line string
	select {
	case line = <-d.lines:
	case <-time.After(readyLimit):
		_ = d.cmd.Process.Kill()
		<-d.exited
		d.cmd = nil
		return fmt.Errorf("doze %s was not ready within %v:\n%s", d.verb, readyLimit, d.stderr)
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(line), "doze ready")
	if !ok {
		<-d.exited
		d.cmd = nil
		return fmt.Errorf("doze %s said %q, then: %w\n%s", d.verb, line, d.err, d.stderr)
	}
	for _, field := range strings.Fields(rest) {
		switch name, value, _ := strings.Cut(field, "="); name {
		case "http":
			d.HTTP = value
		case "grpc":
			d.GRPC = value
		}
	}
	return nil
}

// As is the same process as it is for clients that sign with another key.
func (d *Dev) As(keyID, secret string) *Dev {
	other := *d
	other.KeyID, other.Secret = keyID, secret
	return &other
}

// PID is the process id.
func (d *Dev) PID() int { return d.cmd.Process.Pid }

// Signal sends a signal to the process alone.
func (d *Dev) Signal(s syscall.Signal) error {
	if err := d.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal doze: %w", err)
	}
	return nil
}

// Stop ends the process in order and waits until it has.
func (d *Dev) Stop() error {
	if err := d.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return d.Wait(60 * time.Second)
}

// Wait waits for the process's end and says how it ended.
func (d *Dev) Wait(limit time.Duration) error {
	select {
	case <-d.exited:
		d.cmd = nil
		return d.err
	case <-time.After(limit):
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to stderr
		select {
		case <-d.exited:
		case <-time.After(5 * time.Second):
			_ = d.cmd.Process.Kill()
			<-d.exited
		}
		d.cmd = nil
		return fmt.Errorf("did not end within %v", limit)
	}
}

// Kill ends the process as kill -9 does, and waits until it is gone.
func (d *Dev) Kill() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	<-d.exited
	d.cmd = nil
}

// Wipe empties the folder of a process that has ended: its disk is lost.
func (d *Dev) Wipe() error {
	entries, err := os.ReadDir(d.DataDir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(d.DataDir, e.Name())))
	}
	return err
}

// Stderr is the end of what the process logged.
func (d *Dev) Stderr() string { return d.stderr.String() }

// Client is an unmodified AWS SDK client of this process. It does not retry.
func (d *Dev) Client() *lambda.Client {
	return lambda.New(lambda.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String("http://" + d.HTTP),
		Credentials:  credentials.NewStaticCredentialsProvider(d.KeyID, d.Secret, ""),
		Retryer:      aws.NopRetryer{},
		HTTPClient:   &http.Client{Transport: d.transport(), Timeout: 5 * time.Minute},
	})
}

// transport is a client's connections to this process.
func (d *Dev) transport() *http.Transport {
	t := &http.Transport{MaxIdleConnsPerHost: 256}
	if d.place != nil {
		t.DialContext = d.place.Dial
	}
	return t
}

// Running tells whether the process was started and is not known to have ended.
func (d *Dev) Running() bool { return d.cmd != nil }

// CLI runs the binary as a client of this process and returns what it printed and its exit code.
func (d *Dev) CLI(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	d.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, d.binary, args...)
	cmd.Env = append(os.Environ(), "DOZE_ENDPOINT=http://"+d.HTTP, "DOZE_ACCESS_KEY_ID="+d.KeyID, "DOZE_SECRET_ACCESS_KEY="+d.Secret)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatalf("doze %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// tail keeps the last 64 KB written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - 64<<10; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	if t == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
