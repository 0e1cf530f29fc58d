package pool

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/worker/instance"
	"github.com/doze-run/doze/worker/meter"
)

// startTurn is how long a slow init may keep another instance from starting.
const startTurn = 100 * time.Millisecond

// startLimit bounds making an instance, without its init: code to fetch, a sandbox to build.
const startLimit = 30 * time.Second

// member is one instance of a group and its place in the queue. The group's mutex guards it.
type member struct {
	group   *group
	start   Start
	created time.Time
	// ready to take calls, or failed, since then; init is how long the runtime took to it.
	initEnded time.Time
	init      time.Duration
	// turn gives back the right to start; it may be called again.
	turn func()

	slot     *bus.Slot
	instance Instance
	up       bool // its init is through
	ready    bool // it waits for an event
	parked   bool // its pull is in the queue
	retiring bool // no call is given to it any more
	ended    bool
	current  *holding
	calls    int
	lastUsed time.Time
	// answered is when its last answer left, in Unix nanoseconds, 0 when it has taken a call since.
	answered atomic.Int64
	measured time.Time
	ran      time.Duration // the sum of its calls
	// metered is what it had used of the CPU, and its calls, when it was last measured.
	metered struct {
		cpuUse
		known bool
	}
	// cause is the call that this start is for.
	cause *holding
	// failed is what an init that failed came to, until the call it belongs to has been granted.
	failed *instance.Result
	// resolved is closed when, after the end, the last claim has been answered.
	resolved chan struct{}
}

// recentFor is how long after a call an instance is preferred to those that have been idle for
// longer: calls in a row find the one that is warmest, the others rest and end in time.
const recentFor = 20 * time.Millisecond

// bigEvent is the size from which an event is written by a goroutine of its own: the runtime may
// read it slowly, and nobody else should wait for that.
const bigEvent = 64 << 10

func newMember(g *group) *member {
	return &member{
		group: g, start: Start{Spec: g.spec, ID: uuid.NewString()}, created: time.Now(), resolved: make(chan struct{}),
		turn: sync.OnceFunc(func() { <-g.pool.starts }),
	}
}

