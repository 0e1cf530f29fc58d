package bus

import (
	"sync/atomic"
	"testing"
	"time"
)

// permit is a right to run that a test gives and takes.
type permit struct {
	given atomic.Bool
	asked atomic.Int64
}

func (p *permit) MayBegin() bool {
	p.asked.Add(1)
	return p.given.Load()
}

// A call whose permit has passed is refused to the worker that claims it, and its caller told at once.
func TestPermit(t *testing.T) {
	p := newPlane(t, 16<<20)
	q := openQueue(t, p)
	var runs, late atomic.Int64
	r := newRunner(t, q, func(d *Delivery) *Answer {
		runs.Add(1)
		if d.Late() {
			t.Error("late at once")
		}
		d.claimedAt = d.claimedAt.Add(-BeginLimit)
		if d.Late() {
			late.Add(1)
		}
		return echo(d)
	})
	right := &permit{}
	limits := testLimits
	limits.Permit = right
	if err := r.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	answer := p.asker.Ask(q.ID, newCall([]byte("{}")), limits, nil)
	if answer.Fault == nil || answer.Fault.Code != FaultNoCapacity || answer.Fault.Ran {
		t.Errorf("answer %+v", answer)
	}
	if took := time.Since(begun); took > testLimits.Queue/2 {
		t.Errorf("the caller was told after %v", took)
	}
	<-r.refused
	if runs.Load() != 0 || right.asked.Load() != 1 {
		t.Errorf("%d runs, the permit was asked %d times", runs.Load(), right.asked.Load())
	}
	for _, test := range []struct {
		permit Permit
		late   int64
	}{{right, 1}, {nil, 0}} {
		right.given.Store(true)
		late.Store(0)
		limits.Permit = test.permit
		if err := r.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
			t.Fatal(err)
		}
		if answer := p.asker.Ask(q.ID, newCall([]byte("{}")), limits, nil); answer.Fault != nil {
			t.Fatal(answer.Fault)
		}
		if late.Load() != test.late {
			t.Errorf("permit %v: a call begun %v after its claim is late: %v", test.permit, BeginLimit, late.Load() == 1)
		}
	}
	if n := p.asker.InFlight(); n != 0 {
		t.Errorf("%d calls are still in flight", n)
	}
}
