package slots

import "time"

// table is who holds what of one shard, as its home knows it.
type table struct {
	tenants map[string]*tenant // by the name of a life
	used    map[string]int     // leases by key
}

// tenant is one life of a node that has leases.
type tenant struct {
	node string
	// heard is when it last reported: it begins no execution later than a Term after that.
	heard  time.Time
	stamp  int64
	leases map[uint64]Lease
	// granted are those that this home has granted; the others are reported, and either a home before
	// granted them or they are being asked for.
	granted map[uint64]struct{}
	freed   map[uint64]struct{} // ended since its last report was made, perhaps
}

func newTable() *table {
	return &table{tenants: map[string]*tenant{}, used: map[string]int{}}
}

func (t *table) tenant(node, boot string, heard time.Time) *tenant {
	x := t.tenants[boot]
	if x == nil {
		x = &tenant{node: node, leases: map[uint64]Lease{}, granted: map[uint64]struct{}{}, freed: map[uint64]struct{}{}}
		t.tenants[boot] = x
	}
	if heard.After(x.heard) {
		x.heard = heard
	}
	return x
}

// report takes in what a node holds of the shard. An older report than the last one says nothing.
func (t *table) report(node string, r *Report, shard int, now time.Time) {
	x := t.tenant(node, r.Boot, now)
	if r.Stamp <= x.stamp {
		return
	}
	x.stamp = r.Stamp
	held := make(map[uint64]struct{}, len(r.Leases))
	for _, l := range r.Leases {
		if shardOf(l.Key) != shard {
			continue
		}
		held[l.ID] = struct{}{}
		if _, freed := x.freed[l.ID]; !freed {
			t.add(x, l)
		}
	}
	for id, l := range x.leases {
		if _, ok := held[id]; !ok && id <= r.High { // what is newer was asked for after the report
			t.remove(x, l)
		}
	}
	for id := range x.freed {
		if _, ok := held[id]; !ok && id <= r.High {
			delete(x.freed, id)
		}
	}
}

func (t *table) add(x *tenant, l Lease) {
	if _, ok := x.leases[l.ID]; !ok {
		x.leases[l.ID] = l
		t.used[l.Key]++
	}
}

func (t *table) remove(x *tenant, l Lease) {
	delete(x.leases, l.ID)
	delete(x.granted, l.ID)
	if t.used[l.Key]--; t.used[l.Key] <= 0 {
		delete(t.used, l.Key)
	}
}

// grant gives a tenant a lease, if there are fewer than limit beside it.
func (t *table) grant(x *tenant, l Lease, limit int) bool {
	if _, ok := x.granted[l.ID]; ok {
		return true
	}
	beside := t.used[l.Key]
	if _, reported := x.leases[l.ID]; reported {
		beside--
	}
	if beside >= limit {
		return false
	}
	t.add(x, l)
	x.granted[l.ID] = struct{}{}
	return true
}

// end takes out a lease that its holder has ended.
func (t *table) end(boot string, id uint64) {
	x := t.tenants[boot]
	if x == nil {
		return
	}
	if l, ok := x.leases[id]; ok {
		t.remove(x, l)
		x.freed[id] = struct{}{}
	}
}

// sweep takes out the leases of who is silent, once their executions must have ended, and forgets who has
// none.
func (t *table) sweep(now time.Time) {
	for boot, x := range t.tenants {
		last := x.heard.Add(Term)
		if now.Before(last) {
			continue
		}
		for _, l := range x.leases {
			if !now.Before(last.Add(l.Run + Slack)) {
				t.remove(x, l)
			}
		}
		if len(x.leases) == 0 {
			delete(t.tenants, boot)
		}
	}
}
