// Package runtimes knows which programs can run a function on this machine: the native runtimes,
// and the Python and Node.js interpreters that an unprivileged process can execute. It carries
// Doze's own runtime clients for the latter two.
//
// It knows interpreters and how they are started. It must not know sandboxes, instances or the
// Runtime API's server side.
package runtimes

import (
	"strconv"
	"strings"
)

// Where things are seen inside an instance.
const (
	TaskRoot    = "/var/task"
	OptRoot     = "/opt"
	RuntimeRoot = "/var/runtime"
)

// Runtime is one runtime that this machine can run.
type Runtime struct {
	// Name is AWS's: "python3.11", "nodejs20.x", "provided.al2023".
	Name string
	// Path is the interpreter, links resolved; "" for provided.*.
	Path string
	// Version is the interpreter's own ("3.11.2"); "" for provided.*.
	Version string
	// ReadOnly are host directories the interpreter needs besides /usr, /lib*, /bin and /sbin.
	ReadOnly []string

	// imported are the modules that a parked Python has imported, by name; see Shadows.
	imported map[string]bool
}

// Native says that the function brings its own program (provided.*).
func (r Runtime) Native() bool { return r.Path == "" }

func (r Runtime) python() bool { return strings.HasPrefix(r.Name, "python") }

// Label is the runtime as the INIT_START line names it.
func (r Runtime) Label() string {
	if r.Native() {
		return r.Name
	}
	return r.Name + " (" + r.Version + ")"
}

// Argv is the program of an instance with that much memory, as seen inside; nil for the native
// runtimes, whose program is the function's bootstrap.
func (r Runtime) Argv(memoryMB uint32) []string {
	switch {
	case r.Native():
		return nil
	case r.python():
		// -S: what the site module adds is the host's (dist-packages, .pth files, user folders) and
		// costs 2 ms; the client adds what functions use of it.
		return []string{r.Path, "-S", RuntimeRoot + "/" + r.Name + "/" + pythonClient + "c"}
	default:
		// V8 sizes its heap by the machine's memory unless it is told.
		heap := max(32, int(memoryMB)*9/10)
		return []string{r.Path, "--max-old-space-size=" + strconv.Itoa(heap), RuntimeRoot + "/nodejs/" + nodeClient}
	}
}

// Environment is what the interpreter needs in its environment unless the owner set it.
func (r Runtime) Environment() map[string]string {
	if r.Native() || r.python() {
		return nil
	}
	major, _, _ := strings.Cut(r.Version, ".")
	return map[string]string{
		"NODE_PATH": "/opt/nodejs/node" + major + "/node_modules:/opt/nodejs/node_modules:" + RuntimeRoot + "/node_modules:" + RuntimeRoot + ":" + TaskRoot,
	}
}
