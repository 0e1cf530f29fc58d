package ledger

import (
	"errors"
	"fmt"
	"math"
	"math/bits"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Bounds of a batch. They hold memory, not usage, back: a record that a worker measured in earnest
// is never refused for its size, since that would stop the worker's journal for ever.
const (
	// MaxRecords is the most records, and function versions, of one batch.
	MaxRecords = 1 << 16
	// MaxMemoryMB is 1 TB.
	MaxMemoryMB = 1 << 20
	maxID       = 128 // bytes of an epoch, account, function or version
)

// Why a batch was refused. It then changed nothing.
var (
	// ErrBatch: malformed. Sending it again will not help.
	ErrBatch = errors.New("ledger: malformed usage batch")
	// ErrGap: records are missing between what the ledger has and the batch's first. Send from the
	// answered sequence plus one.
	ErrGap = errors.New("ledger: gap in usage records")
	// ErrRetired: new records of an epoch that had sent its last.
	ErrRetired = errors.New("ledger: records after the epoch's last")
	// ErrTooManyEpochs: more than MaxLive epochs that have not sent their last record.
	ErrTooManyEpochs = errors.New("ledger: too many epochs")
	// ErrOverflow: the totals would not fit an int64.
	ErrOverflow = errors.New("ledger: overflow")
)

// Check reports whether the batch is well-formed (ErrBatch, ErrOverflow), whatever the ledger
// holds. Apply checks too; the proposer does so first, to keep junk out of the log.
func Check(b *dozev1.UsageBatch) error {
	n := len(b.Function)
	switch {
	case !isID(b.Epoch):
		return fmt.Errorf("%w: epoch", ErrBatch)
	case n > MaxRecords || len(b.Functions) > MaxRecords:
		return fmt.Errorf("%w: %d records of %d functions, at most %d", ErrBatch, n, len(b.Functions), MaxRecords)
	case len(b.EndedAtMs) != n || len(b.BilledMs) != n || len(b.MemoryMb) != n ||
		len(b.InitMs) != n || len(b.Outcome) != n || len(b.RequestIds) != 16*n:
		return fmt.Errorf("%w: columns differ in length", ErrBatch)
	case b.FirstSequence == 0 || b.FirstSequence > math.MaxInt64:
		return fmt.Errorf("%w: first sequence %d", ErrBatch, b.FirstSequence)
	}
	for _, f := range b.Functions {
		if f == nil || !isID(f.Account) || !isID(f.Function) || !isID(f.Version) {
			return fmt.Errorf("%w: function key", ErrBatch)
		}
	}
	for i := range n {
		if uint64(b.Function[i]) >= uint64(len(b.Functions)) || b.MemoryMb[i] > MaxMemoryMB ||
			b.EndedAtMs[i] < 0 || b.EndedAtMs[i] > maxEndedMs {
			return fmt.Errorf("%w: record %d", ErrBatch, b.FirstSequence+uint64(i))
		}
	}
	if _, ok := sum(b); !ok {
		return fmt.Errorf("%w: usage of one batch", ErrOverflow)
	}
	return nil
}

// sum is the MB·ms of the whole batch; ok is false when they do not fit.
func sum(b *dozev1.UsageBatch) (total uint64, ok bool) {
	var carry uint64
	for i := range b.Function {
		total, carry = bits.Add64(total, uint64(b.BilledMs[i])*uint64(b.MemoryMb[i]), 0)
		if carry != 0 {
			return 0, false
		}
	}
	return total, true
}

// isID reports whether s is made of what ids are made of: letters, digits, '-', '_' and '$'.
func isID(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '$') {
			return false
		}
	}
	return s != "" && len(s) <= maxID
}
