// Package parked keeps sandboxes that wait for a function: a bounded stock of each kind, filled in the
// background, so that a cold start finds its walls built and its interpreter up. A parked sandbox is
// used once; a start that finds none is made from nothing and is only slower.
//
// It knows kinds, numbers and memory. It must not know what a runtime, an instance or a call is.
package parked

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/doze-run/doze/worker/sandbox"
)

const (
	// perKind bounds the stock of one kind, in sandboxes.
	perKind = 16
	// maxKinds bounds how many kinds are remembered.
	maxKinds = 256
	// settle is how long after a start nothing is parked: what has just been started needs the CPU now.
	settle = 20 * time.Millisecond
	// patience is how long starts that follow one another can put it off.
	patience = 200 * time.Millisecond
	// idleShare and busyShare bound how much of one CPU's time parking takes, while the machine has CPU to
	// spare and while it has not.
	idleShare, busyShare = 0.5, 0.25
	// parkLimit bounds one parking.
	parkLimit = 10 * time.Second
	// firstBackoff and lastBackoff are the waits after failures of a kind, each twice the one before.
	firstBackoff, lastBackoff = time.Second, time.Minute
	// grace is how long a stock is kept when the last function of its kind has gone: who replaces a function
	// deletes the old one first.
	grace = 10 * time.Second
	// lookEvery is how often a stock is looked at that nothing happens to.
	lookEvery = 5 * time.Second
)

// Kind is what parked sandboxes have in common.
type Kind struct {
	// Name says which it is, for people and as its key.
	Name string
	// Config is what they are parked with; the pool gives each an ID.
	Config sandbox.ParkConfig
}

// Reservation is the memory that one parked sandbox counts for.
type Reservation interface {
	Observe(bytes int64)
	Release()
}

// Config is what a Pool is made of.
type Config struct {
	Parker sandbox.Parker
	// Reserve sets memory aside for a sandbox of a kind, or says that there is none.
	Reserve func(kind string, limitBytes int64) (Reservation, error)
	// Spare says whether the machine has CPU that nobody else wants.
	Spare func() bool
	// MaxBytes bounds what all parked sandboxes together use.
	MaxBytes int64
	Logger   *slog.Logger
}

// Pool is a worker's parked sandboxes. Its methods may be called from many goroutines.
type Pool struct {
	config Config
	serial string

	mu      sync.Mutex
	kinds   map[string]*kind
	made    int // for ids
	bytes   int64
	started time.Time // of the last Start
	closed  bool

	wake    chan struct{}
	stop    context.CancelFunc
	running sync.WaitGroup
}

// kind is the stock of one Kind.
type kind struct {
	Kind
	stock    []*spot   // the one parked last is used first: its memory is the warmest
	wanted   bool      // a function has it
	until    time.Time // and so it is kept as if one had, when wanted has ended
	demand   demand
	lastUsed time.Time
	hits     int64
	misses   int64
	size     int64 // of the last one that was parked, in bytes
	failures int
	retry    time.Time
}

// spot is one parked sandbox.
type spot struct {
	sandbox.Parked
	memory Reservation
	bytes  int64
}

// New starts a pool that is empty until kinds are wanted. Close ends it.
func New(config Config) *Pool {
	ctx, stop := context.WithCancel(context.Background())
	p := &Pool{config: config, serial: uuid.NewString()[:8], kinds: map[string]*kind{}, wake: make(chan struct{}, 1), stop: stop}
	p.running.Go(func() { p.fill(ctx) })
	return p
}

// Want says which kinds functions have. Of each at least one is kept parked, as far as memory goes;
// others are given up.
func (p *Pool) Want(kinds []Kind) {
	p.mu.Lock()
	now := time.Now()
	for _, k := range p.kinds {
		if k.wanted {
			k.wanted, k.until = false, now.Add(grace)
		}
	}
	for _, k := range kinds {
		if own := p.kind(k); own != nil {
			own.wanted = true
		}
	}
	p.mu.Unlock()
	p.ring()
}

// Use says that a function of a kind will probably be called.
func (p *Pool) Use(k Kind) {
	p.mu.Lock()
	own := p.kind(k)
	ring := own != nil && !own.wanted
	if own != nil {
		own.Kind, own.wanted = k, true
	}
	p.mu.Unlock()
	if ring {
		p.ring()
	}
}

