// Package meter makes the bill exact: it writes one usage record for each attempt into a journal
// on the worker's own disk before the attempt's answer leaves, ships the journal to the usage
// stream in batches, and trims it when the ledger has applied it.
//
// It knows records, files and batches. It must not know prices, functions' code or how an
// instance runs.
//
// What it promises: a record whose Append returned survives kill -9 of the process (not a power
// loss: nothing is synced to the disk), its sequence is its epoch's next one, and it reaches the
// stream until the ledger says that it has it. The ledger drops what it has already counted, by
// (epoch, sequence), so that sending twice bills once.
package meter

import (
	"context"
	"errors"
	"fmt"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Record is the usage of one attempt.
type Record struct {
	// Account, Function and Version are 1 to MaxNameBytes letters, digits, '-', '_' and '$' each.
	Account, Function, Version string
	RequestID                  [16]byte
	EndedAtMs                  int64  // Unix milliseconds, 0 to MaxEndedAtMs
	BilledMs, MemoryMB, InitMs uint32 // MemoryMB at most MaxMemoryMB
	Outcome                    uint8
}

// Bounds of a record. The ledger refuses a batch with a record that breaks them, whoever sends it
// how often, and with it all that comes after in the epoch: so such a record must not be journaled.
const (
	// MaxNameBytes bounds each of a record's names; AWS's are at most 64 characters.
	MaxNameBytes = 128
	// MaxMemoryMB is 1 TB.
	MaxMemoryMB = 1 << 20
	// MaxEndedAtMs is the last millisecond of the year 9999.
	MaxEndedAtMs = 253_402_300_799_999
)

// check returns ErrRecord when the record's figures are out of bounds. Its names are checked when
// they are first met.
func (r *Record) check() error {
	if r.EndedAtMs < 0 || r.EndedAtMs > MaxEndedAtMs || r.MemoryMB > MaxMemoryMB {
		return fmt.Errorf("%w: ended at %d ms, %d MB", ErrRecord, r.EndedAtMs, r.MemoryMB)
	}
	return nil
}

// Stream is the way to the ledger. Package bus implements it. Its methods may be called from many
// goroutines.
type Stream interface {
	// PublishUsage returns nil once the usage stream has stored the batch durably. After an error
	// the batch may or may not have been stored; the meter sends it again.
	//
	// The last batch of an epoch (Last) has no records; its FirstSequence is the one after the
	// epoch's last record. It is published only after the ledger has applied all of them and the
	// files that held them are gone, and it may come more than once.
	PublishUsage(ctx context.Context, batch *dozev1.UsageBatch) error
	// OnApplied calls f whenever the ledger announces how far it has come, for this worker's epochs
	// and perhaps for others'. Announcements may be lost; f does not block. No call of f begins
	// after stop has returned.
	OnApplied(f func(*dozev1.UsageApplied)) (stop func(), err error)
	// AppliedMark asks the ledger for the highest sequence of the epoch it has applied; 0 for an
	// epoch that it does not know.
	AppliedMark(ctx context.Context, epoch string) (uint64, error)
}

var (
	// ErrClosed says that the meter has been closed.
	ErrClosed = errors.New("meter: closed")
	// ErrNoRoom says that the journal has no room for more records, because the disk is full or the
	// ledger has not applied for long. The worker takes no calls until it is over.
	ErrNoRoom = errors.New("meter: no room for usage records")
	// ErrVersion says that the folder holds a journal that another version of doze wrote.
	ErrVersion = errors.New("meter: journal of another format version")
	// ErrInUse says that another process has the journal open.
	ErrInUse = errors.New("meter: journal is in use by another process")
	// ErrRecord says that a record breaks the bounds of Record. The journal is none the worse.
	ErrRecord = errors.New("meter: record out of bounds")
)
