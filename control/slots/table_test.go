package slots

import (
	"fmt"
	"testing"
	"time"
)

// keyOf is a key of the shard.
func keyOf(shard int) string {
	for i := 0; ; i++ {
		if key := fmt.Sprint("key", i); shardOf(key) == shard {
			return key
		}
	}
}

func ids(ids ...uint64) (leases []Lease) {
	for _, id := range ids {
		leases = append(leases, Lease{ID: id, Key: keyOf(0), Run: time.Second})
	}
	return leases
}

// What a holder holds is what it was given and has not ended, whatever order reports, grants and ends come in.
func TestTable(t *testing.T) {
	start := time.Unix(1000, 0)
	type step func(*table, *tenant)
	granted := func(id uint64, want bool) step {
		return func(table *table, x *tenant) {
			if table.grant(x, ids(id)[0], 2) != want {
				t.Errorf("%d granted: %v", id, !want)
			}
		}
	}
	grant := func(id uint64) step { return granted(id, true) }
	ended := func(id uint64) step { return func(t *table, _ *tenant) { t.end("boot", id) } }
	report := func(stamp int64, high uint64, held ...uint64) step {
		return func(t *table, _ *tenant) {
			t.report("c1", &Report{Boot: "boot", Stamp: stamp, High: high, Leases: ids(held...)}, 0, start)
		}
	}
	for _, test := range []struct {
		name  string
		steps []step
		want  int
	}{
		{"granted", []step{grant(1), grant(2)}, 2},
		{"granted once, asked twice", []step{grant(1), grant(1)}, 1},
		{"ended", []step{grant(1), grant(2), ended(1)}, 1},
		{"ended twice", []step{grant(1), grant(2), ended(1), ended(1)}, 1},
		{"the end was lost: the report has it", []step{grant(1), grant(2), report(1, 2, 2)}, 1},
		{"granted after the report was made", []step{grant(7), report(1, 6)}, 1},
		{"of another home before: the report brings it", []step{report(1, 3, 1, 3)}, 2},
		{"ended after the report was made", []step{grant(1), ended(1), report(1, 1, 1)}, 0},
		{"and reported away after that", []step{grant(1), ended(1), report(1, 1, 1), report(2, 1), report(3, 1)}, 0},
		{"an old report comes late", []step{grant(1), report(2, 1), report(1, 1, 1)}, 0},
		{"a third", []step{grant(1), grant(2), granted(3, false)}, 2},
		{"reported while it is being asked for", []step{grant(1), report(1, 2, 1, 2), grant(2), granted(3, false)}, 2},
		{"reported and too many", []step{grant(1), grant(2), report(1, 3, 1, 2, 3), granted(3, false)}, 3},
		{"of another shard", []step{func(t *table, _ *tenant) {
			t.report("c1", &Report{Boot: "boot", Stamp: 1, High: 1, Leases: []Lease{{ID: 1, Key: keyOf(3)}}}, 0, start)
		}}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			table := newTable()
			x := table.tenant("c1", "boot", start)
			for _, s := range test.steps {
				s(table, x)
			}
			if got := table.used[keyOf(0)]; got != test.want || len(x.leases) != test.want {
				t.Errorf("%d used, %d leases, want %d", got, len(x.leases), test.want)
			}
		})
	}
}

// The leases of who is silent go when their executions must have ended, and not before; of who reports they stay.
func TestTableSweeps(t *testing.T) {
	start := time.Unix(1000, 0)
	table := newTable()
	dead, alive := table.tenant("c1", "dead", start), table.tenant("c2", "alive", start)
	table.add(dead, Lease{ID: 1, Key: "short", Run: time.Second})
	table.add(dead, Lease{ID: 2, Key: "long", Run: time.Minute})
	table.add(alive, Lease{ID: 1, Key: "short", Run: time.Second})
	for _, look := range []struct {
		after       time.Duration
		short, long int
	}{
		{Term + time.Second + Slack - 1, 2, 1},
		{Term + time.Second + Slack, 1, 1},
		{Term + time.Minute + Slack - 1, 1, 1},
		{Term + time.Minute + Slack, 1, 0},
	} {
		now := start.Add(look.after)
		table.tenant("c2", "alive", now)
		table.sweep(now)
		if table.used["short"] != look.short || table.used["long"] != look.long {
			t.Errorf("after %v: %v", look.after, table.used)
		}
	}
	if len(table.tenants) != 1 {
		t.Errorf("%d tenants are remembered", len(table.tenants))
	}
}
