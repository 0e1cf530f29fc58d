package pool

import (
	"math"
	"time"
)

// appetite is what calls of one incarnation take of the CPU, and so how many instances of it the
// machine can keep going. The load of the machine as a whole does not tell: a handler that waits for
// others wants instances on a busy machine too, and one that computes wants none beyond the cores on
// an idle one.
type appetite struct {
	cores int
	// cpu is the CPU time of a call, alone how long it takes without what it waits for a CPU: with that, more
	// instances would seem to be needed the more there are.
	cpu, alone mean
	// most is what a call takes of the CPU at the most, inits included: what there is to go by at first.
	most time.Duration
	// Where waiting cannot be told, calm is how long calls take while there are no more of them than cores,
	// and least the shortest of all: what there is to go by while a function has known nothing but crowds.
	calm  mean
	least time.Duration
}

// cpuUse is what some calls had of the CPU: their number, how long they took together, the CPU time they used,
// and for how long they waited for it, if waits says that this is known.
type cpuUse struct {
	calls          int
	ran, cpu, wait time.Duration
	waits          bool
}

// add adds what has been used since before.
func (u *cpuUse) add(now, before cpuUse) {
	u.calls += now.calls - before.calls
	u.ran += now.ran - before.ran
	u.cpu += now.cpu - before.cpu
	u.wait += now.wait - before.wait
	u.waits = u.waits && now.waits && before.waits
}

const (
	// slack is how many times as many instances as the cores can keep going are of use: calls are not
	// evenly long, and an instance rests between two of them.
	slack = 1.5
	// leastCPU is what a call takes at least: what cannot be measured is not nothing.
	leastCPU = 10 * time.Microsecond
	// enoughCalm calls say how long calls take.
	enoughCalm = 4
)

// served takes note of a call that took d while so many were running.
func (a *appetite) served(d time.Duration, busy int) {
	if a.least == 0 || d < a.least {
		a.least = d
	}
	if busy <= a.cores {
		a.calm.add(d)
	}
}

// takes is how long a call takes that does not wait for others; 0 while that is not known.
func (a *appetite) takes() time.Duration {
	switch {
	case a.alone.count > 0:
		return a.alone.value
	case a.calm.count >= enoughCalm:
		return a.calm.value
	}
	return a.least
}

// ate takes note of what some calls used.
func (a *appetite) ate(use cpuUse) {
	if use.calls <= 0 {
		return
	}
	a.cpu.add(use.cpu / time.Duration(use.calls))
	if use.waits {
		// Some of the CPU and of the waiting is of the time between calls.
		a.alone.add(max(use.ran-use.wait, use.cpu) / time.Duration(use.calls))
	}
}

// guess takes note of what some calls and the inits before them used.
func (a *appetite) guess(use cpuUse) {
	if use.calls > 0 {
		a.most = use.cpu / time.Duration(use.calls)
	}
}

// useful is how many instances the machine can keep going, at least perCore a core; 0 while that is not
// known.
func (a *appetite) useful() int {
	cpu := a.cpu.value
	if a.cpu.count == 0 {
		cpu = a.most
	}
	if a.cpu.count == 0 && a.most == 0 || a.takes() == 0 {
		return 0
	}
	atOnce := float64(a.cores) * float64(a.takes()) / float64(max(cpu, leastCPU))
	return max(perCore*a.cores, int(math.Ceil(slack*atOnce))+1)
}
