package pool

import (
	"context"
	"slices"
	"time"

	"github.com/doze-run/doze/bus"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// tend does what only time asks for.
func (g *group) tend(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	passed := now.Sub(g.lastTend)
	g.peak.see(now, g.busy)
	g.lastTend = now
	g.waited = regret(g.waited, len(g.held), passed)
	if len(g.held) > 0 {
		g.lastActive = now
		g.abandon()
		if now.Sub(g.progressed) >= bus.ProgressInterval {
			g.progressed = now
			for _, c := range g.held {
				if !c.granted && !c.claiming {
					c.Progress()
				}
			}
		}
		g.offer()
		g.schedule()
	}
	if g.closing {
		return
	}
	g.parkHost(now)
	for _, m := range g.members {
		if m.free() && !m.parked {
			m.next()
		}
	}
	g.endIdle(now)
	if len(g.members) == 0 && len(g.held) == 0 && g.launching == 0 && now.Sub(g.lastActive) >= linger {
		g.closing = true
		g.pool.running.Go(func() {
			g.pool.forget(g)
			g.closeHost()
		})
	}
}

// abandon drops calls whose asker does not answer the claim: it is gone, and with it the one who would
// want the answer.
func (g *group) abandon() {
	for _, d := range g.host.Abandon(claimLimit) {
		g.held = slices.DeleteFunc(g.held, func(c *holding) bool { return c.Delivery == d })
	}
	for _, m := range g.members {
		if m.current == nil || m.current.granted || m.slot == nil {
			continue
		}
		for _, d := range m.slot.Abandon(claimLimit) {
			if m.current != nil && m.current.Delivery == d {
				m.drop()
				m.next()
			}
		}
	}
}

// endIdle retires instances that were idle for too long, all of them when their code has been
// replaced, and those that even the busiest moment of late did not need (the broker hands calls to
// idle instances in turn, so that a trickle of calls would keep every one of them warm).
func (g *group) endIdle(now time.Time) {
	surplus := 0
	if most, ok := g.peak.most(now); ok {
		surplus = len(g.members) - max(most, 1)
	}
	for _, m := range g.members {
		if !m.free() {
			continue
		}
		idle := now.Sub(m.lastUsed)
		if idle >= g.pool.config.IdleTimeout || g.superseded || surplus > 0 && idle > tick {
			surplus--
			m.retire()
		}
	}
}

// longestIdle is the instance that has been idle longest, and since when; nil when none is.
func (g *group) longestIdle() (*member, time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var oldest *member
	for _, m := range g.members {
		if m.free() && (oldest == nil || m.lastUsed.Before(oldest.lastUsed)) {
			oldest = m
		}
	}
	if oldest == nil {
		return nil, time.Time{}
	}
	return oldest, oldest.lastUsed
}

// retire ends one instance if it is still idle.
func (g *group) retire(m *member) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m.current != nil || m.retiring {
		return false
	}
	m.retire()
	return true
}

// supersede ends the idle instances, and each other one when it has finished.
func (g *group) supersede() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.superseded = true
}

// close drains the group: nothing new, what runs may end until ctx does, then everything ends.
func (g *group) close(ctx context.Context) {
	g.mu.Lock()
	g.closing = true
	g.mu.Unlock()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for g.draining(ctx.Err() != nil) {
		select {
		case <-g.gone:
		case <-ticker.C:
		}
	}
	g.closeHost()
	g.pool.forget(g)
}

// draining gives back what is not claimed, retires who has nothing to do (everybody, when it is
// late) and says whether anything is left.
func (g *group) draining(late bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.abandon()
	g.held = slices.DeleteFunc(g.held, func(c *holding) bool {
		back := !c.granted && !c.claiming
		switch {
		case back:
			c.Return()
		case c.granted && (len(g.members) == 0 || late):
			g.answerFault(c, bus.FaultWorkerLost, "the worker is draining")
			return true
		}
		return back
	})
	g.offer()
	for _, m := range g.members {
		if !m.retiring && (late || m.current == nil && len(g.held) == 0) {
			m.retire()
		}
	}
	return len(g.members) > 0 || len(g.held) > 0 || g.launching > 0
}

// closeHost ends the group's own place in the queue; what was on its way goes back.
func (g *group) closeHost() {
	if err := g.host.Close(); err != nil {
		g.pool.config.Logger.Warn("end host", "function", g.spec.Function, "err", err)
	}
}

func (g *group) counts() (instances, busy int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.members), g.busy
}

func (g *group) infos() []*dozev1.InstanceInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	all := make([]*dozev1.InstanceInfo, 0, len(g.members))
	for _, m := range g.members {
		info := &dozev1.InstanceInfo{
			Id: m.start.ID, Account: g.spec.Account, Function: g.spec.Function, Version: g.spec.Version,
			CreatedAtMs: m.created.UnixMilli(), Calls: int64(m.calls), Cold: m.calls <= 1,
			Worker: g.pool.config.Worker, State: m.state(),
		}
		if info.State == idle {
			info.IdleMs = now.Sub(m.lastUsed).Milliseconds()
		}
		if m.instance != nil {
			info.MemoryBytes = m.instance.MemoryBytes()
		}
		all = append(all, info)
	}
	return all
}

// measure learns what those instances use that ran since they were last measured: of memory for the
// launcher, of the CPU for the group.
func (g *group) measure() {
	type sample struct {
		*member
		made Instance
		use  cpuUse
	}
	g.mu.Lock()
	var due []sample
	for _, m := range g.members {
		if m.up && m.instance != nil && (m.measured.IsZero() || m.current != nil || m.lastUsed.After(m.measured)) {
			m.measured = time.Now()
			due = append(due, sample{m, m.instance, cpuUse{calls: m.calls, ran: m.ran}})
		}
	}
	g.mu.Unlock()
	sum, first := cpuUse{waits: true}, cpuUse{}
	for _, s := range due {
		s.made.MemoryBytes()
		s.use.cpu = s.made.CPUTime()
		s.use.wait, s.use.waits = s.made.CPUWait()
		// What it used before it was first measured is mostly its init. Only measure looks at metered.
		if before := &s.metered; !before.known {
			before.cpuUse, before.known = s.use, true
			first.add(s.use, cpuUse{})
		} else if s.use.calls > before.calls {
			sum.add(s.use, before.cpuUse)
			before.cpuUse = s.use
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.appetite.ate(sum)
	g.appetite.guess(first)
}

// peak remembers the most instances that were busy at once, over a window and up to half of one
// more.
type peak struct {
	half   time.Duration
	since  time.Time
	most3  [3]int // of this half, the last, and the one before
	halves int    // that have passed
}

func newPeak(now time.Time, window time.Duration) peak {
	return peak{half: window / 2, since: now}
}

func (p *peak) see(now time.Time, busy int) {
	p.roll(now)
	p.most3[0] = max(p.most3[0], busy)
}

// most is the peak; false while the window has not passed once.
func (p *peak) most(now time.Time) (int, bool) {
	p.roll(now)
	return slices.Max(p.most3[:]), p.halves >= 2
}

func (p *peak) roll(now time.Time) {
	for passed := now.Sub(p.since); passed >= p.half; passed = now.Sub(p.since) {
		if passed >= 4*p.half {
			p.since, p.most3, p.halves = now, [3]int{}, 2
			return
		}
		p.since = p.since.Add(p.half)
		p.most3 = [3]int{0, p.most3[0], p.most3[1]}
		p.halves++
	}
}
