package pool

import (
	"math"
	"time"
)

// demand is what the decision to start instances is made on.
type demand struct {
	// held calls wait here; starting and ready instances there are (ready includes busy ones).
	held, starting, ready, busy int
	// returning instances, of the ready ones, have just answered and will ask for the next event at once.
	returning int
	// served calls so far; service is their mean time, start what an instance takes to start.
	served         int
	service, start time.Duration
	// waited is the sum of calls' waiting since the last start, as regret counts it.
	waited time.Duration
	// useful is how many instances the CPU can keep going, 0 when that is not known. Then cpuFree says
	// that the machine has CPU to spare, and cores how many it has.
	useful  int
	cpuFree bool
	cores   int
	// limit bounds the instances of this incarnation; 0 for none.
	limit int
}

// perCore instances are let be in any case: they keep a core busy while some are between two events.
const perCore = 4

// starts decides how many more instances to start.
//
// Without history each held call gets its own. With history a call waits where the expected wait
// (service time × calls in front ÷ instances) is shorter than a start. That estimate alone would
// let calls queue for ever just under it, so that a start is also due when the calls held since the
// last one have together waited for as long as it takes, which bounds the regret whatever comes.
// But no more than the CPU can keep going: another instance only takes from the others, service times
// grow, and more and more would seem to be needed.
func (d demand) starts() int {
	need := d.held - d.starting - d.returning
	if need <= 0 {
		return 0
	}
	n := need
	if d.served > 0 {
		useful := int(math.Ceil(float64(d.service) * float64(d.held) / float64(max(d.start, time.Millisecond))))
		n = useful - d.starting - d.ready
		if d.starting+d.ready == 0 || d.waited >= d.start && d.starting+d.ready < spare(d.busy+d.held) {
			n = max(n, 1)
		}
		if most := d.most(); most > 0 {
			n = min(n, most-d.ready-d.starting)
		}
		n = max(0, min(n, need))
	}
	if d.limit > 0 {
		n = max(0, min(n, d.limit-d.ready-d.starting))
	}
	return n
}

// returns is how soon after an answer an instance that lives as it should asks for the next event, on a busy machine.
const returns = 20 * time.Millisecond

// spare is how many instances so many calls at once have a use for: some are between two events.
func spare(calls int) int { return calls + (calls+7)/8 }

// fade is how long it takes until waiting weighs a half: it is what has been of late that asks for more.
const fade = time.Second

// regret is the sum of calls' waiting since the last start, after so many more have waited for the time that passed.
// It does not begin anew whenever no call waits: a few that wait in every turn of a handler wait for ever.
func regret(waited time.Duration, held int, passed time.Duration) time.Duration {
	return time.Duration(float64(waited)*math.Exp2(-float64(passed)/float64(fade))) + time.Duration(held)*passed
}

// crowd is how many times as many instances as the CPU has a use for are too many: what a burst before
// anything was known has started.
const crowd = 2

// crowded says that an instance that comes free had better end.
func (g *group) crowded() bool {
	if len(g.members) <= crowd*perCore*g.pool.load.cores || g.appetite.cpu.count == 0 { // the least that crowds any machine
		return false
	}
	d := g.demand()
	return d.useful > 0 && d.ready+d.starting > crowd*d.useful
}

// most is how many instances the CPU has a use for; 0 when it is not the limit.
func (d demand) most() int {
	switch {
	case d.useful > 0:
		return d.useful
	case d.cpuFree:
		return 0
	}
	return perCore * d.cores
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