// kind finds or makes the stock of a kind; nil when there are too many. mu is held.
func (p *Pool) kind(k Kind) *kind {
	own := p.kinds[k.Name]
	if own == nil {
		if len(p.kinds) >= maxKinds || p.closed {
			return nil
		}
		own = &kind{Kind: k}
		p.kinds[k.Name] = own
	}
	return own
}

// Start makes an instance of a parked sandbox of its kind, and says so, or of nothing with start.
// Only an error of the function's own comes from a parked sandbox: else there is another way.
func (p *Pool) Start(ctx context.Context, k Kind, config sandbox.Config, start func(context.Context, sandbox.Config) (sandbox.Process, error)) (_ sandbox.Process, hit bool, err error) {
	defer p.ring() // not before: the CPU is the instance's now
	if s := p.take(k); s != nil {
		process, err := s.Start(ctx, config)
		s.memory.Release()
		if err == nil || own(err) || ctx.Err() != nil {
			return process, true, err
		}
		p.config.Logger.Warn("a parked sandbox could not be started", "kind", k.Name, "err", err)
		p.missed(k.Name)
	}
	process, err := start(ctx, config)
	return process, false, err
}

// take takes one out of the stock, and counts.
func (p *Pool) take(k Kind) *spot {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = now
	own := p.kind(k)
	if own == nil {
		return nil
	}
	own.Kind, own.wanted, own.lastUsed = k, true, now // what is parked next is like what was used last
	own.demand.count(now)
	for len(own.stock) > 0 {
		s := own.stock[len(own.stock)-1]
		own.stock = own.stock[:len(own.stock)-1]
		p.bytes -= s.bytes
		select {
		case <-s.Done(): // it has died
			p.discard(s)
			continue
		default:
		}
		own.hits++
		return s
	}
	own.misses++
	return nil
}

// missed turns a hit into a miss.
func (p *Pool) missed(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if own := p.kinds[name]; own != nil {
		own.hits--
		own.misses++
	}
}

// Missed counts a start of a kind that could not be made of a parked sandbox.
func (p *Pool) Missed(k Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = time.Now()
	if own := p.kinds[k.Name]; own != nil {
		own.misses++
	}
}

// Shrink gives all parked sandboxes up, because an instance needs the memory. It says whether there were any.
func (p *Pool) Shrink() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	any := false
	now := time.Now()
	for _, k := range p.kinds {
		any = any || len(k.stock) > 0
		p.drop(k, len(k.stock))
		k.retry = now.Add(lastBackoff)
	}
	return any
}

// drop gives up the n oldest of a stock. mu is held.
func (p *Pool) drop(k *kind, n int) {
	for _, s := range k.stock[:n] {
		p.bytes -= s.bytes
		p.discard(s)
	}
	k.stock = slices.Delete(k.stock, 0, n)
}

func (p *Pool) discard(s *spot) {
	s.Discard()
	s.memory.Release()
}

func (p *Pool) ring() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Close gives up what is parked and waits until it is gone, or for ctx.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	var all []*spot
	for _, k := range p.kinds {
		all = append(all, k.stock...)
		p.drop(k, len(k.stock))
	}
	p.mu.Unlock()
	p.stop()
	p.running.Wait()
	for _, s := range all {
		select {
		case <-s.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Stat is the stock of one kind.
type Stat struct {
	Kind           string
	Parked, Target int
	Hits, Misses   int64
	Bytes          int64
}

// Stats tells of each kind that has, wants or had parked sandboxes, by name.
func (p *Pool) Stats() []Stat {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := make([]Stat, 0, len(p.kinds))
	for _, k := range p.kinds {
		s := Stat{Kind: k.Name, Parked: len(k.stock), Target: k.target(now), Hits: k.hits, Misses: k.misses}
		for _, spot := range k.stock {
			s.Bytes += spot.bytes
		}
		stats = append(stats, s)
	}
	slices.SortFunc(stats, func(a, b Stat) int { return cmp.Compare(a.Kind, b.Kind) })
	return stats
}

// id of the next one to be parked. mu is held.
func (p *Pool) id() string {
	p.made++
	return "parked-" + p.serial + "-" + strconv.Itoa(p.made)
}
