package bench

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"

	benchfunctions "github.com/doze-run/doze/deploy/bench"
)

// Interpreter is how functions of one runtime run on this machine as plain processes.
type Interpreter struct {
	// Runtime is its name in CreateFunction, as "python3.12".
	Runtime string
	// Argv is the program and its arguments: the interpreter and Doze's own runtime client.
	Argv []string
	// Env is what the client needs beyond the environment AWS documents.
	Env []string
}

// function is one of the bench functions, ready to be deployed and to be run as a plain process.
type function struct {
	language, runtime, handler string
	dir                        string // unpacked
	files                      map[string][]byte
	argv, env                  []string
}

// prepare makes the function of a language. An error says why it cannot be measured here.
func prepare(ctx context.Context, language, dir string, o *Options) (*function, error) {
	f := &function{language: language, dir: filepath.Join(dir, language), files: make(map[string][]byte)}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return nil, err
	}
	switch language {
	case "go":
		program := filepath.Join(f.dir, "bootstrap")
		if err := goFunction(ctx, o.GoFunction, program); err != nil {
			return nil, err
		}
		b, err := os.ReadFile(program)
		if err != nil {
			return nil, err
		}
		f.files["bootstrap"] = b
		f.runtime, f.handler, f.argv = "provided.al2023", "bootstrap", []string{program}
		return f, nil
	case "python":
		f.handler, f.files["handler.py"] = "handler.handler", benchfunctions.Python
	case "node":
		f.handler, f.files["index.js"] = "index.handler", benchfunctions.Node
	default:
		return nil, fmt.Errorf("no bench function in %s", language)
	}
	if o.Interpreter == nil {
		return nil, fmt.Errorf("no runtime client for %s", language)
	}
	i, err := o.Interpreter(ctx, language, filepath.Join(dir, "runtime"), memorySize)
	if err != nil {
		return nil, err
	}
	f.runtime, f.argv, f.env = i.Runtime, i.Argv, i.Env
	for name, b := range f.files {
		if err := os.WriteFile(filepath.Join(f.dir, name), b, 0o644); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// goSource is where the Go function is, seen from the repository's root.
const goSource = "./deploy/bench/go"

// goFunction puts the built Go function at program: from the file `make bench` built, else built
// here and now when this is the source folder and there is a Go toolchain.
func goFunction(ctx context.Context, built, program string) error {
	b, err := os.ReadFile(built)
	if err == nil {
		return os.WriteFile(program, b, 0o755)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	toolchain, lookErr := exec.LookPath("go")
	if _, err := os.Stat(filepath.Join(goSource, "main.go")); err != nil || lookErr != nil {
		return fmt.Errorf("%s is not there: `make bench` in the source folder builds it (needs Go), or --go-function names it", built)
	}
	cmd := exec.CommandContext(ctx, toolchain, "build", "-trimpath", "-tags", "lambda.norpc", "-ldflags", "-s -w", "-o", program, goSource)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %.300s", goSource, err, out)
	}
	return nil
}

// zip is the function as a deployment package. A salt other than "" makes its hash another one.
func (f *function) zip(salt string) ([]byte, error) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	add := func(name string, content []byte) error {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		out, err := w.CreateHeader(h)
		if err == nil {
			_, err = out.Write(content)
		}
		return err
	}
	for name, content := range f.files {
		if err := add(name, content); err != nil {
			return nil, err
		}
	}
	if salt != "" {
		if err := add("salt.txt", []byte(salt)); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// sameJSON says whether two texts are the same JSON value, however they are spaced.
func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
