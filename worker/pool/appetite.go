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
	// cpu is the CPU time of a call. calm is how long calls take while there are no more of them than
	// cores: with more they also wait for one another, and more instances would seem to be needed.
	// least is the shortest of all: what there is to go by while a function has known nothing but crowds.
	cpu, calm mean
	least     time.Duration
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
	if a.calm.count >= enoughCalm {
		return a.calm.value
	}
	return a.least
}

// ate takes note of the CPU time of some calls.
func (a *appetite) ate(cpu time.Duration, calls int) {
	if calls > 0 {
		a.cpu.add(cpu / time.Duration(calls))
	}
}

// useful is how many instances the machine can keep going, at least perCore a core; 0 while that is not
// known.
func (a *appetite) useful() int {
	if a.cpu.count == 0 || a.takes() == 0 {
		return 0
	}
	atOnce := float64(a.cores) * float64(a.takes()) / float64(max(a.cpu.value, leastCPU))
	return max(perCore*a.cores, int(math.Ceil(slack*atOnce))+1)
}
