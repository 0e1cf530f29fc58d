package runtimes

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// parkedWord is the argument that makes a client wait for its function.
const parkedWord = "parked"

// ParkedArgv is Argv for a client that waits: it says so with one byte on its standard input, a socket,
// and then reads there the environment of its function, to the end, each variable ended by a zero
// byte. nil for the native runtimes.
func (r Runtime) ParkedArgv(memoryMB uint32) []string {
	if r.Native() {
		return nil
	}
	return append(r.Argv(memoryMB), parkedWord)
}

// atStart are the beginnings of variables that are read when a program starts, and not again: by the
// loader and the C library, and by each interpreter.
var (
	atStart       = []string{"LD_", "LANG", "LC_", "LOCPATH", "GLIBC_", "MALLOC_", "GCONV_", "RES_", "LOCALDOMAIN"}
	atPythonStart = []string{"PYTHON", "OPENSSL_"}
	atNodeStart   = []string{"NODE_", "UV_", "OPENSSL_", "SSL_", "ICU_", "V8_"}
	// notAtStart are exceptions from these.
	notAtStart = []string{"NODE_ENV"}
)

// Adopts says whether a client that waits can still take over the variables that the owner of a
// function has set. Where it says no, only a client of the function's own will do what they ask for.
func (r Runtime) Adopts(environment map[string]string) bool {
	own := atNodeStart
	switch {
	case r.Native():
		return true
	case r.python():
		own = atPythonStart
	}
	for name := range environment {
		begins := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		if (slices.ContainsFunc(atStart, begins) || slices.ContainsFunc(own, begins)) && !slices.Contains(notAtStart, name) {
			return false
		}
	}
	return true
}

// maxEntries bounds how many names of a folder are looked at.
const maxEntries = 10_000

// Shadows says whether the folder, one that Python looks for modules in, has a module of the name of one
// that a client has imported while it waited: the function would get the wrong one.
func (r Runtime) Shadows(dir string) (bool, error) {
	if !r.python() {
		return false, nil // the others' own modules cannot be shadowed
	}
	f, err := os.Open(dir)
	if err != nil {
		return false, fmt.Errorf("runtimes: %w", err)
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEntries)
	if err != nil && len(names) > 0 || len(names) == maxEntries {
		return true, nil
	}
	for _, name := range names {
		// json, json.py, json.pyc, json.cpython-311-x86_64-linux-gnu.so
		if module, _, _ := strings.Cut(name, "."); r.imported[module] {
			return true, nil
		}
	}
	return false, nil
}
