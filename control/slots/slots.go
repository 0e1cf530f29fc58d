// Package slots is reserved concurrency as one strict cap on executions in a cluster of several control
// nodes: an execution of a capped function needs a slot, which the function's home leases to the gateway
// that has the call.
//
// Three tables, all in memory, none in Raft. Each control node is a Holder: it has leases, and promises
// each shard of the functions to one home for a Term at a time. Who has the promises of a majority is the
// shard's Home and knows from the reports that come with them what everybody holds; it grants nothing for
// a function while there may be executions that nobody has reported. Node ties them to the bus.
//
// It must not know what a call is, how it is queued or on which worker it runs. Times are durations on
// each node's own monotonic clock; none is compared with another node's.
package slots

import (
	"errors"
	"time"

	"github.com/doze-run/doze/bus"
)

const (
	// Shards is how many parts the capped functions are divided into; each has a home of its own. It
	// must be the same on all nodes.
	Shards = 8
	// Term is for how long a promise holds, and for how long a holder may begin executions on it.
	Term = 1500 * time.Millisecond
	// margin is by how much earlier a home stops to count on a promise: clocks do not all run alike.
	margin = Term / 10
	// beatEvery is how often a home has its promises renewed.
	beatEvery = 200 * time.Millisecond
	// Slack is how long after its claim was granted, beside its timeout, an execution may still be there:
	// it is begun late, and killed at its end.
	Slack = bus.BeginLimit + time.Second
)

var (
	// ErrFull: as many executions as the function may have are there.
	ErrFull = errors.New("slots: the function's concurrency is used up")
	// ErrAway: nobody could grant a slot in time.
	ErrAway = errors.New("slots: no home grants")
)

// Lease is the right to one execution.
type Lease struct {
	// ID is unique for its holder and grows.
	ID uint64 `json:"i"`
	// Key names the function.
	Key string `json:"k"`
	// Run is the execution's time limit.
	Run time.Duration `json:"r"`
}

// shardOf is the part of the functions that a key belongs to.
func shardOf(key string) int {
	h := uint32(2166136261) // FNV-1a
	for i := 0; i < len(key); i++ {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return int(h % Shards)
}

// Beat is what a home tells a holder, and asks of it.
type Beat struct {
	Home string `json:"h"`
	// Boot names the home's life, High the last lease that its own holder had asked for.
	Boot   string  `json:"b"`
	High   uint64  `json:"g,omitempty"`
	Shards []Stand `json:"s,omitempty"`
	// Resign: the home gives up all its shards. Idle: and its own holder has no lease, and will have none.
	Resign bool `json:"x,omitempty"`
	Idle   bool `json:"d,omitempty"`
}

// Stand is a home's wish for the promise of one shard.
type Stand struct {
	Shard  int    `json:"s"`
	Ballot uint64 `json:"b"`
	// Echo is the stamp of the last report of the holder's life Of that the home has taken in, while it has
	// a majority; else 0.
	Echo int64  `json:"e,omitempty"`
	Of   string `json:"l,omitempty"`
	// Own are the leases of the home's own holder, which others keep in case that it dies.
	Own []Lease `json:"o,omitempty"`
}

// Report is a holder's answer to a Beat.
type Report struct {
	Boot string `json:"b"`
	// Age is how long the holder has been there; Clean: what it was before had ended its executions.
	Age   time.Duration `json:"a"`
	Clean bool          `json:"c,omitempty"`
	// Stamp is the holder's time, High the last lease that it asked for: of those up to it, it has the
	// Leases (of the shards asked for) and no others.
	Stamp  int64   `json:"t"`
	High   uint64  `json:"g"`
	Votes  []Vote  `json:"v"`
	Leases []Lease `json:"l,omitempty"`
}

// Vote is the answer to a Stand.
type Vote struct {
	Shard  int    `json:"s"`
	Ballot uint64 `json:"b"` // as it was asked for
	OK     bool   `json:"o,omitempty"`
	// Seen is the highest ballot that the holder knows. Held: another has its promise.
	Seen uint64 `json:"n,omitempty"`
	Held bool   `json:"h,omitempty"`
	// Prior is what the holder knows of the leases of the home before.
	Prior *Witness `json:"p,omitempty"`
}

// Witness is what a holder knows of the leases of a home's own holder.
type Witness struct {
	Home   string  `json:"h"`
	Boot   string  `json:"b"`
	Ballot uint64  `json:"n"`
	Leases []Lease `json:"l,omitempty"`
}
