package parked

import "time"

// demand counts starts second by second and remembers the last minute.
type demand struct {
	counts [60]int32
	last   int64 // the second that was counted in last
}

// count notes one start.
func (d *demand) count(now time.Time) {
	second := now.Unix()
	d.forget(second)
	d.counts[second%int64(len(d.counts))]++
}

// forget clears the seconds that have passed since the last count.
func (d *demand) forget(second int64) {
	from := max(d.last, second-int64(len(d.counts)))
	for s := from + 1; s <= second; s++ {
		d.counts[s%int64(len(d.counts))] = 0
	}
	d.last = max(d.last, second)
}

// peak is the most starts in one second of the last minute.
func (d *demand) peak(now time.Time) int {
	d.forget(now.Unix())
	peak := int32(0)
	for _, n := range d.counts {
		peak = max(peak, n)
	}
	return int(peak)
}

// target is how many of a kind should be parked: what a second of the last minute needed and one more, one
// where functions have it that nobody called, none where none has.
func (k *kind) target(now time.Time) int {
	if !k.wanted && now.After(k.until) {
		return 0
	}
	return min(perKind, k.demand.peak(now)+1)
}
