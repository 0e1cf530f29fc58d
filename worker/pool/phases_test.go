package pool

import (
	"sync"
	"testing"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/worker/instance"
)

func TestPhases(t *testing.T) {
	const ms = time.Millisecond
	at := func(d time.Duration) time.Time { return time.Unix(1000, 0).Add(d) }
	// An instance that was begun at 10 ms, made at 12 and ready at 20.
	cold := func() *member { return &member{created: at(10 * ms), initEnded: at(20 * ms), init: 8 * ms} }
	warm := func() *member { m := cold(); m.calls = 1; return m }
	for _, test := range []struct {
		name  string
		m     *member
		c     holding
		began time.Duration
		want  bus.Phases
	}{
		{"cold: waited 4 ms for its turn", cold(),
			holding{Delivery: &bus.Delivery{Waited: 16 * ms, Claim: ms, GrantedAt: at(21 * ms)}, since: at(6 * ms)}, 22 * ms,
			bus.Phases{Queue: 6 * ms, Claim: ms, Mount: 2 * ms, Init: 8 * ms, Handler: 5 * ms}},
		{"cold: came while the instance was starting for another", cold(),
			holding{Delivery: &bus.Delivery{Waited: 6 * ms, Claim: ms, GrantedAt: at(21 * ms)}, since: at(15 * ms)}, 21 * ms,
			bus.Phases{Claim: ms, Init: 5 * ms, Handler: 5 * ms}},
		{"cold: claimed while the instance started", cold(),
			holding{Delivery: &bus.Delivery{Waited: 2 * ms, Claim: ms, GrantedAt: at(10 * ms)}, since: at(9 * ms), ahead: true}, 20 * ms,
			bus.Phases{Queue: 2 * ms, Mount: 2 * ms, Init: 8 * ms, Handler: 5 * ms}},
		{"warm", warm(),
			holding{Delivery: &bus.Delivery{Waited: 3 * ms, Claim: ms, GrantedAt: at(40 * ms)}, since: at(39 * ms)}, 40 * ms,
			bus.Phases{Queue: 2 * ms, Claim: ms, Handler: 5 * ms}},
		{"warm: claimed while the instance was busy", warm(),
			holding{Delivery: &bus.Delivery{Waited: ms, Claim: ms, GrantedAt: at(40 * ms)}, since: at(39 * ms), ahead: true}, 47 * ms,
			bus.Phases{Queue: 8 * ms, Handler: 5 * ms}},
		{"first call of an instance that was ready before it came", cold(),
			holding{Delivery: &bus.Delivery{Waited: 3 * ms, Claim: ms, GrantedAt: at(40 * ms)}, since: at(39 * ms)}, 40 * ms,
			bus.Phases{Queue: 2 * ms, Claim: ms, Handler: 5 * ms}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.m.phases(&test.c, &instance.Result{Began: at(test.began), Duration: 5 * ms})
			if got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// An instance is told of when it starts, for the call that waited, and when it ends; a failed init is a
// cold call with its outcome.
func TestEvents(t *testing.T) {
	var mu sync.Mutex
	var started []InstanceStarted
	var ended []InstanceEnded
	var cold []ColdCall
	m := &maker{boot: 20 * time.Millisecond, handle: echo}
	w := newWorld(t, m, 50*time.Millisecond)
	w.pool.config.Events = Tee(Events{}, Events{
		InstanceStarted: func(e InstanceStarted) { mu.Lock(); started = append(started, e); mu.Unlock() },
		InstanceEnded:   func(e InstanceEnded) { mu.Lock(); ended = append(ended, e); mu.Unlock() },
		ColdCall:        func(e ColdCall) { mu.Lock(); cold = append(cold, e); mu.Unlock() },
	})
	first := w.ask("{}")
	second := w.ask("{}")
	if first.Fault != nil || !first.Cold || first.Init < 20*time.Millisecond || first.Mount <= 0 || first.Claim <= 0 {
		t.Errorf("first: %+v", first)
	}
	if second.Fault != nil || second.Cold || second.Init != 0 || second.Mount != 0 || second.Claim <= 0 {
		t.Errorf("second: %+v", second)
	}
	w.eventually("the instance ends", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(ended) > 0
	})
	mu.Lock()
	defer mu.Unlock()
	if len(started) != 1 || len(cold) != 1 || len(ended) != 1 {
		t.Fatalf("%d started, %d cold calls, %d ended", len(started), len(cold), len(ended))
	}
	s, c, e := started[0], cold[0], ended[0]
	if s.Instance != first.Instance || s.RequestID == "" || s.RequestID != c.RequestID || s.Function != "f" || s.Init < m.boot || s.Parked != Hit {
		t.Errorf("started: %+v", s)
	}
	if c.Phases != first.Phases || c.Outcome != instance.OK || c.Instance != first.Instance || c.Parked != Hit || !c.CodeCached {
		t.Errorf("cold call: %+v, answer %+v", c, first.Phases)
	}
	if e.Instance != first.Instance || e.Calls != 2 || !e.Asked || e.Lived < m.boot {
		t.Errorf("ended: %+v", e)
	}
}
