package meter

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"
)

const (
	segmentSuffix = ".usage"
	retireSuffix  = ".retire"
	damagedSuffix = ".damaged"
)

// segment is one file of a run and how much of it is good.
type segment struct {
	name  string
	index uint32
	seed  uint32
	first uint64 // sequence of its first record
	count uint64 // records
	end   int64  // bytes up to the end of the last record
	size  int64  // bytes on disk
}

// segmentName is the name of an epoch's index-th segment.
func segmentName(epoch uuid.UUID, index uint32) string {
	return fmt.Sprintf("%s-%08x%s", epoch, index, segmentSuffix)
}

// retireName is the name of the empty file that stands for an epoch whose records are all applied
// and gone from here, while the ledger has still to be told that it may forget the epoch.
func retireName(epoch uuid.UUID, next uint64) string {
	return fmt.Sprintf("%s-%016x%s", epoch, next, retireSuffix)
}

// parseName takes apart what segmentName and retireName made.
func parseName(name, suffix string) (epoch uuid.UUID, number uint64, ok bool) {
	stem, ok := strings.CutSuffix(name, suffix)
	if !ok || len(stem) < 38 || stem[36] != '-' {
		return epoch, 0, false
	}
	epoch, err := uuid.Parse(stem[:36])
	if err != nil {
		return epoch, 0, false
	}
	number, err = strconv.ParseUint(stem[37:], 16, 64)
	return epoch, number, err == nil
}

// run is the records of one epoch that are on the disk, in segments. The run of this process
// grows at its end, by the journal; every run shrinks at its front as the ledger applies it.
type run struct {
	epoch uuid.UUID

	mu       sync.Mutex
	segments []segment // oldest first
	next     uint64    // the sequence after the last record
	growing  bool      // the last segment may get more records
	taken    uint64    // the last sequence that the shipper has put into a batch
}

// locate returns a copy of the segment that has the record, or the oldest one when the record is
// older than all; false when there is no such record yet.
func (r *run) locate(sequence uint64) (segment, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sequence >= r.next {
		return segment{}, false
	}
	for _, s := range r.segments {
		if sequence < s.first+s.count {
			return s, true
		}
	}
	return segment{}, false
}

// end returns the sequence after the last record.
func (r *run) end() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

// ended reports whether no more records will come.
func (r *run) ended() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.growing
}

// pending counts the records that have not been in a batch.
func (r *run) pending() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next - 1 - r.taken
}

// batched returns the last sequence that has been in a batch.
func (r *run) batched() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
}

// take notes that the records up to sequence are in a batch.
func (r *run) take(sequence uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.taken = max(r.taken, sequence)
}

// spent returns the segments whose records are all applied, without the last one unless all may go.
// They stay in the run until drop.
func (r *run) spent(applied uint64, all bool) []segment {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(r.segments) && r.segments[n].first+r.segments[n].count-1 <= applied {
		n++
	}
	if !all && n == len(r.segments) {
		n = max(0, n-1)
	}
	return slices.Clone(r.segments[:n])
}

// drop takes a segment whose file is gone out of the run.
func (r *run) drop(index uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.segments = slices.DeleteFunc(r.segments, func(s segment) bool { return s.index == index })
}
