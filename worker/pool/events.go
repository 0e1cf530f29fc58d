package pool

import (
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/worker/instance"
)

// Events tells of what happens to instances, for logs and metrics. Its functions are called from the
// pool's own goroutines, several at once, and must not block; nil ones are not called. Nothing is
// told of a warm call.
type Events struct {
	InstanceStarted func(InstanceStarted)
	StartFailed     func(StartFailed)
	InstanceEnded   func(InstanceEnded)
	ColdCall        func(ColdCall)
}

// About is the instance that an event is about.
type About struct {
	Account, Function, Version, Runtime, Instance string
}

// InstanceStarted: an instance has asked for its first event.
type InstanceStarted struct {
	About
	// RequestID is the call that it was started for, "" when another instance took that.
	RequestID string
	Origin
	// Mount is what making it took, Init what its runtime and the function's init took.
	Mount, Init time.Duration
}

// StartFailed: an instance could not be made. What the function did wrong in its init is no such failure,
// but a ColdCall with its Outcome.
type StartFailed struct {
	About
	RequestID string
	// NoMemory: the worker is full; the call goes to another worker or waits.
	NoMemory bool
	Err      error
}

// InstanceEnded: every process of an instance is gone.
type InstanceEnded struct {
	About
	Calls int
	Lived time.Duration
	// Asked says that the pool ended it, because nobody needed it any more; else it ended by itself or for
	// what it did.
	Asked bool
}

// ColdCall: a call that had waited for an instance to start has been answered.
type ColdCall struct {
	About
	RequestID string
	Origin
	bus.Phases
	Outcome instance.Outcome
}

// fill makes every function one that can be called.
func (e *Events) fill() { *e = Tee(*e) }

// Tee tells several listeners, in their order.
func Tee(all ...Events) Events {
	return Events{
		InstanceStarted: each(all, func(e Events) func(InstanceStarted) { return e.InstanceStarted }),
		StartFailed:     each(all, func(e Events) func(StartFailed) { return e.StartFailed }),
		InstanceEnded:   each(all, func(e Events) func(InstanceEnded) { return e.InstanceEnded }),
		ColdCall:        each(all, func(e Events) func(ColdCall) { return e.ColdCall }),
	}
}

func each[T any](all []Events, of func(Events) func(T)) func(T) {
	var told []func(T)
	for _, e := range all {
		if f := of(e); f != nil {
			told = append(told, f)
		}
	}
	return func(event T) {
		for _, f := range told {
			f(event)
		}
	}
}

func (m *member) about() About {
	s := m.group.spec
	return About{Account: s.Account, Function: s.Function, Version: s.Version, Runtime: s.Runtime, Instance: m.start.ID}
}
