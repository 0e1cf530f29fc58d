package instance

import (
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/sandbox"
)

// ID is the instance's id, as given in Launch.
func (i *Instance) ID() string { return i.launch.ID }

// Spec is the incarnation it runs. It must not be changed.
func (i *Instance) Spec() *dozev1.FunctionSpec { return i.launch.Spec }

// LogStream is the name of its log stream.
func (i *Instance) LogStream() string { return i.stream }

// CreatedAt is when Start was called.
func (i *Instance) CreatedAt() time.Time { return i.created }

// Calls is how many events it was given.
func (i *Instance) Calls() int64 { return i.calls.Load() }

// State is where it is in its life.
func (i *Instance) State() State {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.state
}

// IdleFor is how long it has been idle; 0 when it is not.
func (i *Instance) IdleFor() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.state != Idle {
		return 0
	}
	return time.Since(i.since)
}

// MemoryBytes is what it uses now; 0 where that cannot be told. It costs a file read.
func (i *Instance) MemoryBytes() int64 {
	if i.process == nil {
		return 0
	}
	return i.process.MemoryBytes()
}

// MemoryPeakBytes is the most it has used; 0 where that cannot be told. It costs a file read.
func (i *Instance) MemoryPeakBytes() int64 {
	if i.process == nil {
		return 0
	}
	return i.process.MemoryPeakBytes()
}

// Info is the instance as `doze ps` shows it. It costs a file read.
func (i *Instance) Info() *dozev1.InstanceInfo {
	s := i.launch.Spec
	calls := i.Calls()
	return &dozev1.InstanceInfo{
		Id: i.launch.ID, Account: s.Account, Function: s.Function, Version: s.Version,
		State: i.State().Public(), CreatedAtMs: i.created.UnixMilli(), IdleMs: i.IdleFor().Milliseconds(),
		MemoryBytes: i.MemoryBytes(), Calls: calls, Cold: calls <= 1,
	}
}

// CPUWait is for how long the instance's processes have waited for a CPU so far; ok is false where the sandbox
// cannot tell.
func (i *Instance) CPUWait() (wait time.Duration, ok bool) {
	if meter, is := i.process.(sandbox.CPUMeter); is {
		return meter.CPUWait()
	}
	return 0, false
}

// CPUTime is what the instance's processes have used so far; 0 where the sandbox cannot tell.
func (i *Instance) CPUTime() time.Duration {
	if meter, ok := i.process.(sandbox.CPUMeter); ok {
		return meter.CPUTime()
	}
	return 0
}
