package pool

import (
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/worker/instance"
)

// phases is where the time of a call went that this instance has run, or that its failed init is the answer
// to. The wait as a whole is measured by two clocks that nobody compares: the asker's up to the grant, this
// worker's from then on. What it was waited for is known here; the rest is the queue.
func (m *member) phases(c *holding, r *instance.Result) bus.Phases {
	p := bus.Phases{Handler: r.Duration}
	wait := c.Waited
	if !r.Began.IsZero() {
		wait += r.Began.Sub(c.GrantedAt)
	}
	if !c.ahead {
		p.Claim = c.Claim
	}
	if m.calls == 0 {
		// A call that came while the instance was being started for another has waited for a part of it.
		mounted := m.initEnded.Add(-m.init)
		p.Mount, p.Init = after(c.since, m.created, mounted), after(c.since, mounted, m.initEnded)
	}
	p.Queue = max(0, wait-p.Claim-p.Mount-p.Init)
	return p
}

// after is how much of the time between two moments came after another one.
func after(moment, from, to time.Time) time.Duration {
	if moment.After(from) {
		from = moment
	}
	return max(0, to.Sub(from))
}
