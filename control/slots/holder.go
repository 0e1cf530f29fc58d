package slots

import (
	"sync"
	"time"
)

// Holder is a control node as one that has leases and gives promises. Its methods may be called from many
// goroutines; the times given are time.Now.
type Holder struct {
	boot  string
	begun time.Time
	clean bool

	mu       sync.Mutex
	promises [Shards]promise
	leases   map[uint64]Lease
	last     uint64
	retired  bool // it asks for no more
}

// promise is what a holder has promised of one shard.
type promise struct {
	home, boot string
	ballot     uint64    // the highest seen
	until      time.Time // nobody else gets it before
	may        time.Time // executions may be begun before
	witness    *Witness  // of the home's own leases; nil until it had a majority
	prior      *Witness  // the same of the home before, until the new one had a majority
}

// NewHolder makes a holder without leases. boot names this life of the node; clean says that executions
// of the life before have ended.
func NewHolder(boot string, clean bool, now time.Time) *Holder {
	return &Holder{boot: boot, begun: now, clean: clean, leases: map[uint64]Lease{}}
}

// Beat answers a home.
func (h *Holder) Beat(b *Beat, now time.Time) *Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &Report{Boot: h.boot, Age: now.Sub(h.begun), Clean: h.clean, Stamp: int64(now.Sub(h.begun)) + 1, High: h.last}
	if b.Resign {
		h.resigned(b, now)
		return r
	}
	var given [Shards]bool
	for _, s := range b.Shards {
		if s.Shard < 0 || s.Shard >= Shards {
			continue
		}
		v := h.vote(b, &s, now)
		given[s.Shard] = v.OK
		r.Votes = append(r.Votes, v)
	}
	for _, l := range h.leases {
		if given[shardOf(l.Key)] {
			r.Leases = append(r.Leases, l)
		}
	}
	return r
}

func (h *Holder) vote(b *Beat, s *Stand, now time.Time) Vote {
	p := &h.promises[s.Shard]
	v := Vote{Shard: s.Shard, Ballot: s.Ballot}
	switch {
	case p.home == b.Home && p.boot == b.Boot && p.ballot == s.Ballot:
		v.OK = true
	case now.Before(h.begun.Add(Term)): // the life before may have promised it
		v.Held = true
	case now.Before(p.until) && p.home != b.Home:
		v.Held = true
	case s.Ballot > p.ballot:
		if p.witness != nil {
			p.prior, p.witness = p.witness, nil
		}
		p.home, p.boot, p.ballot, p.may = b.Home, b.Boot, s.Ballot, time.Time{}
		v.OK = true
	}
	v.Seen = p.ballot
	if !v.OK {
		return v
	}
	p.until = now.Add(Term)
	v.Prior = p.prior
	if s.Echo > 0 && s.Of == h.boot {
		// From when the report was made that the home has taken in: not from now, which is any time later.
		if may := h.begun.Add(time.Duration(s.Echo) - 1 + Term); may.After(p.may) {
			p.may = may
		}
		w := &Witness{Home: b.Home, Boot: b.Boot, Ballot: s.Ballot, Leases: s.Own}
		if p.witness != nil {
			for _, l := range p.witness.Leases {
				if l.ID > b.High { // newer than what is said
					w.Leases = append(w.Leases, l)
				}
			}
		}
		p.witness, p.prior = w, nil
	}
	return v
}

// resigned frees what a home has given up.
func (h *Holder) resigned(b *Beat, now time.Time) {
	for i := range h.promises {
		p := &h.promises[i]
		if p.home != b.Home || p.boot != b.Boot {
			continue
		}
		p.until = now
		if b.Idle && p.witness != nil {
			p.witness.Leases = nil
		}
	}
}

// withdraw takes back a promise to the node's own home, which does not stand any more.
func (h *Holder) withdraw(shard int, home string, ballot uint64, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := &h.promises[shard]; p.home == home && p.ballot == ballot {
		p.until = now
	}
}

// free says whether the shard is promised to nobody, and the highest ballot seen.
func (h *Holder) free(shard int, now time.Time) (ballot uint64, free bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.promises[shard]
	return p.ballot, !now.Before(p.until) && !now.Before(h.begun.Add(Term))
}

// Begin enters a lease that is about to be asked for, and says of which home. ok is false while there is
// none on whose word an execution might be begun.
func (h *Holder) Begin(key string, run time.Duration, now time.Time) (l Lease, home string, ballot uint64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.promises[shardOf(key)]
	if h.retired || !now.Before(p.may) {
		return Lease{}, "", 0, false
	}
	h.last++
	l = Lease{ID: h.last, Key: key, Run: run}
	h.leases[l.ID] = l
	return l, p.home, p.ballot, true
}

// Confirm says whether a lease that was granted counts: not when the home has changed meanwhile.
func (h *Holder) Confirm(l Lease, ballot uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.leases[l.ID]
	return ok && h.promises[shardOf(l.Key)].ballot == ballot
}

// May says whether an execution of the function may be begun now.
func (h *Holder) May(key string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now.Before(h.promises[shardOf(key)].may)
}

// End takes out a lease whose execution has ended, and says who its home is now.
func (h *Holder) End(l Lease) (home string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.leases, l.ID)
	return h.promises[shardOf(l.Key)].home
}

// Witness keeps a lease of a home's own holder; false when that is not the home that the shard is promised to.
func (h *Holder) Witness(home, boot string, ballot uint64, l Lease) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.promises[shardOf(l.Key)]
	if p.home != home || p.boot != boot || p.ballot != ballot || p.witness == nil {
		return false
	}
	p.witness.Leases = append(p.witness.Leases, l)
	return true
}

// all are the leases by shard, and the last one that was asked for.
func (h *Holder) all() (leases [Shards][]Lease, high uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.leases {
		shard := shardOf(l.Key)
		leases[shard] = append(leases[shard], l)
	}
	return leases, h.last
}

// retire has no more leases asked for, and says that there is none.
func (h *Holder) retire() (idle bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.retired = true
	return len(h.leases) == 0
}
