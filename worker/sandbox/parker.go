package sandbox

import "context"

// Parker is implemented by a Sandbox that can build the wall before it is known for whom.
type Parker interface {
	// Park makes a sandbox that waits. With an Argv it returns once the program in it has said that it
	// waits too. It fails as Start does; after an error nothing is left.
	Park(ctx context.Context, config ParkConfig) (Parked, error)
}

// Parked is a sandbox without a function. It is used once, by Start, or not at all. Its methods may be
// called from many goroutines.
type Parked interface {
	// Start gives it to a function: its limits are set, its directories mounted, and its program executed
	// or, where one waits already, handed config.Env. It is as Sandbox.Start otherwise, but for
	// config.Argv, RuntimeDir and ReadOnly: where Park got them they are what Park got. A second Start
	// fails, and so does one after Discard, and one with another Egress.
	Start(ctx context.Context, config Config) (Process, error)
	// Discard ends it. It does not wait; Done does. After Start it does nothing.
	Discard()
	// Done is closed when nothing of it is left, whatever ended it; after Start, with the Process's.
	Done() <-chan struct{}
	// MemoryBytes is what it uses now; it costs a file read.
	MemoryBytes() int64
}

// ParkConfig describes a parked sandbox. Paths are as in Config.
type ParkConfig struct {
	// ID is unique on this machine for all time, as Config.ID, and not the one it will be started with.
	ID string
	// RuntimeDir and ReadOnly are mounted now.
	RuntimeDir string
	ReadOnly   []string
	// Argv is the program that waits, nil for none. It runs unprivileged, with all walls, and must be the
	// platform's own until it is handed over. Its stdin is a stream socket. It writes one byte to say that
	// it waits, then reads to the end of the stream the environment of its function, each variable
	// ended by a zero byte; then it gives its stdin up for /dev/null.
	Argv []string
	// Env is the program's environment until then.
	Env []string
	// MemoryBytes, TmpBytes, MaxProcesses and CPUMilli are what it will probably be started with: a
	// Start with others takes a little longer. While it is parked it has next to no CPU that others want.
	MemoryBytes, TmpBytes  int64
	MaxProcesses, CPUMilli int
	HardCPU                bool
	// Egress is as in Config: the network is there from the beginning.
	Egress bool
}

// Check refuses a ParkConfig that no sandbox can carry out. Every Park begins with it.
func (c *ParkConfig) Check() error {
	argv := c.Argv
	if argv == nil {
		argv = []string{"/none"}
	}
	like := Config{
		ID: c.ID, CodeDir: "/none", RuntimeDir: c.RuntimeDir, ReadOnly: c.ReadOnly, Argv: argv, Env: c.Env,
		MemoryBytes: c.MemoryBytes, TmpBytes: c.TmpBytes, MaxProcesses: c.MaxProcesses, CPUMilli: c.CPUMilli,
	}
	return like.Check()
}
