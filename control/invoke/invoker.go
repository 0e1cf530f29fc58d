package invoke

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// queueLimit is how long a call may wait for an instance. With the slack of an answer it stays
	// within the promise: every caller has an answer within the function's timeout plus five
	// seconds (and the time of an init, when one runs, as on AWS).
	queueLimit = 4 * time.Second
	// startLimit is how long a call may wait from when an instance is being started for it: AWS's
	// ten seconds for an init, and room to make the sandbox and tell.
	startLimit = 12 * time.Second
	// awakeFor is how long after a claim a queue is taken to be hosted still: no hint is sent with
	// the call, and the asker's own watch finds it when that is wrong.
	awakeFor = 500 * time.Millisecond
	// keepKnown is how many function versions are remembered in any case, forgetAfter for how long
	// since their last call the others are.
	keepKnown   = 1024
	forgetAfter = time.Minute
	// retryAfter is the hint with a refusal for lack of capacity.
	retryAfter = time.Second
	// leastQueue is how long a call may wait for an instance that has waited for its slot already.
	leastQueue = time.Second
	// overrun is how long, beside its timeout, a handler may be there of which nobody knows: it was begun
	// late, and is killed at its end.
	overrun = bus.BeginLimit + time.Second
)

// Asker publishes a call and brings its answer; package bus implements it.
type Asker interface {
	Ask(queue bus.QueueID, call *bus.Call, limits bus.AskLimits, tag any) *bus.Answer
}

// Workers is what the invoker asks of placement.
type Workers interface {
	bus.Waker
	// Runs says whether any worker has the runtime.
	Runs(runtime string) bool
	Runtimes() []*dozev1.Runtime
}

// Slots is reserved concurrency where other control nodes take calls too; package slots implements it.
type Slots interface {
	// Take gets the right to one execution of a function, of which the key is the same on all nodes. It is
	// one of at most limit, each of at most run.
	Take(account, function, key string, limit int, run time.Duration) (Slot, error)
}

// Slot is the right to one execution. End gives it back, once, after a time in which the execution may go
// on though nobody hears of it.
type Slot interface {
	bus.Permit
	End(after time.Duration)
}

// Acceptor stores events durably; package delivery implements it.
type Acceptor interface {
	Accept(ctx context.Context, event *Event) error
}

// Config is what an Invoker is made of.
type Config struct {
	Asker    Asker
	Workers  Workers
	Acceptor Acceptor
	// Slots, where there are other control nodes, has the reserved concurrency; nil: this node counts for all.
	Slots Slots
	// Unreserved is the account's concurrency that no function has reserved.
	Unreserved func(account string) int
	// ARN makes a function's unqualified ARN.
	ARN func(account, name string) string
	// Metrics counts the calls.
	Metrics *Metrics
	// Egress is whether a function of which nothing else was said reaches outside.
	Egress bool
}

// Invoker runs calls and accepts events. Its methods may be called from many goroutines.
type Invoker struct {
	config    Config
	admission *admission
	// known caches what every call of a function version needs, by versionKey. When it has grown to
	// forgetAt entries, those that were not called of late are dropped: functions come and go.
	known    sync.Map
	growing  sync.Mutex // for the rest: what is called has an entry and takes no lock
	entries  int
	forgetAt int
}

// New returns an Invoker.
func New(config Config) *Invoker {
	return &Invoker{config: config, admission: newAdmission(config.Unreserved), forgetAt: keepKnown}
}

type versionKey struct{ account, name, version string }

// incarnation is one function version at one revision, as the invoke path needs it. It is the tag
// of its wakes.
type incarnation struct {
	function *registry.Function
	version  *registry.Version
	arn      string
	queue    bus.QueueID
	limits   bus.AskLimits
	calls    *calls
	egress   bool
	claimed  atomic.Int64 // Unix nanoseconds
}

// Spec implements placement.Specer.
func (n *incarnation) Spec() *dozev1.FunctionSpec {
	c := &n.version.Config
	spec := &dozev1.FunctionSpec{
		Account: n.function.Account, Function: n.function.Name, Version: n.version.Version,
		Revision: n.version.Incarnation, Arn: n.arn, Runtime: c.Runtime, Handler: c.Handler,
		MemoryMb: uint32(c.MemorySize), TimeoutSeconds: uint32(c.Timeout), EphemeralStorageMb: uint32(c.EphemeralSize),
		Environment: c.Environment, CodeSha256: n.version.Code.SHA256, CodeSize: n.version.Code.Size,
		LogGroup: c.LogGroup, LogFormat: c.LogFormat, Egress: n.egress,
	}
	if n.function.Reserved != nil {
		reserved := uint32(*n.function.Reserved)
		spec.ReservedConcurrency = &reserved
	}
	return spec
}

func (i *Invoker) incarnation(f *registry.Function, v *registry.Version) *incarnation {
	k := versionKey{f.Account, f.Name, v.Version}
	if known, ok := i.known.Load(k); ok {
		if n := known.(*incarnation); n.function == f && n.version == v {
			return n
		}
	}
	n := &incarnation{
		function: f, version: v, arn: i.config.ARN(f.Account, f.Name), egress: v.Config.Egress(i.config.Egress),
		queue:  bus.NewQueueID(f.Account, f.Name, v.Version, v.Incarnation),
		limits: bus.AskLimits{Queue: queueLimit, Start: startLimit, Run: time.Duration(v.Config.Timeout) * time.Second},
		calls:  i.config.Metrics.of(v.Config.Runtime),
	}
	i.growing.Lock()
	defer i.growing.Unlock()
	if known, ok := i.known.Load(k); ok {
		if old := known.(*incarnation); old.queue == n.queue {
			n.claimed.Store(old.claimed.Load())
		}
	} else if i.entries++; i.entries > i.forgetAt {
		i.forget(time.Now())
	}
	i.known.Store(k, n)
	return n
}

