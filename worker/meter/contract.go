// Package meter makes the bill exact: it writes one usage record for each attempt into a journal
// on the worker's own disk before the attempt's answer leaves, ships the journal to the usage
// stream in batches, and trims it when the ledger has applied it.
//
// It knows records, files and batches. It must not know prices, functions' code or how an
// instance runs.
package meter

// Record is the usage of one attempt.
type Record struct {
	Account, Function, Version string
	RequestID                  [16]byte
	EndedAtMs                  int64
	BilledMs, MemoryMB, InitMs uint32
	Outcome                    uint8
}
