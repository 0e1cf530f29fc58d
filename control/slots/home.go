package slots

import (
	"slices"
	"sync"
	"time"
)

// Verdict is a home's answer to who asks for a slot.
type Verdict uint8

const (
	// NotHome: it does not grant for this function, or not for this holder, now.
	NotHome Verdict = iota
	// Granted: the execution may be begun.
	Granted
	// Full: as many as may be are there.
	Full
	// Recovering: there may be executions that nobody has told of.
	Recovering
)

// Home is a control node as one that grants slots, for the shards that a majority has promised it. Its
// methods may be called from many goroutines; the times given are time.Now.
type Home struct {
	node, boot string
	own        *Holder

	mu      sync.Mutex
	members []string
	seats   [Shards]seat
	seen    [Shards]uint64 // the highest ballot
	ended   bool
}

// seat is one shard at its home, or at one who would be.
type seat struct {
	ballot  uint64 // 0: it does not stand
	won     time.Time
	peers   map[string]*peer // who has promised it
	refused map[string]struct{}
	table   *table
	settled map[string]struct{} // nodes of whose unreported executions everything is known
}

// peer is a holder that has promised a ballot.
type peer struct {
	sent  time.Time // when it was asked that last answered
	boot  string
	stamp int64
	begun time.Time // at its first report: when that life had begun, at the latest
	first string    // that life
	clean bool
	prior *Witness
}

// NewHome makes a home that has no shard. own is the holder of the same node and life.
func NewHome(node string, own *Holder) *Home {
	return &Home{node: node, boot: own.boot, own: own}
}

func majority(n int) int { return n/2 + 1 }

// valid says whether a majority's promises hold.
func (s *seat) valid(members []string, now time.Time) bool {
	if s.ballot == 0 || s.won.IsZero() {
		return false
	}
	var sent []time.Time
	for _, m := range members {
		if p := s.peers[m]; p != nil {
			sent = append(sent, p.sent)
		}
	}
	need := majority(len(members))
	if len(sent) < need {
		return false
	}
	slices.SortFunc(sent, func(a, b time.Time) int { return b.Compare(a) })
	return now.Before(sent[need-1].Add(Term - margin))
}

// Look decides for which shards to stand. members are all control nodes, wants says of which shards this
// one should be the home if nobody is.
func (h *Home) Look(members []string, wants func(shard int) bool, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.members = members
	for i := range h.seats {
		s := &h.seats[i]
		if s.ballot != 0 {
			s.table.sweep(now)
			continue
		}
		ballot, free := h.own.free(i, now)
		if h.ended || !free || !wants(i) || !slices.Contains(members, h.node) {
			continue
		}
		h.seen[i] = max(h.seen[i], ballot) + 1
		*s = seat{
			ballot: h.seen[i], peers: map[string]*peer{}, refused: map[string]struct{}{}, table: newTable(),
			settled: map[string]struct{}{},
		}
	}
}

// Beat is what to tell a holder now; nil for nothing.
func (h *Home) Beat(node string, now time.Time) *Beat {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := &Beat{Home: h.node, Boot: h.boot}
	var own [Shards][]Lease
	if node != h.node {
		own, b.High = h.own.all()
	}
	for i := range h.seats {
		s := &h.seats[i]
		if s.ballot == 0 {
			continue
		}
		stand := Stand{Shard: i, Ballot: s.ballot}
		if p := s.peers[node]; p != nil && s.valid(h.members, now) {
			stand.Echo, stand.Of, stand.Own = p.stamp, p.boot, own[i]
		}
		b.Shards = append(b.Shards, stand)
	}
	if len(b.Shards) == 0 {
		return nil
	}
	return b
}