// launch makes the instance.
func (m *member) launch() error {
	g := m.group
	slot, err := g.queue.NewSlot(m)
	if err != nil {
		return err
	}
	g.mu.Lock()
	m.slot = slot
	if m.cause = g.unstarted(); m.cause != nil {
		m.start.RequestID = uuid.UUID(m.cause.ID).String()
	}
	g.mu.Unlock()
	turn := time.AfterFunc(startTurn, m.turn)
	ctx, cancel := context.WithTimeout(g.pool.ctx, startLimit)
	defer cancel()
	made, err := g.pool.config.Launcher.Launch(ctx, &m.start, m)
	if err != nil {
		turn.Stop()
		_ = slot.Close()
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m.instance = made
	switch {
	case m.ended:
		g.pool.running.Go(made.Release)
	case m.retiring:
		g.pool.running.Go(made.Stop)
	default:
		m.next() // Ready may have come before Launch returned
	}
	return nil
}

// What an instance does, as `doze ps` shows it.
const (
	starting = "starting"
	idle     = "idle"
	busy     = "busy"
)

func (m *member) state() string {
	switch {
	case !m.up:
		return starting
	case m.current == nil:
		return idle
	}
	return busy
}

// take runs a call on this instance, which is free: at once when it is granted, else after its
// claim.
func (m *member) take(c *holding) {
	g := m.group
	m.current = c
	g.busy++
	m.answered.Store(0)
	g.peak.see(c.since, g.busy)
	if c.granted {
		if m.failed == nil {
			m.invoke(c)
		}
		return
	}
	if err := m.slot.Claim(c.Delivery); err != nil {
		g.pool.config.Logger.Warn("claim", "function", g.spec.Function, "err", err)
		m.drop()
	}
}

// drop makes the instance free again.
func (m *member) drop() {
	if m.current != nil {
		m.current = nil
		m.group.busy--
	}
}

// invoke hands a granted call to the instance. The group's mutex is held.
func (m *member) invoke(c *holding) {
	if err := m.group.pool.config.Journal.Reserve(); err != nil {
		m.drop()
		m.group.answerFault(c, bus.FaultStart, fmt.Sprintf("usage cannot be journaled: %v", err))
		return
	}
	if c.Late() {
		// It is asked anew: this worker was frozen, or had no instance for it after all.
		m.drop()
		m.group.answerFault(c, bus.FaultWorkerLost, "the call came too late to be begun")
		return
	}
	event := &instance.Event{
		RequestID:     uuid.UUID(c.ID).String(),
		InvokedARN:    c.InvokedARN,
		Payload:       c.Body,
		ClientContext: c.ClientContext,
		TraceID:       c.TraceID,
		Timeout:       c.Left,
		Tail:          c.Tail,
	}
	if len(c.Body) < bigEvent {
		if err := m.instance.Invoke(event); err != nil {
			m.bounce(c, err)
		}
		return
	}
	m.group.pool.running.Go(func() {
		if err := m.instance.Invoke(event); err != nil {
			m.group.mu.Lock()
			defer m.group.mu.Unlock()
			m.bounce(c, err)
		}
	})
}

// bounce takes back a call that the instance did not take because it ended between two calls. The
// handler has not seen the event: another instance may.
func (m *member) bounce(c *holding, err error) {
	g := m.group
	g.pool.config.Logger.Debug("instance ended before its event", "function", g.spec.Function, "err", err)
	m.ready = false
	m.drop()
	g.held = append([]*holding{c}, g.held...)
	g.schedule()
}

// next lets a free instance take a held call, or park for one.
func (m *member) next() {
	g := m.group
	if m.retiring || m.current != nil || !m.ready || m.instance == nil {
		return
	}
	if !m.parked && g.crowded() {
		m.retire()
		return
	}
	if len(g.held) > 0 && g.feed(m) {
		g.schedule()
		return
	}
	if m.parked || g.closing || g.pool.config.Journal.Reserve() != nil {
		return // the next tick looks again
	}
	priority, limit := bus.PriorityRecent, recentFor
	if time.Since(m.lastUsed) >= recentFor {
		priority, limit = bus.PriorityIdle, g.pool.config.IdleTimeout
	}
	if err := m.slot.Park(priority, 1, limit); err != nil {
		g.pool.config.Logger.Warn("park", "function", g.spec.Function, "err", err)
		return
	}
	m.parked = true
}

// retire ends an idle instance: its pull is withdrawn first, so that no call is lost in it. The
// group's mutex is held.
func (m *member) retire() {
	m.retiring = true
	slot := m.slot
	m.group.pool.running.Go(func() {
		if slot == nil {
			return // launch stops it
		}
		if err := slot.Close(); err != nil {
			m.group.pool.config.Logger.Warn("withdraw", "function", m.group.spec.Function, "err", err)
		}
		m.group.mu.Lock()
		made := m.instance
		m.group.mu.Unlock()
		if made != nil {
			made.Stop()
		}
	})
}

// Delivered implements bus.SlotHandler.
func (m *member) Delivered(d *bus.Delivery) {
	g := m.group
	g.mu.Lock()
	defer g.mu.Unlock()
	m.parked = false
	c := &holding{Delivery: d, since: d.DeliveredAt}
	if m.free() && g.pool.config.Journal.Reserve() == nil {
		g.lastActive, g.superseded = c.since, false
		m.take(c)
		return
	}
	g.hold(c)
}

// Granted implements bus.SlotHandler.
func (m *member) Granted(d *bus.Delivery) {
	g := m.group
	g.mu.Lock()
	c := m.current
	if c == nil || c.Delivery != d {
		g.mu.Unlock()
		return
	}
	c.granted = true
	failed := m.failed
	switch {
	case failed != nil:
	case m.ended:
		m.drop()
		g.held = append([]*holding{c}, g.held...)
		g.schedule()
	default:
		m.invoke(c)
	}
	g.mu.Unlock()
	if failed != nil {
		m.finish(c, failed)
	}
	m.resolve()
}

// resolve lets a member that has ended close its slot: nothing more is expected on it.
func (m *member) resolve() {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	if m.ended && m.current == nil {
		select {
		case <-m.resolved:
		default:
			close(m.resolved)
		}
	}
}

func (m *member) free() bool {
	return m.ready && m.current == nil && !m.retiring && m.instance != nil
}

// Refused implements bus.SlotHandler.
func (m *member) Refused(d *bus.Delivery) {
	g := m.group
	g.mu.Lock()
	if m.current != nil && m.current.Delivery == d {
		m.drop()
		m.next()
	}
	g.mu.Unlock()
	m.resolve()
}

// Unparked implements bus.SlotHandler.
func (m *member) Unparked(gone bool) {
	if gone {
		m.group.reopen()
	}
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	m.parked = false
	m.next()
}

// Ready implements instance.Handler.
func (m *member) Ready(_ *instance.Instance, init time.Duration) {
	m.turn()
	g := m.group
	now := time.Now()
	g.mu.Lock()
	m.up, m.ready, m.lastUsed = true, true, now
	m.initEnded, m.init = now, init
	took := now.Sub(m.created)
	if g.start == 0 || took < g.start {
		g.start = took
	}
	m.next()
	g.mu.Unlock()
	g.pool.config.Events.InstanceStarted(InstanceStarted{
		About: m.about(), RequestID: m.start.RequestID, Origin: m.start.Origin, Mount: took - init, Init: init,
	})
}

// Idle implements instance.Handler.
func (m *member) Idle(*instance.Instance) {
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	m.ready = true
	m.next()
}

// Done implements instance.Handler.
func (m *member) Done(_ *instance.Instance, r *instance.Result) {
	g := m.group
	g.mu.Lock()
	c := m.current
	if c == nil {
		// The init failed before any event: the call that has waited longest gets to know.
		m.turn()
		m.failed = r
		m.initEnded, m.init = time.Now(), r.Init
		m.ready = false
		if len(g.held) > 0 {
			g.prefer(m.cause)
			if !g.feed(m) {
				g.mu.Unlock()
				return
			}
			c = m.current
			if c != nil && !c.granted {
				g.mu.Unlock()
				return // Granted goes on
			}
		}
		g.mu.Unlock()
		if c != nil {
			m.finish(c, r)
		}
		return
	}
	m.ready = false // until it asks for the next event
	g.mu.Unlock()
	m.finish(c, r)
}

// finish journals what the attempt used, then answers. Not both can be lost: what is in the
// journal is billed, and what is not is not answered as a result.
func (m *member) finish(c *holding, r *instance.Result) {
	g := m.group
	now := time.Now()
	cold := m.calls == 0 && !c.since.After(m.initEnded)
	answer := &bus.Answer{
		Outcome: uint8(r.Outcome), FunctionError: r.FunctionError, Payload: r.Payload, LogTail: r.LogTail,
		Cold: cold, Phases: m.phases(c, r), Instance: m.start.ID,
	}
	if !c.Tail {
		answer.LogTail = nil
	}
	if r.Outcome == instance.Killed {
		answer.Fault = &bus.Fault{Code: bus.FaultWorkerLost, Message: "the worker ended the instance while it ran the call", Ran: true}
	} else if _, err := g.pool.config.Journal.Append(&meter.Record{
		Account: g.spec.Account, Function: g.spec.Function, Version: g.spec.Version, RequestID: c.ID,
		EndedAtMs: now.UnixMilli(), BilledMs: r.BilledMs, MemoryMB: g.spec.MemoryMb,
		InitMs: uint32(r.Init.Milliseconds()), Outcome: uint8(r.Outcome),
	}); err != nil {
		g.pool.config.Logger.Error("journal usage", "err", err)
		answer.Fault = &bus.Fault{Code: bus.FaultStart, Message: "usage could not be journaled", Ran: true}
	}
	// Who gets the answer may call again before this instance is seen to be free.
	m.answered.Store(now.UnixNano())
	if err := m.slot.Answer(c.Delivery, answer); err != nil {
		g.pool.config.Logger.Warn("answer", "function", g.spec.Function, "err", err)
	}

	g.mu.Lock()
	m.calls++
	m.ran += r.Duration - r.Unread
	m.lastUsed, g.lastActive = now, now
	busy := g.busy
	if m.current == c {
		m.drop()
	}
	if r.Outcome == instance.OK || r.Outcome == instance.HandlerError {
		g.served.add(r.Duration)
		if m.calls > 1 { // the first one finds cold caches
			g.appetite.served(r.Duration, busy)
		}
	}
	g.mu.Unlock()
	if cold {
		g.pool.config.Events.ColdCall(ColdCall{
			About: m.about(), RequestID: uuid.UUID(c.ID).String(), Origin: m.start.Origin, Phases: answer.Phases, Outcome: r.Outcome,
		})
	}
}

// Ended implements instance.Handler.
func (m *member) Ended(*instance.Instance) {
	m.turn()
	g := m.group
	// The pool's Close waits for what is done here: it must know of it before the member is gone.
	g.pool.running.Add(1)
	defer g.pool.running.Done()
	g.mu.Lock()
	m.ready, m.ended = false, true
	retired := m.retiring
	m.retiring = true
	g.remove(m)
	g.schedule()
	made, slot := m.instance, m.slot
	ended := InstanceEnded{About: m.about(), Calls: m.calls, Lived: time.Since(m.created), Asked: retired}
	g.mu.Unlock()
	g.pool.config.Events.InstanceEnded(ended)
	m.resolve()
	g.pool.running.Go(func() {
		if made != nil {
			made.Release()
		}
		if retired {
			return
		}
		// A claim may be on its way: its grant must not be lost with the slot.
		select {
		case <-m.resolved:
		case <-time.After(claimLimit):
		}
		if err := slot.Close(); err != nil {
			g.pool.config.Logger.Warn("withdraw", "function", g.spec.Function, "err", err)
		}
	})
}
