package meter

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
)

// journal is the end of this process's run: the segment that records are written to and the spare
// one that follows it. The run's mutex guards it.
//
// A file that a write failed on is not written again: the next record goes to a new segment with
// its own first sequence, which overrules whatever the failed write left behind it.
type journal struct {
	*run
	disk        disk
	segmentSize int64
	// budget bounds the bytes of all segments, those of earlier epochs too.
	budget int64
	used   atomic.Int64

	file   file // the last of run.segments, open; nil when there is none to write to
	table  map[functionKey]uint32
	buf    []byte
	spare  *spare
	making bool       // the keeper is making a spare
	made   *sync.Cond // it has been made, or not
	index  uint32     // of the next segment
	waste  []string   // files that hold nothing and are to be removed
	broken error      // why the last write or the last making of a spare failed
	closed bool

	// failure is why the worker must not take calls; nil when it may.
	failure atomic.Pointer[error]
	// cut and keep wake the shipper and the keeper.
	cut, keep chan struct{}
}

// errBudget says that the ledger has not applied for so long that the journal has reached its bound.
var errBudget = errors.New("meter: the journal is full of usage that the ledger has not applied")

// spare is a segment with its blocks allocated and its header not yet written.
type spare struct {
	file  file
	name  string
	index uint32
}

func newJournal(d disk, epoch uuid.UUID, segmentSize, budget int64) *journal {
	r := &run{epoch: epoch, next: 1, growing: true}
	return &journal{
		run:         r,
		made:        sync.NewCond(&r.mu),
		disk:        d,
		segmentSize: segmentSize,
		budget:      budget,
		table:       make(map[functionKey]uint32),
		buf:         make([]byte, 0, maxEntry),
		cut:         make(chan struct{}, 1),
		keep:        make(chan struct{}, 1),
	}
}

// append writes the record and returns its sequence. After an error the record is not in the
// journal.
func (j *journal) append(rec *Record) (uint64, error) {
	if err := rec.check(); err != nil {
		return 0, err
	}
	key := functionKey{rec.Account, rec.Function, rec.Version}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, ErrClosed
	}
	for failures := 0; ; {
		if j.file == nil {
			if err := j.begin(); err != nil {
				return 0, err
			}
		}
		s := &j.segments[len(j.segments)-1]
		entry, err := j.encode(s.seed, key, rec)
		if err != nil {
			return 0, err
		}
		if s.end+int64(len(entry)) > s.size {
			j.finish()
			continue
		}
		if _, err := j.file.WriteAt(entry, s.end); err != nil {
			j.fail(fmt.Errorf("meter: write usage: %w", err))
			// The spare may still be good: another file is another part of the disk.
			if failures++; failures > 1 {
				return 0, j.broken
			}
			continue
		}
		s.end += int64(len(entry))
		s.count++
		sequence := j.next
		j.next++
		if j.spare == nil && s.end > s.size/2 {
			j.assess()
		}
		// The shipper sleeps until there is a first record, then until the batch is full or old.
		if n := sequence - j.taken; n == 1 || n == batchRecords {
			wake(j.cut)
		}
		return sequence, nil
	}
}

// encode puts the record into the buffer, behind its function if the segment does not know it yet.
// The caller writes it or gives the segment up, table and all.
func (j *journal) encode(seed uint32, key functionKey, rec *Record) ([]byte, error) {
	b := j.buf[:0]
	number, known := j.table[key]
	if !known {
		if err := key.check(); err != nil {
			return nil, err
		}
		number = uint32(len(j.table))
		b = appendFunction(b, seed, key)
		// The caller's strings may be parts of something big.
		j.table[functionKey{strings.Clone(key.account), strings.Clone(key.function), strings.Clone(key.version)}] = number
	}
	return appendUsage(b, seed, number, rec), nil
}

// begin makes the spare the segment that is written to. When records come faster than the keeper
// makes spares, it waits for the keeper or makes one itself: they are of calls that have run.
func (j *journal) begin() error {
	for j.making {
		j.made.Wait()
	}
	switch {
	case j.closed:
		return ErrClosed
	case j.file != nil: // another goroutine's work, meanwhile
		return nil
	case j.spare == nil:
		sp, err := j.make(j.index)
		j.index++
		j.broken = err
		if err != nil {
			j.assess()
			return j.unavailable()
		}
		j.spare = sp
	}
	sp := j.spare
	j.spare = nil
	wake(j.keep)
	h := header{epoch: j.epoch, index: sp.index, first: j.next}
	b := j.buf[:headerBytes]
	h.encode(b)
	if _, err := sp.file.WriteAt(b, 0); err != nil {
		j.waste = append(j.waste, sp.name)
		j.broken = fmt.Errorf("meter: begin journal segment: %w", errors.Join(err, sp.file.Close()))
		j.assess()
		return j.broken
	}
	clear(j.table)
	j.file = sp.file
	j.segments = append(j.segments, segment{
		name: sp.name, index: sp.index, seed: h.seed, first: j.next, end: headerBytes, size: j.segmentSize,
	})
	j.assess()
	return nil
}