// Reported takes in a holder's answer to a beat that was made at sent. again says that the next beat should
// not wait: somebody learns from it that there is a home.
func (h *Home) Reported(node string, r *Report, sent, now time.Time) (again bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.members, node) {
		return false
	}
	for i := range r.Votes {
		v := &r.Votes[i]
		if v.Shard < 0 || v.Shard >= Shards {
			continue
		}
		h.seen[v.Shard] = max(h.seen[v.Shard], v.Seen)
		s := &h.seats[v.Shard]
		if s.ballot == 0 || v.Ballot != s.ballot {
			continue
		}
		if !v.OK {
			h.refused(v, node, now)
			continue
		}
		p := s.peers[node]
		if p == nil {
			p = &peer{boot: r.Boot, first: r.Boot, begun: now.Add(-r.Age), clean: r.Clean, prior: v.Prior}
			s.peers[node] = p
			again = true
		}
		if p.boot != r.Boot {
			p.boot, p.stamp = r.Boot, 0 // what the life before held is in the table
		}
		delete(s.refused, node)
		if sent.After(p.sent) {
			p.sent = sent
		}
		p.stamp = max(p.stamp, r.Stamp)
		s.table.report(node, r, v.Shard, now)
		if s.won.IsZero() && len(s.peers) >= majority(len(h.members)) {
			s.won = now
			again = true
		}
	}
	return again
}

// refused gives a ballot up that cannot be won, or that is lower than one that a holder knows.
func (h *Home) refused(v *Vote, node string, now time.Time) {
	s := &h.seats[v.Shard]
	s.refused[node] = struct{}{}
	low := !v.Held && v.Seen >= s.ballot
	if low || !s.valid(h.members, now) && len(h.members)-len(s.refused) < majority(len(h.members)) {
		ballot := s.ballot
		*s = seat{}
		h.own.withdraw(v.Shard, h.node, ballot, now)
	}
}

// Acquire gives a holder a lease, or says why not. limit is the function's cap; longest says how long any
// execution of it may run, and is called only when it matters.
func (h *Home) Acquire(node, boot string, l Lease, limit int, longest func() time.Duration, now time.Time) (Verdict, uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &h.seats[shardOf(l.Key)]
	if !s.valid(h.members, now) {
		return NotHome, 0
	}
	x := s.table.tenants[boot]
	if x == nil || x.node != node {
		return NotHome, 0
	}
	if begun, ok := h.unreported(s); ok && now.Before(begun.Add(max(longest(), l.Run)+Slack)) {
		return Recovering, s.ballot
	}
	if !s.table.grant(x, l, limit) {
		return Full, s.ballot
	}
	return Granted, s.ballot
}

// End takes out a lease whose execution has ended.
func (h *Home) End(boot string, l Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := &h.seats[shardOf(l.Key)]; s.ballot != 0 {
		s.table.end(boot, l.ID)
	}
}

// unreported says until when executions may have been begun that are not in the table: by a node that has
// not reported, or by the life before of one that has. ok is false when there are none.
func (h *Home) unreported(s *seat) (begun time.Time, ok bool) {
	for _, m := range h.members {
		if _, settled := s.settled[m]; settled {
			continue
		}
		p := s.peers[m]
		switch {
		case p != nil && p.clean, h.witnessed(s, m):
			s.settled[m] = struct{}{}
		case p != nil:
			begun, ok = later(begun, p.begun), true
		default:
			begun, ok = later(begun, s.won.Add(Term)), true
		}
	}
	return begun, ok
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// witnessed takes the leases of a node that was the home before from what all others know of them; false
// when that may not be all.
func (h *Home) witnessed(s *seat, node string) bool {
	var last *Witness
	for _, m := range h.members {
		if m == node {
			continue
		}
		p := s.peers[m]
		if p == nil || p.prior == nil || p.prior.Home != node {
			return false
		}
		if last != nil && (last.Ballot != p.prior.Ballot || last.Boot != p.prior.Boot) {
			return false
		}
		last = p.prior
	}
	if last == nil {
		return false
	}
	if p := s.peers[node]; p != nil && p.first == last.Boot {
		return false // it reports itself; of its life before nothing is known
	}
	x := s.table.tenant(node, last.Boot, s.won)
	for _, m := range h.members {
		if m == node {
			continue
		}
		for _, l := range s.peers[m].prior.Leases {
			s.table.add(x, l)
		}
	}
	return true
}

// Resign gives up all shards for good, and is what to tell the others.
func (h *Home) Resign(now time.Time) *Beat {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for i := range h.seats {
		h.seats[i] = seat{}
	}
	return &Beat{Home: h.node, Boot: h.boot, Resign: true, Idle: h.own.retire()}
}
