// Package ledger counts what every function used, once, and makes statements of it.
//
// It is pure and integers only: the same batches in the same order give byte-equal totals on every
// node. It must not know Raft, the network, the disk or the clock. Usage comes from workers in
// batches that may be sent twice, split anew or late; see epoch.go for why each record is still
// counted once.
package ledger

import (
	"fmt"
	"math"
	"slices"
	"sync"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Outcomes that the ledger tells from others (package instance of the worker numbers them). One
// that it does not know counts as an error of the function.
const (
	outcomeOK = 1
	// outcomePlatform: the worker ended the attempt for its own reasons. It is not billed.
	outcomePlatform = 8
)

// Ledger holds the totals of every account. Statement, Snapshot and Hash may run at any time, at
// once with Apply; Apply calls wait for each other.
type Ledger struct {
	mu       sync.RWMutex
	epochs   map[string]*epoch
	retired  int
	horizon  int64 // see epoch.go
	unbilled uint64
	series   map[key]*series
	accounts map[string][]*series
	// mbMs is the sum over everything, so that one comparison a batch keeps every total in range.
	mbMs uint64
	// taken counts snapshots; see series.own.
	taken uint64
	// table is the batch's function table, resolved as far as its records were counted; kept to
	// save its allocation.
	table []*series
}

// New is a ledger before the first record.
func New() *Ledger {
	return &Ledger{epochs: map[string]*epoch{}, series: map[key]*series{}, accounts: map[string][]*series{}}
}

// Applied is what came of one batch.
type Applied struct {
	Epoch string
	// Sequence is how far the ledger has come in the epoch: every record with a sequence below or
	// equal is in it. It is also answered with an error, 0 for an unknown epoch.
	Sequence uint64
	// Err is nil, or why the batch changed nothing.
	Err error
}

// Apply counts batches, in order; each stands for itself. Records that are already counted are
// passed over. It keeps nothing of the batches.
func (l *Ledger) Apply(batches []*dozev1.UsageBatch) []Applied {
	l.mu.Lock()
	defer l.mu.Unlock()
	applied := make([]Applied, len(batches))
	for i, b := range batches {
		err := l.apply(b)
		applied[i] = Applied{Epoch: b.Epoch, Err: err}
		if e, ok := l.epochs[b.Epoch]; ok {
			applied[i].Sequence = e.mark
		}
	}
	return applied
}

func (l *Ledger) apply(b *dozev1.UsageBatch) error {
	if err := Check(b); err != nil {
		return err
	}
	e, known := l.epochs[b.Epoch]
	if !known {
		e = &epoch{floor: l.horizon}
	}
	n := uint64(len(b.Function))
	next := e.mark + 1
	switch {
	case b.FirstSequence > next:
		return fmt.Errorf("%w: epoch %s: have %d, batch begins at %d", ErrGap, b.Epoch, e.mark, b.FirstSequence)
	case e.retired && b.FirstSequence+n > next:
		return fmt.Errorf("%w: epoch %s: last was %d", ErrRetired, b.Epoch, e.mark)
	case !known && len(l.epochs)-l.retired >= MaxLive:
		return ErrTooManyEpochs
	}
	seen := min(next-b.FirstSequence, n)
	if seen < n {
		used, _ := sum(b)
		if used > math.MaxInt64-l.mbMs {
			return fmt.Errorf("%w: usage of all accounts", ErrOverflow)
		}
		l.count(b, e, int(seen))
		e.mark += n - seen
	}
	if !known {
		l.epochs[b.Epoch] = e
	}
	if b.Last && !e.retired && b.FirstSequence+n == e.mark+1 {
		l.retire(e)
	}
	return nil
}

// count adds up the records from the given one on.
func (l *Ledger) count(b *dozev1.UsageBatch, e *epoch, from int) {
	l.table = slices.Grow(l.table[:0], len(b.Functions))[:len(b.Functions)]
	clear(l.table)
	for i := from; i < len(b.Function); i++ {
		ended := b.EndedAtMs[i]
		e.ended = max(e.ended, ended)
		if b.Outcome[i] == outcomePlatform {
			continue
		}
		if ended <= e.floor {
			l.unbilled++
			continue
		}
		u := Totals{
			Requests: 1,
			MBMs:     uint64(b.BilledMs[i]) * uint64(b.MemoryMb[i]),
			InitMs:   uint64(b.InitMs[i]),
		}
		if b.Outcome[i] != outcomeOK {
			u.Errors = 1
		}
		l.mbMs += u.MBMs
		s := l.table[b.Function[i]]
		if s == nil {
			s = l.find(b.Functions[b.Function[i]])
			l.table[b.Function[i]] = s
		}
		s.add(int32(ended/msPerHour), u)
	}
}

// find is the series of a function version, made when there is none, and ready to be written to.
func (l *Ledger) find(f *dozev1.FunctionKey) *series {
	s, ok := l.series[key{f.Account, f.Function, f.Version}]
	if !ok {
		s = &series{key: key{f.Account, f.Function, f.Version}, taken: l.taken}
		l.put(s)
	}
	s.own(l.taken)
	return s
}

func (l *Ledger) put(s *series) {
	l.series[s.key] = s
	l.accounts[s.account] = append(l.accounts[s.account], s)
}

// Mark is how far the ledger has come in an epoch, 0 for one it does not know.
func (l *Ledger) Mark(epoch string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.epochs[epoch]; ok {
		return e.mark
	}
	return 0
}

// Unbilled is how many records were passed over because they may have been billed before: see
// epoch.go. It is 0 unless a worker was away for a very long time.
func (l *Ledger) Unbilled() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.unbilled
}
