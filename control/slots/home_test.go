package slots

import (
	"testing"
	"time"
)

// trio is three nodes whose beats a test carries by hand.
type trio struct {
	t       *testing.T
	now     time.Time
	members []string
	holders map[string]*Holder
	homes   map[string]*Home
	cut     map[string]bool
}

func newTrio(t *testing.T, clean bool) *trio {
	x := &trio{t: t, now: time.Unix(1000, 0), members: []string{"c1", "c2", "c3"}, holders: map[string]*Holder{}, homes: map[string]*Home{}, cut: map[string]bool{}}
	for _, m := range x.members {
		x.boot(m, m+"-1", clean)
	}
	x.now = x.now.Add(Term)
	return x
}

func (x *trio) boot(node, boot string, clean bool) {
	x.holders[node] = NewHolder(boot, clean, x.now)
	x.homes[node] = NewHome(node, x.holders[node])
}

// beat has one home look and beat to all that are not cut off, twice: the second time it knows that it won.
func (x *trio) beat(node string, wants bool) {
	x.homes[node].Look(x.members, func(shard int) bool { return wants && shard == 0 }, x.now)
	for range 2 {
		for _, m := range x.members {
			if b := x.homes[node].Beat(m, x.now); b != nil && (m == node || !x.cut[m] && !x.cut[node]) {
				x.homes[node].Reported(m, x.holders[m].Beat(b, x.now), x.now, x.now)
			}
		}
	}
}

// take asks a home for a slot of the shard 0 on behalf of a node: cap 2, run 1 s.
func (x *trio) take(home, node string) Verdict {
	l, at, ballot, ok := x.holders[node].Begin(keyOf(0), time.Second, x.now)
	if !ok || at != home {
		x.holders[node].End(l)
		return NotHome
	}
	v, b := x.homes[home].Acquire(node, x.holders[node].boot, l, 2, func() time.Duration { return time.Second }, x.now)
	if v == Granted && !x.holders[node].Confirm(l, ballot) || b != ballot {
		v = NotHome
	}
	if v != Granted {
		x.holders[node].End(l)
		return v
	}
	if home == node {
		for _, m := range x.members {
			if m != node && !x.cut[m] && x.holders[m].Witness(node, x.holders[node].boot, ballot, l) {
				return v
			}
		}
		x.t.Fatal("nobody witnesses")
	}
	return v
}

func (x *trio) want(what string, got, want Verdict) {
	x.t.Helper()
	if got != want {
		x.t.Errorf("%s: verdict %d, want %d", what, got, want)
	}
}

func (x *trio) pass(d time.Duration) { x.now = x.now.Add(d) }

// One cap for all who ask; nobody else is home while the home is.
func TestHomeGrantsUpToTheCap(t *testing.T) {
	x := newTrio(t, true)
	x.beat("c1", true)
	x.want("first", x.take("c1", "c2"), Granted)
	x.want("second", x.take("c1", "c1"), Granted)
	x.want("third", x.take("c1", "c3"), Full)
	x.beat("c2", true)
	x.want("of another", x.take("c2", "c3"), NotHome)
	x.pass(Term - margin)
	x.want("after its promises have run out", x.take("c1", "c3"), NotHome)
}

// Nobody is home with a minority.
func TestNoHomeWithoutAMajority(t *testing.T) {
	x := newTrio(t, true)
	x.cut["c1"] = true
	x.beat("c1", true)
	x.want("cut off", x.take("c1", "c1"), NotHome)
	x.beat("c2", true)
	x.want("of the others, who do not know what c1 did before", x.take("c2", "c3"), Recovering)
	for range 6 {
		x.pass(Term / 2)
		x.beat("c2", true)
	}
	x.pass(Slack + time.Second - 2*Term)
	x.beat("c2", true)
	x.want("of the others", x.take("c2", "c3"), Granted)
}

// The home dies: the next one grants nothing while the old one may, then what is left of the cap: what the
// others hold it is told, what the dead one held itself the others know.
func TestHomeDies(t *testing.T) {
	x := newTrio(t, true)
	x.beat("c1", true)
	x.want("of a node that lives on", x.take("c1", "c2"), Granted)
	x.cut["c1"] = true
	x.pass(Term - 1)
	x.beat("c2", true)
	x.want("while the old one may grant", x.take("c2", "c3"), NotHome)
	x.pass(1)
	x.beat("c2", true)
	x.want("one is free", x.take("c2", "c3"), Granted)
	x.want("no more", x.take("c2", "c3"), Full)
}