// forget drops the entries of what was not called for a while. i.growing is held.
func (i *Invoker) forget(now time.Time) {
	before := now.Add(-forgetAfter).UnixNano()
	i.entries = 1 // the one that is being made
	i.known.Range(func(k, known any) bool {
		if known.(*incarnation).claimed.Load() < before {
			i.known.Delete(k)
		} else {
			i.entries++
		}
		return true
	})
	i.forgetAt = max(keepKnown, 2*i.entries)
}

// Invoke runs one call to its end, whether or not ctx ends before: what runs is accounted for.
func (i *Invoker) Invoke(_ context.Context, call *Call) (*Answer, error) {
	if !i.config.Workers.Runs(call.Version.Config.Runtime) {
		return nil, i.noRuntime(call.Version.Config.Runtime)
	}
	n := i.incarnation(call.Function, call.Version)
	begun := time.Now()
	limits := n.limits
	var release func()
	var slot Slot
	var err error
	if i.config.Slots != nil && call.Function.Reserved != nil {
		var taken Slot
		if taken, err = i.slot(n); err == nil {
			limits.Permit, slot = taken, taken
			limits.Queue = max(limits.Queue-time.Since(begun), leastQueue)
			release = func() { taken.End(0) }
		}
	} else {
		release, err = i.admission.take(call.Function)
	}
	if err != nil {
		n.calls.refused(err)
		return nil, err
	}
	defer func() { release() }()
	message := bus.Call{
		ID: call.RequestID, InvokedARN: call.InvokedARN, TraceID: call.TraceID,
		ClientContext: call.ClientContext, Tail: call.Tail, Body: call.Payload,
	}
	for {
		if time.Now().UnixNano()-n.claimed.Load() > int64(awakeFor) {
			i.config.Workers.Wake(n.queue, n)
		}
		answer := i.config.Asker.Ask(n.queue, &message, limits, n)
		if answer.Fault == nil {
			now := time.Now()
			n.claimed.Store(now.UnixNano())
			translated := translate(call, answer)
			n.calls.answered(translated, now.Sub(begun))
			return translated, nil
		}
		// A worker that drains gives back what it had claimed and not begun: it is asked anew.
		if answer.Fault.Code == bus.FaultWorkerLost && !answer.Fault.Ran && time.Since(begun) < queueLimit {
			continue
		}
		// The worker is given up, but whether the handler has ended nobody knows: until it must have, its
		// place is not another's.
		switch {
		case slot != nil && answer.Fault.Ran:
			slot.End(answer.Fault.Left + overrun)
			release = func() {}
		case answer.Fault.Left > 0 && call.Function.Reserved != nil:
			end := release
			time.AfterFunc(answer.Fault.Left, end)
			release = func() {}
		}
		err := fault(call, answer.Fault)
		n.calls.refused(err)
		return nil, err
	}
}

// slot gets the right to run a call of a function with a reservation.
func (i *Invoker) slot(n *incarnation) (Slot, error) {
	limit := *n.function.Reserved
	if limit == 0 {
		return nil, &Throttled{Reason: ReasonReserved}
	}
	slot, err := i.config.Slots.Take(n.function.Account, n.function.Name, n.queue.Function(), limit, n.limits.Run)
	if err != nil {
		return nil, &Throttled{Reason: ReasonReserved}
	}
	return slot, nil
}

// Enqueue stores an event durably.
func (i *Invoker) Enqueue(ctx context.Context, event *Event) error {
	err := i.config.Acceptor.Accept(ctx, event)
	if err == nil {
		i.config.Metrics.accepted.Inc()
	}
	return err
}

func translate(call *Call, a *bus.Answer) *Answer {
	return &Answer{
		ExecutedVersion: call.Version.Version, FunctionError: a.FunctionError, Payload: a.Payload, LogTail: a.LogTail,
		Cold: a.Cold, Outcome: a.Outcome, Instance: a.Instance,
		Queue: a.Queue, Claim: a.Claim, Mount: a.Mount, Init: a.Init, Handler: a.Handler,
	}
}

func fault(call *Call, f *bus.Fault) error {
	switch f.Code {
	case bus.FaultQueueFull, bus.FaultNoCapacity:
		reason := ReasonConcurrent
		if call.Function.Reserved != nil {
			reason = ReasonReserved
		}
		return &Throttled{Reason: reason, RetryAfter: retryAfter}
	case bus.FaultNoEgress:
		return &NoEgress{Err: errors.New(f.Message)}
	default:
		return &Unavailable{Ran: f.Ran, Err: errors.New(f.Message)}
	}
}

func (i *Invoker) noRuntime(runtime string) error {
	var names []string
	for _, r := range i.config.Workers.Runtimes() {
		names = append(names, r.Name)
	}
	return &InvalidRuntime{Message: fmt.Sprintf(
		"No worker can run the runtime %s. The runtimes of this cluster are: %s. Install the interpreter on a worker and restart it, or update the function's runtime.",
		runtime, strings.Join(names, ", "))}
}
