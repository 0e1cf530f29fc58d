// Package sandbox is the wall around one instance: a process tree with its own view of the
// machine, its own limits and its own Runtime API endpoint.
//
// It knows processes, mounts, cgroups and sockets. It must not know what a function, an
// invocation or the Runtime API's protocol is: it is told which directories to mount, which
// program to run and how much of the machine that program may use.
//
// Implementations: sandbox/linux (namespaces, cgroups, seccomp) and sandbox/process (a plain
// process group: no isolation, for systems without those). sandboxtest holds the one
// behaviour suite both pass.
package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// ErrNoMemory says that the machine cannot give what the Config asks for now. Nothing ran.
var ErrNoMemory = errors.New("sandbox: not enough memory")

// ErrEntrypoint says that Config.Argv[0] does not exist in the sandbox or cannot be executed
// there. Nothing of the function ran. AWS calls it Runtime.InvalidEntrypoint.
var ErrEntrypoint = errors.New("sandbox: entry point cannot be executed")

// ErrNoEgress says that this machine cannot give an instance a network that reaches outside, and why. Nothing ran.
var ErrNoEgress = errors.New("sandbox: no network egress on this worker")

// Config describes one instance. All host paths are absolute and stay unchanged, and mounted
// read-only, for the life of the instance.
type Config struct {
	// ID is unique on this machine for all time: [a-z0-9-]{1,64}.
	ID string
	// CodeDir is the unpacked package, seen as /var/task and the working directory.
	CodeDir string
	// OptDir is the merged layers, seen as /opt; "" for an empty one.
	OptDir string
	// RuntimeDir is the runtime client, seen as /var/runtime; "" for an empty one.
	RuntimeDir string
	// ReadOnly are further host directories or files that the interpreter needs, seen at the same
	// path; what is under /usr, /lib, /lib64, /bin, /sbin and the public parts of /etc is there
	// anyway.
	ReadOnly []string
	// Argv is the program as it is seen inside, and its arguments.
	Argv []string
	// Env is the whole environment, without AWS_LAMBDA_RUNTIME_API, which the sandbox adds because
	// it alone knows the address.
	Env []string
	// MemoryBytes is the hard limit of the instance, swap counted.
	MemoryBytes int64
	// TmpBytes bounds /tmp.
	TmpBytes int64
	// CPUMilli is the share in thousandths of a CPU: the weight, and the hard cap when HardCPU.
	CPUMilli int
	HardCPU  bool
	// MaxProcesses bounds processes and threads.
	MaxProcesses int
	// Egress lets the instance reach outside, but not the host nor other instances. Without it the instance
	// has a loopback of its own and nothing else.
	Egress bool
}

// Exit says how an instance ended.
type Exit struct {
	// Code is the exit status of the program, or -1 when a signal ended it.
	Code int
	// Signal is the signal's name as the shell writes it ("killed", "segmentation fault"), or "".
	Signal string
	// OutOfMemory is set when the kernel ended a process of the instance at its memory limit.
	OutOfMemory bool
}

// Sandbox starts instances. Its methods may be called from many goroutines.
type Sandbox interface {
	// Start builds the wall and starts the program behind it. It returns when the program has been
	// executed or could not be: ErrEntrypoint, ErrNoMemory, ErrNoEgress, ctx's error, or what the system said.
	// After an error nothing of the instance is left. ctx bounds the start only, not the life.
	Start(ctx context.Context, config Config) (Process, error)
	// Name is "linux" or "process".
	Name() string
	// Missing says, one line each and for people, what this machine does not let the sandbox give.
	// Empty when all walls stand.
	Missing() []string
	// Close ends whatever is still running and removes what the sandbox made. Start fails then.
	Close() error
}

// Process is one started instance. Its methods may be called from many goroutines.
type Process interface {
	// Listener is the Runtime API's endpoint: it listens on 127.0.0.1 inside the instance's own
	// network namespace, is served by the caller, and is closed by Kill and when the program ends.
	Listener() net.Listener
	// Output is what the program writes to stdout and stderr, in the order written. It ends
	// (io.EOF) when every process of the instance is gone. The caller reads it until then.
	Output() Output
	// Kill ends every process of the instance, frozen ones included. It does not wait; Done does.
	Kill()
	// Done is closed when every process is gone and all that Start made has been removed.
	Done() <-chan struct{}
	// Exit is valid after Done.
	Exit() Exit
	// MemoryBytes is what the instance uses now, and MemoryPeakBytes the most it has used.
	// 0 where it cannot be told. They cost a file read each.
	MemoryBytes() int64
	MemoryPeakBytes() int64
}

// Output is the read end of an instance's stdout and stderr.
type Output interface {
	io.Reader
	// Buffered is how many bytes have been written by the instance and not been read yet. It lets
	// the caller know, after the instance answered, whether all it printed before has been read.
	Buffered() (int, error)
}

// Freezer is implemented by a Process that can be stopped as a whole and go on later.
type Freezer interface {
	// Freeze stops every process of the instance; it returns when the kernel has taken the order.
	Freeze() error
	// Thaw lets them go on.
	Thaw() error
}

// CPUMeter is implemented by a Process that may be able to tell what CPU it uses.
type CPUMeter interface {
	// CPUTime is what all processes of the instance have used since its start, the ended ones
	// included; 0 where it cannot be told. It costs a file read.
	CPUTime() time.Duration
	// CPUWait is for how long since its start at least one of them was ready to run and had no CPU; ok is
	// false where it cannot be told. It costs a file read.
	CPUWait() (wait time.Duration, ok bool)
}

// KillGrace is how long Done may take after Kill on a healthy machine; callers that wait longer
// report a fault of the platform.
const KillGrace = 5 * time.Second
