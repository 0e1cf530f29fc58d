package invoke

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/doze-run/doze/bus"
)

// desk hands out one slot at a time and notes what it is asked and given back.
type desk struct {
	full  bool
	takes int
	limit int
	run   time.Duration
	ends  []time.Duration
}

func (d *desk) Take(_, _, _ string, limit int, run time.Duration) (Slot, error) {
	d.takes++
	d.limit, d.run = limit, run
	if d.full {
		return nil, errors.New("full")
	}
	return d, nil
}
func (d *desk) MayBegin() bool          { return true }
func (d *desk) End(after time.Duration) { d.ends = append(d.ends, after) }

// A function with a reservation runs on a slot, which goes back when its execution has ended for certain;
// others take none.
func TestSlots(t *testing.T) {
	zero, two := 0, 2
	lost := func(left time.Duration, ran bool) *bus.Answer {
		return &bus.Answer{Fault: &bus.Fault{Code: bus.FaultWorkerLost, Ran: ran, Left: left}}
	}
	ok := &bus.Answer{}
	for _, test := range []struct {
		name     string
		reserved *int
		full     bool
		answers  []*bus.Answer
		takes    int
		ends     []time.Duration
		check    func(*Answer, error) bool
	}{
		{"answered", &two, false, []*bus.Answer{ok}, 1, []time.Duration{0}, func(_ *Answer, err error) bool { return err == nil }},
		{"none free", &two, true, nil, 1, nil, throttled(ReasonReserved)},
		{"none at all", &zero, false, nil, 0, nil, throttled(ReasonReserved)},
		{"not begun: asked again on the same slot", &two, false, []*bus.Answer{lost(0, false), ok}, 1, []time.Duration{0}, func(_ *Answer, err error) bool { return err == nil }},
		{"lost while it ran", &two, false, []*bus.Answer{lost(time.Second, true)}, 1, []time.Duration{time.Second + overrun}, unavailable(true)},
		{"no answer came in time", &two, false, []*bus.Answer{lost(0, true)}, 1, []time.Duration{overrun}, unavailable(true)},
		{"nobody took it", &two, false, []*bus.Answer{{Fault: &bus.Fault{Code: bus.FaultNoCapacity}}}, 1, []time.Duration{0}, throttled(ReasonReserved)},
		{"no reservation", nil, true, []*bus.Answer{ok}, 0, nil, func(_ *Answer, err error) bool { return err == nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &plane{answers: test.answers, has: "python3.11"}
			d := &desk{full: test.full}
			i := New(Config{
				Asker: p, Workers: p, Slots: d, Unreserved: func(string) int { return 10 },
				ARN: func(account, name string) string { return account + name }, Metrics: NewMetrics(prometheus.NewRegistry()),
			})
			if a, err := i.Invoke(context.Background(), call(function(test.reserved))); !test.check(a, err) {
				t.Errorf("answer %+v, error %v", a, err)
			}
			if d.takes != test.takes || len(d.ends) != len(test.ends) || len(d.ends) > 0 && d.ends[0] != test.ends[0] {
				t.Errorf("%d slots taken, given back after %v; want %d, %v", d.takes, d.ends, test.takes, test.ends)
			}
			if d.takes > 0 && (d.limit != 2 || d.run != 3*time.Second) {
				t.Errorf("asked for one of %d of %v", d.limit, d.run)
			}
			if p.permits != (test.takes > 0 && !test.full) {
				t.Errorf("asked with a permit: %v", p.permits)
			}
		})
	}
}