// finish closes the segment that is written to; nothing more comes into it.
func (j *journal) finish() {
	if j.file == nil {
		return
	}
	// All writes have gone to the kernel; what Close says changes nothing about them.
	j.file.Close()
	j.file = nil
	if last := len(j.segments) - 1; j.segments[last].count == 0 {
		j.waste = append(j.waste, j.segments[last].name)
		j.segments = j.segments[:last]
	}
	wake(j.keep)
}

// fail gives up the segment that is written to.
func (j *journal) fail(err error) {
	j.broken = err
	j.finish()
	j.assess()
}

// assess decides whether there is room enough: a whole segment, or half of one while the next is
// being made. Either holds thousands of records, more than a worker has attempts running, so that
// whatever was started while there was room can be journaled.
func (j *journal) assess() {
	room := j.spare != nil
	if !room && j.file != nil {
		s := &j.segments[len(j.segments)-1]
		room = s.size-s.end >= s.size/2
	}
	if room == (j.failure.Load() == nil) {
		return
	}
	if room {
		j.failure.Store(nil)
	} else {
		err := j.unavailable()
		j.failure.Store(&err)
	}
	wake(j.keep)
}

// unavailable is the reason why there is no room.
func (j *journal) unavailable() error {
	if j.broken != nil {
		return fmt.Errorf("%w: %w", ErrNoRoom, j.broken)
	}
	return fmt.Errorf("%w: the next segment is not ready", ErrNoRoom)
}

// healthy returns nil, or why the worker must take no calls.
func (j *journal) healthy() error {
	if p := j.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// maintain removes what is of no use and makes the spare segment. It is the keeper's alone, and
// touches the disk outside the lock, since that may take long.
func (j *journal) maintain() error {
	j.mu.Lock()
	waste := j.waste
	j.waste = nil
	j.mu.Unlock()

	for i, name := range waste {
		if err := j.disk.remove(name); err != nil {
			j.mu.Lock()
			j.waste = append(j.waste, waste[i:]...)
			j.mu.Unlock()
			return fmt.Errorf("meter: remove journal segment: %w", err)
		}
		j.used.Add(-j.segmentSize)
	}

	j.mu.Lock()
	defer j.mu.Unlock()
	if j.spare != nil || j.closed {
		return nil
	}
	index := j.index
	j.index++
	j.making = true
	j.mu.Unlock()
	sp, err := j.make(index)
	j.mu.Lock()
	j.making = false
	j.made.Broadcast()
	j.broken = err
	if err == nil && j.closed {
		j.waste = append(j.waste, sp.name)
		return sp.file.Close()
	}
	j.spare = sp
	if err != nil {
		// A failure that is known already gets the newest reason.
		if j.failure.Load() != nil {
			why := j.unavailable()
			j.failure.Store(&why)
		}
	}
	j.assess()
	return err
}

// make allocates a spare segment.
func (j *journal) make(index uint32) (*spare, error) {
	if used := j.used.Load(); used+j.segmentSize > j.budget {
		return nil, fmt.Errorf("%w: %d bytes, of at most %d", errBudget, used, j.budget)
	}
	name := segmentName(j.epoch, index)
	f, err := j.disk.create(name, j.segmentSize)
	if err != nil {
		return nil, fmt.Errorf("meter: make journal segment: %w", err)
	}
	j.used.Add(j.segmentSize)
	return &spare{file: f, name: name, index: index}, nil
}

// seal ends the run: no more records come. What is left of the last segment, and the spare, go
// back to the disk.
func (j *journal) seal() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	j.closed, j.growing = true, false
	if j.file != nil {
		// If it cannot be, the zero bytes say the same.
		_ = j.file.Truncate(j.segments[len(j.segments)-1].end)
	}
	j.finish()
	if j.spare != nil {
		j.spare.file.Close()
		j.waste = append(j.waste, j.spare.name)
		j.spare = nil
	}
	err := ErrClosed
	j.failure.Store(&err)
	wake(j.cut)
	wake(j.keep)
}

// wake wakes a goroutine that waits on c, now or the next time it does.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