func TestHomeDiesWithItsOwn(t *testing.T) {
	x := newTrio(t, true)
	x.beat("c1", true)
	x.want("the home's own", x.take("c1", "c1"), Granted)
	x.cut["c1"] = true
	x.pass(Term)
	x.beat("c2", true)
	won := x.now
	x.want("one is free", x.take("c2", "c3"), Granted)
	x.want("the dead one's counts", x.take("c2", "c3"), Full)
	for x.now.Before(won.Add(Term + time.Second + Slack - 1)) {
		x.pass(min(Term/2, won.Add(Term+time.Second+Slack-1).Sub(x.now)))
		x.beat("c2", true)
	}
	x.want("it counts until it must have ended", x.take("c2", "c3"), Full)
	x.pass(1)
	x.beat("c2", true)
	x.want("and no longer", x.take("c2", "c3"), Granted)
}

// A node that is silent was not the home: what it held, nobody who is there knows, and nothing is granted
// until it must be over.
func TestNothingIsGrantedBesideUnknownExecutions(t *testing.T) {
	x := newTrio(t, true)
	x.beat("c1", true)
	x.cut["c1"], x.cut["c3"] = true, true
	x.pass(Term)
	x.boot("c1", "c1-2", false) // it comes back and knows nothing, also not as a voter
	x.cut["c1"] = false
	x.beat("c2", true)
	x.want("no majority yet", x.take("c2", "c2"), NotHome)
	x.pass(Term)
	x.beat("c2", true)
	x.want("c3 is silent", x.take("c2", "c2"), Recovering)
	for range 10 {
		x.pass(Term / 2)
		x.beat("c2", true)
		if v := x.take("c2", "c2"); v == Granted {
			break
		}
	}
	if late := x.now.Sub(time.Unix(1000, 0)); late < 3*Term+Term+time.Second+Slack {
		t.Errorf("granted after %v", late)
	}
}

// All nodes were killed at once: what their lives before had begun may be there still. When they were
// stopped in order there is nothing.
func TestEverybodyStartsAnew(t *testing.T) {
	x := newTrio(t, false)
	x.beat("c1", true)
	x.want("at once", x.take("c1", "c1"), Recovering)
	x.pass(time.Second + Slack - Term)
	x.beat("c1", true)
	x.want("when it is over", x.take("c1", "c1"), Granted)
	x = newTrio(t, true)
	x.beat("c1", true)
	x.want("after a stop", x.take("c1", "c1"), Granted)
}

// A node that has the slot of a home that lost its shard begins nothing on it.
func TestPermissionPasses(t *testing.T) {
	x := newTrio(t, true)
	x.beat("c1", true)
	x.want("granted", x.take("c1", "c2"), Granted)
	if !x.holders["c2"].May(keyOf(0), x.now.Add(Term-1)) {
		t.Error("it may not begin what was granted")
	}
	if x.holders["c2"].May(keyOf(0), x.now.Add(Term)) {
		t.Error("it may begin what was granted a term ago")
	}
}

// A home that stops in order is followed at once.
func TestResign(t *testing.T) {
	x := newTrio(t, true)
	x.beat("c1", true)
	x.want("granted", x.take("c1", "c2"), Granted)
	resign := x.homes["c1"].Resign(x.now)
	if !resign.Idle {
		t.Error("c1 has a lease")
	}
	x.holders["c2"].Beat(resign, x.now)
	x.holders["c3"].Beat(resign, x.now)
	x.cut["c1"] = true
	x.beat("c3", true)
	x.want("one is free", x.take("c3", "c3"), Granted)
	x.want("no more", x.take("c3", "c3"), Full)
}

// A cap that is lowered grants nothing until there are fewer.
func TestCapLowered(t *testing.T) {
	x := newTrio(t, true)
	x.beat("c1", true)
	h, c2 := x.homes["c1"], x.holders["c2"]
	longest := func() time.Duration { return time.Second }
	var held []Lease
	ask := func(limit int) Verdict {
		l, _, _, _ := c2.Begin(keyOf(0), time.Second, x.now)
		v, _ := h.Acquire("c2", "c2-1", l, limit, longest, x.now)
		if v == Granted {
			held = append(held, l)
		} else {
			c2.End(l)
		}
		return v
	}
	for range 4 {
		x.want("of 4", ask(4), Granted)
	}
	x.want("lowered to 2", ask(2), Full)
	for _, l := range held[:3] {
		x.want("lowered to 2", ask(2), Full)
		c2.End(l)
		h.End("c2-1", l)
	}
	x.want("one runs", ask(2), Granted)
	x.want("raised to 3", ask(3), Granted)
	x.want("raised to 3", ask(3), Full)
}
