package runtimes

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	pythonClient = "bootstrap.py"
	nodeClient   = "bootstrap.js"
	nodeWarmName = "warm.js"

	// compileLimit bounds how long an interpreter may take to compile its client.
	compileLimit = 30 * time.Second
)

//go:embed python/bootstrap.py
var pythonSource []byte

//go:embed node/bootstrap.js
var nodeSource []byte

//go:embed node/warm.js
var nodeWarm []byte

// compilePython writes the bytecode of argv[1] to argv[2]. The bytecode is not checked against the
// source again: both are written here, and one stat less is a cold start's gain. Tracebacks name
// the source where it is seen inside. Before that it does what a parked client does while it has no
// function, and prints which modules that has imported.
const compilePython = `import sys, runpy
runpy.run_path(sys.argv[1], run_name="client")["_exercise"]()
print(" ".join({name.partition(".")[0] for name in sys.modules}))
import py_compile
py_compile.compile(sys.argv[1], cfile=sys.argv[2], dfile=sys.argv[3], doraise=True,
                   invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)`

// Install writes the runtime clients that the runtimes need into dir, which is made when it is not
// there and is mounted at /var/runtime. Every file is whole or not there, and readable by any uid;
// installing again over a running worker's folder is safe. Bytecode is made by each interpreter
// itself, so that it is the one it can read. It completes each Runtime of found with what the
// parked client imports.
func Install(ctx context.Context, dir string, found []Runtime) error {
	if err := mkdir(dir); err != nil {
		return err
	}
	for i := range found {
		r := &found[i]
		if r.Native() {
			continue
		}
		if !r.python() {
			folder := filepath.Join(dir, "nodejs")
			if err := mkdir(folder); err != nil {
				return err
			}
			for name, content := range map[string][]byte{nodeClient: nodeSource, nodeWarmName: nodeWarm} {
				if err := write(filepath.Join(folder, name), content); err != nil {
					return err
				}
			}
			continue
		}
		if err := installPython(ctx, filepath.Join(dir, r.Name), r); err != nil {
			return err
		}
	}
	return nil
}

func installPython(ctx context.Context, folder string, r *Runtime) error {
	if err := mkdir(folder); err != nil {
		return err
	}
	source := filepath.Join(folder, pythonClient)
	if err := write(source, pythonSource); err != nil {
		return err
	}
	code, err := os.CreateTemp(folder, ".compiled-*")
	if err != nil {
		return fmt.Errorf("runtimes: install: %w", err)
	}
	defer os.Remove(code.Name()) // gone already when all went well
	if err := code.Close(); err != nil {
		return fmt.Errorf("runtimes: install: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, compileLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Path, "-S", "-E", "-s", "-c", compilePython,
		source, code.Name(), RuntimeRoot+"/"+r.Name+"/"+pythonClient)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("runtimes: compile the client with %s: %w: %s", r.Path, err, bytes.TrimSpace(out))
	}
	r.imported = map[string]bool{}
	for name := range strings.FieldsSeq(string(out)) {
		r.imported[name] = true
	}
	return publish(code.Name(), source+"c")
}

func mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("runtimes: install: %w", err)
	}
	// Whatever the umask says: an instance's uid reads it.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("runtimes: install: %w", err)
	}
	return nil
}

func write(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("runtimes: install: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("runtimes: install: %w", err)
	}
	return publish(f.Name(), path)
}

// publish gives a finished file its mode and its name.
func publish(from, to string) error {
	if err := os.Chmod(from, 0o644); err != nil {
		return fmt.Errorf("runtimes: install: %w", err)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("runtimes: install: %w", err)
	}
	return nil
}
