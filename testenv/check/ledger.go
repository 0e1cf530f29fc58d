package check

import (
	"maps"
	"slices"

	"github.com/doze-run/doze/testenv/history"
)

// ledger holds that each function is billed for as many requests as ran. What a caller was told ran, and what ended
// of an event, was in a journal before: it is billed once. What began and was cut off may have been in a journal or
// not, so that the bill lies between the two; without faults they are the same number.
func ledger(h []history.Event) (found []Violation) {
	least, most := map[string]int64{}, map[string]int64{}
	for _, c := range calls(h) {
		f := c.ask.Function
		runs := map[string]bool{}
		for _, b := range c.begins {
			runs[b.Run] = true
			if f == "" {
				f = b.Function // nobody's call: a destination's
			}
		}
		sure := int64(0)
		switch {
		case c.ran():
			sure = 1
		case c.accepted():
			// Of the runs of an event the last one ended it: it is billed in any case.
			sure = min(int64(len(c.ends)), 1)
		}
		least[f] += sure
		most[f] += max(int64(len(runs)), sure)
	}
	for _, e := range h {
		if e.Kind != history.Final {
			continue
		}
		for _, f := range slices.Sorted(maps.Keys(e.Billed)) {
			if n := e.Billed[f]; n < least[f] || n > most[f] {
				found = append(found, violation(e.At, "%s bills %d requests of %s; at least %d ended and %d began", e.Node, n, f, least[f], most[f]))
			}
		}
		for _, f := range slices.Sorted(maps.Keys(least)) {
			if _, ok := e.Billed[f]; !ok && least[f] > 0 {
				found = append(found, violation(e.At, "%s bills nothing of %s, of which %d ended", e.Node, f, least[f]))
			}
		}
	}
	return found
}

// replicas holds that the same log gave the same state, and that at the end all have all of it.
func replicas(h []history.Event) (found []Violation) {
	var first *history.Event
	for i, e := range h {
		if e.Kind != history.Final {
			continue
		}
		if first == nil {
			first = &h[i]
		}
		switch {
		case e.Hash == "":
			found = append(found, violation(e.At, "%s did not say what its state is", e.Node))
		case e.Index != first.Index:
			found = append(found, violation(e.At, "%s has applied %d, %s %d", e.Node, e.Index, first.Node, first.Index))
		case e.Hash != first.Hash:
			found = append(found, violation(e.At, "at index %d the state of %s is %s, that of %s is %s", e.Index, e.Node, e.Hash, first.Node, first.Hash))
		case !maps.Equal(e.Billed, first.Billed):
			found = append(found, violation(e.At, "%s bills %v, %s bills %v", e.Node, e.Billed, first.Node, first.Billed))
		}
	}
	if first == nil {
		found = append(found, violation(0, "no control node said at the end what its state is"))
	}
	return found
}
