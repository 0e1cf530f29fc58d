// Package sandboxtest is the behaviour that every sandbox has, as tests: Run for all of them, Walls for
// those that isolate. The programs in the sandbox are bash and Python scripts that try something and say
// what came of it.
package sandboxtest

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// Factory makes a sandbox with this data directory. The suite closes it.
type Factory func(t *testing.T, dataDir string) sandbox.Sandbox

// Interpreters that the scripts are for.
const (
	bash   = "/bin/bash"
	python = "/usr/bin/python3"
)

// patience is how long anything may take before the test gives up: it finds what hangs, on a busy machine and on one
// whose processor is emulated too.
const patience = 2 * time.Minute

var serial atomic.Int64

// fixture is one sandbox and a code directory.
type fixture struct {
	sandbox.Sandbox
	code string
	data string
}

func open(t *testing.T, factory Factory) *fixture {
	t.Helper()
	for _, needed := range []string{bash, python} {
		if _, err := os.Stat(needed); err != nil {
			t.Skipf("the scripts of this suite need %s: %v", needed, err)
		}
	}
	data := t.TempDir()
	f := &fixture{Sandbox: factory(t, data), code: codeDir(t), data: data}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return f
}

// codeDir is a directory that an unprivileged uid may read.
func codeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// write puts a file into the code directory.
func (f *fixture) write(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(f.code, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// config is an ordinary instance that runs argv.
func (f *fixture) config(argv ...string) sandbox.Config {
	return sandbox.Config{
		ID: "t-" + strconv.FormatInt(serial.Add(1), 10), CodeDir: f.code, Argv: argv,
		Env:         []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"},
		MemoryBytes: 128 << 20, TmpBytes: 64 << 20, CPUMilli: 1000, MaxProcesses: 256,
	}
}

// lacks tells whether the sandbox says that it does not give something, and writes down what it says.
func (f *fixture) lacks(t *testing.T, what string) bool {
	t.Helper()
	for _, line := range f.Missing() {
		if strings.HasPrefix(line, what) {
			t.Logf("lacks: %s", line)
			return true
		}
	}
	return false
}

// What a sandbox may say it lacks, and what is asked of it otherwise then.
const (
	noUIDs      = "no distinct uids"
	noProcesses = "no bound on processes"
	noMemory    = "no memory limit by the kernel"
	noCPU       = "no cpu cgroup controller"
)

// instance is a started process and what it has written so far.
type instance struct {
	sandbox.Process
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
	eof     chan struct{}
}

// start starts and keeps reading the output.
func (f *fixture) start(t *testing.T, c sandbox.Config) *instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := f.Start(ctx, c)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	i := &instance{Process: p, changed: make(chan struct{}, 1), eof: make(chan struct{})}
	go i.collect()
	t.Cleanup(func() {
		p.Kill()
		i.wait(t)
	})
	return i
}

func (i *instance) collect() {
	defer close(i.eof)
	b := make([]byte, 4096)
	for {
		n, err := i.Output().Read(b)
		i.mu.Lock()
		i.text.Write(b[:n])
		i.mu.Unlock()
		select {
		case i.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// wait waits for the end of the instance and of its output, and gives both.
func (i *instance) wait(t *testing.T) (sandbox.Exit, string) {
	t.Helper()
	for _, c := range []<-chan struct{}{i.Done(), i.eof} {
		select {
		case <-c:
		case <-time.After(patience):
			t.Fatalf("the instance has not ended; it wrote %q", i.so())
		}
	}
	return i.Exit(), i.so()
}

func (i *instance) so() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.text.String()
}

// until waits for words in the output.
func (i *instance) until(t *testing.T, words string) {
	t.Helper()
	limit := time.After(patience)
	for !strings.Contains(i.so(), words) {
		select {
		case <-i.changed:
		case <-i.eof:
			if !strings.Contains(i.so(), words) {
				t.Fatalf("the output ended without %q: %q", words, i.so())
			}
		case <-limit:
			t.Fatalf("no %q in %q", words, i.so())
		}
	}
}

// sh runs a bash script to its end, py a Python one.
func (f *fixture) sh(t *testing.T, script string) (sandbox.Exit, string) {
	t.Helper()
	return f.start(t, f.config(bash, "-c", script)).wait(t)
}

func (f *fixture) py(t *testing.T, script string) (sandbox.Exit, string) {
	t.Helper()
	return f.start(t, f.config(python, "-c", script)).wait(t)
}

// want fails unless the script ended well and its output has each of the lines.
func want(t *testing.T, exit sandbox.Exit, out string, lines ...string) {
	t.Helper()
	if exit.Code != 0 {
		t.Errorf("the script ended with %+v", exit)
	}
	have := "\n" + out
	for _, line := range lines {
		if !strings.Contains(have, "\n"+line+"\n") {
			t.Errorf("no line %q in:\n%s", line, out)
		}
	}
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
