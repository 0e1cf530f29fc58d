package ledger

import (
	"slices"
	"sort"
)

// maxHours is how many hours with use a function version keeps apart: 35 days of every hour. Older
// ones are added up by month, which is all that a statement needs; so a version that is always in
// use takes 33 KB and not more each month. The rule counts hours that are there, not time that
// passes: the ledger has no clock, and every replica must fold at the same record.
const maxHours = 35 * 24

// Totals is what was used.
type Totals struct {
	Requests uint64
	// MBMs is billed milliseconds times the function's memory in MB, init included.
	MBMs   uint64
	InitMs uint64
	// Errors is how many of the requests did not end in a success.
	Errors uint64
}

func (t *Totals) add(u Totals) {
	t.Requests += u.Requests
	t.MBMs += u.MBMs
	t.InitMs += u.InitMs
	t.Errors += u.Errors
}

// cell is the totals of one hour (counted from 1970) or Month.
type cell struct {
	at int32
	Totals
}

// key names a function version.
type key struct{ account, function, version string }

// series is the use of one function version: months[] and hours[] by time, ascending. A record is
// in exactly one of them.
type series struct {
	key
	months, hours []cell
	// taken is the ledger's count of snapshots at the last change: when it is behind, a snapshot
	// shares the slices, which are then copied before they are written to.
	taken uint64
}

// own makes sure that the slices are not shared with a snapshot.
func (s *series) own(taken uint64) {
	if s.taken != taken {
		s.months, s.hours, s.taken = slices.Clone(s.months), slices.Clone(s.hours), taken
	}
}

// add counts one record of an hour. Nearly always the hour is the newest: one comparison.
func (s *series) add(hour int32, u Totals) {
	if n := len(s.hours); n > 0 && s.hours[n-1].at == hour {
		s.hours[n-1].add(u)
		return
	}
	s.hours = addTo(s.hours, hour, u)
	if len(s.hours) > maxHours {
		oldest := s.hours[0]
		s.hours = slices.Delete(s.hours, 0, 1)
		s.months = addTo(s.months, int32(monthOfHour(oldest.at)), oldest.Totals)
	}
}

func addTo(cells []cell, at int32, u Totals) []cell {
	i, ok := sort.Find(len(cells), func(i int) int { return int(at) - int(cells[i].at) })
	if !ok {
		cells = slices.Insert(cells, i, cell{at: at})
	}
	cells[i].add(u)
	return cells
}

// month is the totals of one month.
func (s *series) month(m Month) (t Totals) {
	if i, ok := sort.Find(len(s.months), func(i int) int { return int(m) - int(s.months[i].at) }); ok {
		t = s.months[i].Totals
	}
	from, to := int32(m.StartMs()/msPerHour), int32((m+1).StartMs()/msPerHour)
	first := sort.Search(len(s.hours), func(i int) bool { return s.hours[i].at >= from })
	for _, c := range s.hours[first:] {
		if c.at >= to {
			break
		}
		t.add(c.Totals)
	}
	return t
}

func monthOfHour(hour int32) Month { return MonthOf(int64(hour) * msPerHour) }
