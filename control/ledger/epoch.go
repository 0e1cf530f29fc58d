package ledger

import (
	"cmp"
	"slices"
)

// How each record is counted once, in bounded memory.
//
// An epoch is the life of one worker process (or of its journal); its records are numbered from 1
// without gaps. The ledger keeps the highest number it has counted, the mark, and passes over what
// is not above it. A batch that begins above mark+1 is refused, so the mark stands for all below.
//
// The last record retires an epoch. A late copy of its batches may still come, so it stays
// remembered; but not for ever, since workers come and go. When more than MaxRetired are
// remembered, the half whose records ended earliest is forgotten, and the horizon rises to the
// newest record among them. An epoch that is not known afterwards is either really new or one of
// the forgotten ones, and cannot be told apart by name: so its records that ended at or before the
// horizon are passed over (and counted in Unbilled), though the mark moves. All records of a
// forgotten epoch are at or before the horizon: none is billed twice. A really new epoch has such
// records only if its worker kept them back while MaxRetired/2 others came and went: they are
// lost to the bill, which may be too low but never too high.
//
// The earliest are forgotten, not those retired first, so that a worker whose clock is far ahead
// stays among the remembered ones and cannot raise the horizon into the future.
//
// An epoch that never sends its last record (its disk was lost) is never forgotten; MaxLive bounds
// those.
const (
	MaxRetired = 1 << 16
	MaxLive    = 1 << 17
)

type epoch struct {
	// mark: every record up to this sequence is counted.
	mark uint64
	// ended is when the latest of its records ended, floor the horizon when it was first seen; in
	// unix milliseconds.
	ended, floor int64
	retired      bool
}

func (l *Ledger) retire(e *epoch) {
	e.retired = true
	l.retired++
	if l.retired > MaxRetired {
		l.forget()
	}
}

// forget drops the half of the retired epochs that ended earliest.
func (l *Ledger) forget() {
	type named struct {
		name string
		*epoch
	}
	all := make([]named, 0, l.retired)
	for name, e := range l.epochs {
		if e.retired {
			all = append(all, named{name, e})
		}
	}
	slices.SortFunc(all, func(a, b named) int {
		return cmp.Or(cmp.Compare(a.ended, b.ended), cmp.Compare(a.name, b.name))
	})
	for _, e := range all[:len(all)/2] {
		delete(l.epochs, e.name)
		l.horizon = max(l.horizon, e.ended)
		l.retired--
	}
}
