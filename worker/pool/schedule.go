package pool

import (
	"math"
	"time"
)

// demand is what the decision to start instances is made on.
type demand struct {
	// held calls wait here; starting and ready instances there are (ready includes busy ones).
	held, starting, ready int
	// served calls so far; service is their mean time, start what an instance takes to start.
	served         int
	service, start time.Duration
	// waited is the sum of the held calls' waiting since the last start.
	waited time.Duration
	// cpuFree says that the machine has CPU to spare; cores is how many it has.
	cpuFree bool
	cores   int
	// limit bounds the instances of this incarnation; 0 for none.
	limit int
}

// perCore instances keep a core busy while some of them are between two events.
const perCore = 4

// starts decides how many more instances to start.
//
// Without history each held call gets its own. With history a call waits where the expected wait
// (service time × calls in front ÷ instances) is shorter than a start. That estimate alone would
// let calls queue for ever just under it, so that a start is also due when the calls held since the
// last one have together waited for as long as it takes, which bounds the regret whatever comes.
// But no more than a few for each core where the CPU is the limit: there another instance only takes
// from the others, service times grow, and more and more would seem to be needed.
func (d demand) starts() int {
	need := d.held - d.starting
	if need <= 0 {
		return 0
	}
	n := need
	if d.served > 0 {
		useful := int(math.Ceil(float64(d.service) * float64(d.held) / float64(max(d.start, time.Millisecond))))
		n = useful - d.starting - d.ready
		if d.starting+d.ready == 0 || d.waited >= d.start {
			n = max(n, 1)
		}
		if !d.cpuFree {
			n = min(n, perCore*d.cores-d.ready-d.starting)
		}
		n = max(0, min(n, need))
	}
	if d.limit > 0 {
		n = max(0, min(n, d.limit-d.ready-d.starting))
	}
	return n
}

// mean is an exponentially weighted mean of durations that begins with the first one.
type mean struct {
	value time.Duration
	count int
}

func (m *mean) add(d time.Duration) {
	m.count++
	if m.count == 1 {
		m.value = d
		return
	}
	m.value += (d - m.value) / 8
}
