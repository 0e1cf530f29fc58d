package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/doze-run/doze/bus"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// claimAhead is the mean service time up to which held calls are claimed while they wait, so
	// that an instance that comes free writes the next event at once.
	claimAhead = 20 * time.Millisecond
	// claimLimit is how long a claim may go unanswered: its asker is gone.
	claimLimit = time.Second
	// linger is how long an incarnation without instances stays hosted: a crash loop or a burst of
	// short-lived instances does not go back to sleep between two calls.
	linger = time.Second
	// reopenLimit is how long a queue that is gone is waited for before calls are asked for again, and
	// reopenPause how often it is looked for.
	reopenLimit = 5 * time.Second
	reopenPause = 50 * time.Millisecond
	// memoryPause is how long a worker without memory asks for no more calls of an incarnation.
	memoryPause = 50 * time.Millisecond
	// leastStart is what a start is taken to cost at least, and before there was one: an instance
	// from the parked ones starts in 3 ms, but it takes memory, and the stock must be filled again.
	leastStart = 20 * time.Millisecond
	// heldPerInstance bounds the calls that wait here rather than in the queue.
	heldPerInstance = 2
	heldFloor       = 64
	// hostBatch bounds how many calls a host asks for at once.
	hostBatch = 16
)

// holding is one delivered call on its way to an instance.
type holding struct {
	*bus.Delivery
	since    time.Time
	claiming bool // the claim is on its way
	granted  bool // it is ours to run
	ahead    bool // it was claimed while it waited for an instance
	told     bool // its asker knows that an instance starts for it
}

// group is one incarnation on this worker.
type group struct {
	pool  *Pool
	id    bus.QueueID
	spec  *dozev1.FunctionSpec
	queue *bus.Queue
	host  *bus.Slot

	mu        sync.Mutex
	members   []*member
	held      []*holding
	limit     int // of instances, 0 for none
	launching int // starts that wait for their turn
	busy      int
	served    mean // service times
	appetite  appetite
	// start is the least time that a start has taken: what it costs, without what it waited for the
	// CPU because others started too.
	start      time.Duration
	waited     time.Duration
	parked     int // calls that the host's pull may still bring
	closing    bool
	superseded bool
	paused     time.Time // no calls are asked for before
	lastActive time.Time
	lastTend   time.Time
	progressed time.Time
	peak       peak
	gone       chan struct{} // closed when the last member has gone while closing
}

