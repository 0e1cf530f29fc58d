// Package pool keeps the instances of the incarnations that a worker hosts: it takes calls off
// their queues, starts an instance because it holds a call for it, keeps instances warm, and ends
// them when nobody calls any more.
//
// It must not know how an instance is isolated, what the Runtime API says, or what a call costs:
// it asks a Launcher for instances and hands a Journal what each attempt used.
package pool

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/doze-run/doze/bus"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/instance"
	"github.com/doze-run/doze/worker/meter"
)

// ErrNoMemory is what a Launcher answers when the worker has no memory to spare for one more
// instance now.
var ErrNoMemory = errors.New("pool: no memory for another instance")

// ErrNoEgress is what a Launcher answers when the function is to reach outside and nothing here does.
var ErrNoEgress = errors.New("pool: no network egress")

// Instance is what the pool asks of an instance.
type Instance interface {
	// Invoke hands it one event; Done follows. An error means that the event was not handed over
	// and never will be.
	Invoke(*instance.Event) error
	// Stop ends it; Ended follows.
	Stop()
	// Release gives back what the launcher reserved; called once, after Ended.
	Release()
	// MemoryBytes is what it uses now, for people.
	MemoryBytes() int64
	// CPUTime is what it has used so far; 0 when that cannot be told.
	CPUTime() time.Duration
	// CPUWait is for how long it has been ready to run so far and had no CPU; ok is false when that
	// cannot be told.
	CPUWait() (wait time.Duration, ok bool)
}

// Launcher starts instances. Launch returns when the instance has begun to start or could not:
// ErrNoMemory, or what the platform's fault is. The handler hears of the rest; it may hear before
// Launch returns, and only after the Launcher has filled in the start's Origin.
type Launcher interface {
	Launch(ctx context.Context, start *Start, handler instance.Handler) (Instance, error)
}

// Start is one instance to be started.
type Start struct {
	Spec *dozev1.FunctionSpec
	// ID is the instance's.
	ID string
	// RequestID is the call that the start is for, in whose name an init that fails is logged; "" when
	// that call has found another instance.
	RequestID string
	// Origin is what the Launcher made it of.
	Origin Origin
}

// Origin is what an instance was made of.
type Origin struct {
	// Parked is Hit, Miss, or Off where nothing is parked.
	Parked string
	// CodeCached says that the package was unpacked on this worker already.
	CodeCached bool
}

// What a start found parked.
const (
	Hit  = "hit"
	Miss = "miss"
	Off  = "off"
)

// Journal takes the usage of each attempt before its answer leaves.
type Journal interface {
	// Reserve says whether the next record will find room. While it does not, no call is taken.
	Reserve() error
	Append(*meter.Record) (uint64, error)
}

// Config is what a Pool is made of.
type Config struct {
	// Worker is this worker's name on the bus.
	Worker string
	Mesh   *bus.Mesh
	// Launcher and Journal must be safe for use by many goroutines.
	Launcher Launcher
	Journal  Journal
	// IdleTimeout is how long an instance stays warm after its last call.
	IdleTimeout time.Duration
	// ConcurrentStarts bounds how many instances start at once; more would only slow one another.
	ConcurrentStarts int
	Events           Events
	Logger           *slog.Logger
}

// Pool is a worker's incarnations. Its methods may be called from many goroutines.
type Pool struct {
	config Config
	starts chan struct{}
	load   *cpuLoad

	mu      sync.Mutex
	groups  map[bus.QueueID]*group
	hosting chan struct{} // has one when there may be groups
	closed  bool
	stop    context.CancelFunc
	ctx     context.Context
	running sync.WaitGroup // launches, retirements, the ticker
}

// tick is how often a pool looks at what only time changes: idle instances, held calls.
const tick = 5 * time.Millisecond

// New starts a pool. Close ends it.
func New(config Config) *Pool {
	config.Events.fill()
	ctx, stop := context.WithCancel(context.Background())
	p := &Pool{
		config: config, starts: make(chan struct{}, config.ConcurrentStarts), load: newCPULoad(),
		groups: map[bus.QueueID]*group{}, hosting: make(chan struct{}, 1), ctx: ctx, stop: stop,
	}
	p.running.Go(p.tend)
	return p
}

