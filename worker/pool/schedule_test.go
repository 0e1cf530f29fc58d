package pool

import (
	"testing"
	"time"
)

func TestStarts(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name string
		d    demand
		want int
	}{
		{"nothing held", demand{ready: 1, served: 3}, 0},
		{"first call of a sleeping function", demand{held: 1}, 1},
		{"a burst without history: one each", demand{held: 50}, 50},
		{"who has just answered counts", demand{held: 3, ready: 2, returning: 2, served: 2, service: time.Second, start: 20 * ms, cpuFree: true, cores: 2}, 1},
		{"those that start count", demand{held: 50, starting: 48}, 2},
		{"no history, first one is busy", demand{held: 3, ready: 1}, 3},
		{"short handler: waiting is quicker", demand{held: 60, ready: 2, served: 100, service: ms / 10, start: 40 * ms, cpuFree: true, cores: 2}, 0},
		{"long handler: start for all", demand{held: 60, ready: 2, served: 1, service: time.Second, start: 40 * ms, cpuFree: true, cores: 2}, 60},
		{"... but no CPU to spare: a few for each core", demand{held: 60, ready: 2, served: 1, service: 30 * ms, start: 40 * ms, cores: 2}, 6},
		{"long handler, most are there", demand{held: 10, ready: 54, served: 1, service: 100 * ms, start: 40 * ms, cpuFree: true, cores: 2}, 0},
		{"... but they have waited", demand{held: 10, ready: 54, busy: 54, served: 1, service: 100 * ms, start: 40 * ms, waited: 41 * ms, cpuFree: true, cores: 2}, 1},
		{"waited, but more of them would be idle", demand{held: 10, ready: 72, busy: 54, served: 1, service: 100 * ms, start: 40 * ms, waited: time.Second, cpuFree: true, cores: 2}, 0},
		{"waited, but no CPU to spare", demand{held: 10, ready: 8, served: 1, service: ms / 10, start: 40 * ms, waited: time.Second, cores: 2}, 0},
		{"no CPU to spare, few for the cores", demand{held: 10, ready: 7, busy: 7, served: 1, service: ms / 10, start: 40 * ms, waited: time.Second, cores: 2}, 1},
		{"a handler that waits for others, on a busy machine", demand{held: 56, ready: 8, served: 1, service: 100 * ms, start: 20 * ms, useful: 600, cores: 2}, 56},
		{"one that computes, on an idle machine", demand{held: 56, ready: 3, served: 1, service: 10 * ms, start: 20 * ms, useful: 4, cpuFree: true, cores: 2}, 1},
		{"with history and no instance", demand{held: 5, served: 9, service: ms, start: 40 * ms, cores: 2}, 1},
		{"capped", demand{held: 50, ready: 3, limit: 5}, 2},
		{"at the cap", demand{held: 50, ready: 5, limit: 5}, 0},
	}
	for _, test := range tests {
		if got := test.d.starts(); got != test.want {
			t.Errorf("%s: starts %d, want %d", test.name, got, test.want)
		}
	}
}

func TestRegret(t *testing.T) {
	const ms = time.Millisecond
	if got := regret(10*ms, 3, 0); got != 10*ms {
		t.Errorf("after no time: %v", got)
	}
	if got := regret(10*ms, 0, fade); got != 5*ms {
		t.Errorf("after a second in which none waited: %v", got)
	}
	// Two calls that wait for a tenth of every turn of 100 ms come to a start of 20 ms; one that waits a little, never.
	often, seldom := time.Duration(0), time.Duration(0)
	for range 100 {
		often = regret(regret(often, 2, 10*ms), 0, 90*ms)
		seldom = regret(regret(seldom, 1, ms), 0, 99*ms)
	}
	if often < 20*ms || seldom >= 20*ms {
		t.Errorf("often %v, seldom %v", often, seldom)
	}
}
