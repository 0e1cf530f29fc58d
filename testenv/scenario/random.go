package scenario

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// trouble is something that goes wrong, and what ends it.
type trouble struct {
	weight      int
	begin, mend string
	// settled is whether the cluster must have been let come to rest before.
	settled bool
}

// troubles are the random ones. A majority of the control nodes is left, or all are killed at once: what a cluster
// does without a majority, the named scenarios ask.
var troubles = []trouble{
	{weight: 4, begin: "kill leader", mend: "start it"},
	{weight: 3, begin: "kill follower", mend: "start it"},
	{weight: 4, begin: "kill worker", mend: "start it"},
	{weight: 3, begin: "stop worker", mend: "cont it"},
	{weight: 2, begin: "stop leader", mend: "cont it"},
	{weight: 2, begin: "stop follower", mend: "cont it"},
	{weight: 2, begin: "term worker", mend: "start it"},
	{weight: 2, begin: "term follower", mend: "start it"},
	{weight: 2, begin: "partition leader from others", mend: "heal"},
	{weight: 2, begin: "partition worker from controls", mend: "heal"},
	{weight: 1, begin: "partition follower from workers", mend: "heal"},
	{weight: 1, begin: "deafen leader to others", mend: "heal"},
	{weight: 1, begin: "flap follower from others", mend: "heal"},
	{weight: 2, begin: "lose 5% at all", mend: "heal"},
	{weight: 1, begin: "limit 2000 at worker", mend: "heal"},
	{weight: 1, begin: "kill follower", mend: "wipe it", settled: true},
	{weight: 1, begin: "kill all", mend: "start all", settled: true},
}

// Random is a scenario that a seed makes: trouble every few seconds for so long. The same seed and duration give
// the same lines.
func Random(seed uint64, duration time.Duration) string {
	r := rand.New(rand.NewPCG(seed, 0xd07e))
	var b strings.Builder
	fmt.Fprintf(&b, "# Random faults of seed %d for %v.\ncluster 3 controls 3 workers\n", seed, duration)
	b.WriteString("load 4 functions 6 callers 2 senders 3 operators 2 deployers\n")
	sum := 0
	for _, t := range troubles {
		sum += t.weight
	}
	between := func(from, to time.Duration) time.Duration {
		return from + time.Duration(r.Int64N(int64((to-from)/(100*time.Millisecond))))*100*time.Millisecond
	}
	for at := time.Duration(0); at < duration; {
		n := r.IntN(sum)
		var t trouble
		for _, t = range troubles {
			if n -= t.weight; n < 0 {
				break
			}
		}
		quiet, holds := between(time.Second, 4*time.Second), between(500*time.Millisecond, 6*time.Second)
		if t.settled {
			quiet += 5 * time.Second
		}
		fmt.Fprintf(&b, "then %v %s\nthen %v %s\n", quiet, t.begin, holds, t.mend)
		at += quiet + holds
	}
	b.WriteString("then 3s end\n")
	return b.String()
}
