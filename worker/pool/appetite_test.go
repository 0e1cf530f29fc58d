package pool

import (
	"testing"
	"time"
)

func TestUseful(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name      string
		calm, cpu time.Duration
		want      int
	}{
		{"computes all the time: a few for each core", 10 * ms, 10 * ms, 8},
		{"computes a fifth of the time", 10 * ms, 2 * ms, 16},
		{"waits for others", 100 * ms, ms / 2, 601},
		{"uses next to nothing", 100 * ms, 0, 30_001},
	} {
		a := appetite{cores: 2}
		if got := a.useful(); got != 0 {
			t.Errorf("%s: %d useful while nothing is known", test.name, got)
		}
		if a.ate(cpuUse{calls: 10, cpu: 10 * test.cpu}); a.useful() != 0 {
			t.Errorf("%s: %d useful while it is not known how long calls take", test.name, a.useful())
		}
		for range enoughCalm {
			a.served(test.calm/2, 3) // with more calls than cores its time says nothing
			a.served(test.calm, 2)
			a.served(50*test.calm, 3)
		}
		if got := a.useful(); got != test.want {
			t.Errorf("%s: %d useful, want %d", test.name, got, test.want)
		}
	}
}

func TestUsefulInACrowd(t *testing.T) {
	a := appetite{cores: 2}
	for _, d := range []time.Duration{9, 2, 30} {
		a.served(d*time.Millisecond, 64)
	}
	a.ate(cpuUse{calls: 1, cpu: 200 * time.Microsecond})
	if got := a.useful(); got != 31 {
		t.Errorf("%d useful, want what the shortest call tells, 31", got)
	}
}

// Calls that wait for a CPU take longer and want no more instances for that; those that wait for others do.
func TestUsefulWhereWaitingIsKnown(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		name           string
		ran, cpu, wait time.Duration
		want           int
	}{
		{"computes, in a crowd", 30 * ms, ms, 29 * ms, 8},
		{"waited between its calls, too", 30 * ms, ms, 40 * ms, 8},
		{"waits for others on a busy machine", 130 * ms, ms / 2, 30 * ms, 601},
	} {
		a := appetite{cores: 2}
		a.served(test.ran, 64)
		var sum cpuUse
		sum.waits = true
		before := cpuUse{calls: 1, ran: 7, cpu: 3, wait: 1, waits: true}
		sum.add(cpuUse{calls: 11, ran: 7 + 10*test.ran, cpu: 3 + 10*test.cpu, wait: 1 + 10*test.wait, waits: true}, before)
		a.ate(sum)
		if got := a.useful(); got != test.want {
			t.Errorf("%s: %d useful, want %d", test.name, got, test.want)
		}
	}
}

// Before calls were measured there is what they and their inits took together: never less.
func TestUsefulAtFirst(t *testing.T) {
	a := appetite{cores: 2}
	a.served(time.Second, 64)
	a.guess(cpuUse{})
	if got := a.useful(); got != 0 {
		t.Errorf("%d useful while nothing is known", got)
	}
	a.guess(cpuUse{calls: 2, cpu: 100 * time.Millisecond})
	if got := a.useful(); got != 61 {
		t.Errorf("%d useful, want 61", got)
	}
	if a.ate(cpuUse{calls: 1, cpu: 10 * time.Millisecond}); a.useful() != 301 {
		t.Errorf("%d useful, want what was measured, 301", a.useful())
	}
}