func newGroup(ctx context.Context, p *Pool, home string, id bus.QueueID, spec *dozev1.FunctionSpec) (*group, error) {
	queue, err := p.config.Mesh.OpenQueue(ctx, home, p.config.Worker, id)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	g := &group{
		pool: p, id: id, spec: spec, queue: queue, lastActive: now, lastTend: now, progressed: now,
		limit:    int(spec.GetReservedConcurrency()),
		appetite: appetite{cores: p.load.cores}, peak: newPeak(now, p.config.IdleTimeout), gone: make(chan struct{}, 1),
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.host, err = queue.NewSlot((*hostSlot)(g)); err != nil {
		return nil, err
	}
	g.parkHost(now)
	return g, nil
}

// hostSlot is the group's own place in the queue: it is handed a call when no idle instance is.
type hostSlot group

func (h *hostSlot) Delivered(d *bus.Delivery) {
	g := (*group)(h)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parked = max(0, g.parked-1)
	g.hold(&holding{Delivery: d, since: d.DeliveredAt})
	g.parkHost(d.DeliveredAt)
}

func (h *hostSlot) Granted(d *bus.Delivery) {
	g := (*group)(h)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.held {
		if c.Delivery == d {
			c.claiming, c.granted = false, true
			g.offer()
			return
		}
	}
}

func (h *hostSlot) Refused(d *bus.Delivery) {
	g := (*group)(h)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = slices.DeleteFunc(g.held, func(c *holding) bool { return c.Delivery == d })
}

func (h *hostSlot) Unparked(gone bool) {
	g := (*group)(h)
	if gone {
		g.reopen()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parked = 0
	g.parkHost(time.Now())
}

// reopen makes the queue's consumer anew after it went away. When the queues themselves are gone
// it waits for them, so that nobody asks for calls over and over meanwhile.
func (g *group) reopen() {
	ctx, cancel := context.WithTimeout(g.pool.ctx, reopenLimit)
	defer cancel()
	for {
		err := g.queue.Reopen(ctx)
		if err == nil {
			return
		}
		select {
		case <-time.After(reopenPause):
		case <-ctx.Done():
			g.pool.config.Logger.Warn("reopen call queue", "function", g.spec.Function, "err", err)
			return
		}
	}
}

// move parks at another home, which has calls for this incarnation: by its own view, or because they
// came there before the others were of another. What is parked elsewhere stays, and is served too.
func (g *group) move(ctx context.Context, home string) error {
	moved, err := g.queue.Move(ctx, home)
	if err != nil || !moved {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parked = 0
	g.parkHost(time.Now())
	for _, m := range g.members {
		if m.parked {
			m.parked = false
			m.next()
		}
	}
	return nil
}

// bound takes in a changed reservation: it makes no new incarnation.
func (g *group) bound(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.limit != limit {
		g.limit = limit
		g.schedule()
	}
}

// parkHost asks for more calls, unless there are enough or none can be served. While calls wait
// here it asks for several at once: one at a time would cost a request each.
func (g *group) parkHost(now time.Time) {
	room := max(heldFloor, heldPerInstance*len(g.members)) - len(g.held)
	if g.parked > 0 || g.closing || room <= 0 || now.Before(g.paused) {
		return
	}
	if g.pool.config.Journal.Reserve() != nil {
		return // the next tick looks again
	}
	batch := 1
	if len(g.held) > 0 {
		batch = min(room, hostBatch)
	}
	if err := g.host.Park(bus.PriorityHost, batch, time.Minute); err != nil {
		g.pool.config.Logger.Warn("ask for calls", "function", g.spec.Function, "err", err)
		return
	}
	g.parked = batch
}

// hold takes in a delivered call: an instance that is free runs it, else it waits here while an
// instance comes free or starts.
func (g *group) hold(c *holding) {
	if !c.granted && (g.closing || g.pool.config.Journal.Reserve() != nil) {
		c.Return()
		return
	}
	g.lastActive, g.superseded = c.since, false
	g.held = append(g.held, c)
	g.offer()
	g.schedule()
}

// offer gives held calls to free instances.
func (g *group) offer() {
	for len(g.held) > 0 {
		m := g.free()
		if m == nil || !g.feed(m) {
			return
		}
	}
}

// feed gives a free instance the call that has waited longest, granted ones first; false when all
// that are held wait for their grant.
func (g *group) feed(m *member) bool {
	pick := -1
	for i, c := range g.held {
		if c.granted {
			pick = i
			break
		}
		if !c.claiming && pick < 0 {
			pick = i
		}
	}
	if pick < 0 {
		return false
	}
	c := g.held[pick]
	g.held = slices.Delete(g.held, pick, pick+1)
	m.take(c)
	g.parkHost(c.since)
	return true
}

// unstarted is the held call that has waited longest and that no instance is being started for.
func (g *group) unstarted() *holding {
next:
	for _, c := range g.held {
		for _, m := range g.members {
			if m.cause == c && !m.up {
				continue next
			}
		}
		return c
	}
	return nil
}

// prefer puts a held call first.
func (g *group) prefer(c *holding) {
	if i := slices.Index(g.held, c); i > 0 {
		g.held = slices.Insert(slices.Delete(g.held, i, i+1), 0, c)
	}
}

func (g *group) free() *member {
	for _, m := range g.members {
		if m.free() {
			return m
		}
	}
	return nil
}

// schedule starts what the held calls need.
func (g *group) schedule() {
	if len(g.held) == 0 || g.closing || time.Now().Before(g.paused) {
		return
	}
	d := g.demand()
	d.starting += g.launching
	for range d.starts() {
		g.launching++
		g.waited = 0
		g.pool.running.Go(g.launch)
	}
	if g.served.count > 0 && g.served.value < claimAhead {
		for _, c := range g.held[:min(len(g.held), len(g.members))] {
			if !c.granted && !c.claiming {
				c.claiming, c.ahead = true, true
				if err := g.host.Claim(c.Delivery); err != nil {
					c.claiming = false
				}
			}
		}
	}
}

func (g *group) demand() demand {
	d := demand{
		held: len(g.held), busy: g.busy, served: g.served.count, service: g.served.value, start: g.start,
		waited: g.waited, useful: g.appetite.useful(), cores: g.pool.load.cores, limit: g.limit,
	}
	d.start = max(d.start, leastStart)
	now := time.Now()
	if d.useful == 0 {
		d.cpuFree = g.pool.load.spare(now)
	}
	for _, m := range g.members {
		switch {
		case m.retiring:
		case m.up:
			d.ready++
			if at := m.answered.Load(); at != 0 && !m.free() && now.UnixNano()-at < int64(returns) {
				d.returning++
			}
		default:
			d.starting++
		}
	}
	return d
}

// launch starts one instance when its turn has come and it is still needed.
func (g *group) launch() {
	select {
	case g.pool.starts <- struct{}{}:
	case <-g.pool.ctx.Done():
		g.mu.Lock()
		g.launching--
		g.mu.Unlock()
		return
	}
	m := newMember(g)

	g.mu.Lock()
	g.launching--
	if g.closing || g.demand().starts() == 0 {
		g.mu.Unlock()
		m.turn()
		return
	}
	g.members = append(g.members, m)
	for _, c := range g.held {
		if !c.told && !c.granted {
			c.told = true
			c.Starting()
		}
	}
	g.mu.Unlock()

	if err := m.launch(); err != nil {
		m.turn()
		g.startFailed(m, err)
	}
}

// startFailed takes out a member that could not be started. Without memory the calls go back to
// the queue, for another worker or a better moment; any other fault is told to one caller.
func (g *group) startFailed(m *member, err error) {
	g.pool.config.Events.StartFailed(StartFailed{About: m.about(), RequestID: m.start.RequestID, NoMemory: errors.Is(err, ErrNoMemory), Err: err})
	if errors.Is(err, ErrNoMemory) && g.pool.EndIdle(g.id) {
		g.pool.config.Logger.Debug("ended an idle instance to make room", "function", g.spec.Function)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(m)
	if !errors.Is(err, ErrNoMemory) {
		for i, c := range g.held {
			if c.claiming {
				continue
			}
			g.held = slices.Delete(g.held, i, i+1)
			code := bus.FaultStart
			if errors.Is(err, ErrNoEgress) {
				code = bus.FaultNoEgress
			}
			g.answerFault(c, code, fmt.Sprintf("start instance: %v", err))
			return
		}
		return
	}
	g.paused = time.Now().Add(memoryPause)
	if len(g.members) == 0 {
		g.held = slices.DeleteFunc(g.held, func(c *holding) bool {
			back := !c.granted && !c.claiming
			if back {
				c.Return()
			}
			return back
		})
	}
}

// answerFault tells a caller that the platform could not run its call, which the handler has not
// seen.
func (g *group) answerFault(c *holding, code bus.FaultCode, message string) {
	fault := &bus.Fault{Code: code, Message: message}
	if !c.granted {
		c.Fail(g.pool.config.Worker, fault)
		return
	}
	if err := g.host.Answer(c.Delivery, &bus.Answer{Fault: fault}); err != nil {
		g.pool.config.Logger.Warn("answer", "function", g.spec.Function, "err", err)
	}
}

// remove takes a member out that is gone.
func (g *group) remove(m *member) {
	g.members = slices.DeleteFunc(g.members, func(other *member) bool { return other == m })
	if g.closing && len(g.members) == 0 {
		select {
		case g.gone <- struct{}{}:
		default:
		}
	}
}