// Host takes in an incarnation whose calls wait at a home: it parks a pull for it there until it has
// been idle. It is idempotent.
func (p *Pool) Host(ctx context.Context, home string, spec *dozev1.FunctionSpec) error {
	id := bus.NewQueueID(spec.Account, spec.Function, spec.Version, spec.Revision)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("pool: this worker is draining")
	}
	if g := p.groups[id]; g != nil {
		g.bound(int(spec.GetReservedConcurrency()))
		return g.move(ctx, home)
	}
	g, err := newGroup(ctx, p, home, id, spec)
	if err != nil {
		return err
	}
	p.groups[id] = g
	select {
	case p.hosting <- struct{}{}:
	default:
	}
	// New code or configuration of the same version: the old instances finish what they run, and end.
	p.retire(spec.Account, spec.Function, spec.Version, spec.Revision)
	return nil
}

// Retire lets the instances of a function's version end when they have finished, but for those of
// one revision. An empty version stands for all, an empty revision for none.
func (p *Pool) Retire(account, function, version, except string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retire(account, function, version, except)
}

func (p *Pool) retire(account, function, version, except string) {
	for _, g := range p.groups {
		s := g.spec
		if s.Account == account && s.Function == function && (version == "" || s.Version == version) && (except == "" || s.Revision != except) {
			g.supersede()
		}
	}
}

// Hosted is what the worker's report says of each incarnation.
func (p *Pool) Hosted() []*dozev1.Hosted {
	var all []*dozev1.Hosted
	for _, g := range p.snapshot() {
		instances, busy := g.counts()
		all = append(all, &dozev1.Hosted{Queue: string(g.id), Instances: uint32(instances), Busy: uint32(busy)})
	}
	return all
}

// States is how many instances there are, by what they do: as `doze ps` names it.
type States struct{ Starting, Idle, Busy int }

// States counts the instances.
func (p *Pool) States() (all States) {
	for _, g := range p.snapshot() {
		g.mu.Lock()
		for _, m := range g.members {
			switch m.state() {
			case starting:
				all.Starting++
			case idle:
				all.Idle++
			default:
				all.Busy++
			}
		}
		g.mu.Unlock()
	}
	return all
}

// Instances lists the instances of an account, for people.
func (p *Pool) Instances(account string) []*dozev1.InstanceInfo {
	var all []*dozev1.InstanceInfo
	for _, g := range p.snapshot() {
		if g.spec.Account == account {
			all = append(all, g.infos()...)
		}
	}
	return all
}

// Measure asks what the instances use that ran since the last time: admission goes by it.
func (p *Pool) Measure() {
	for _, g := range p.snapshot() {
		g.measure()
	}
}

// EndIdle ends the instance of any incarnation that has been idle longest, to make room; false
// when none is idle.
func (p *Pool) EndIdle(except bus.QueueID) bool {
	var oldest *member
	var since time.Time
	for _, g := range p.snapshot() {
		if g.id == except {
			continue
		}
		if m, idle := g.longestIdle(); m != nil && (oldest == nil || idle.Before(since)) {
			oldest, since = m, idle
		}
	}
	return oldest != nil && oldest.group.retire(oldest)
}

// Close takes no more calls, lets those that run end until ctx does, and ends every instance. It
// returns when all are gone.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	var group sync.WaitGroup
	for _, g := range p.snapshot() {
		group.Go(func() { g.close(ctx) })
	}
	group.Wait()
	p.stop()
	p.running.Wait()
	return nil
}

func (p *Pool) snapshot() []*group {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*group, 0, len(p.groups))
	for _, g := range p.groups {
		all = append(all, g)
	}
	return all
}

// forget takes a group out that has nothing left.
func (p *Pool) forget(g *group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.groups[g.id] == g {
		delete(p.groups, g.id)
	}
}

// tend looks after the groups every tick, and rests while there are none.
func (p *Pool) tend() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		groups := p.snapshot()
		if len(groups) == 0 {
			ticker.Stop()
			select {
			case <-p.ctx.Done():
				return
			case <-p.hosting:
			}
			ticker.Reset(tick)
			continue
		}
		now := time.Now()
		for _, g := range groups {
			g.tend(now)
		}
		select {
		case <-p.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
