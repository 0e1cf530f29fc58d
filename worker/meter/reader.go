package meter

import (
	"errors"
	"fmt"
	"io"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/google/uuid"
)

const (
	// batchRecords bounds the records of one batch.
	batchRecords = 4096
	// batchNameBytes bounds the function table of one batch, so that a batch stays well under the
	// 1 MB that a message may have.
	batchNameBytes = 256 << 10
	// readBytes bounds what is read at once.
	readBytes = 256 << 10
)

// reader walks through the entries of one segment, from off to end.
type reader struct {
	file     file
	seed     uint32
	off, end int64
	// functions is the table so far.
	functions []functionKey
	entry     entry

	buf  []byte // read and not yet decoded
	page []byte // what buf is a part of
}

// next returns the next entry, valid until the call after. errEnd at the end or at zero bytes;
// errTorn when what follows is no sound entry; off is then the end of the last good one.
func (r *reader) next() (*entry, error) {
	// Two tries: what looks torn may go on beyond what has been read.
	for try := 0; ; try++ {
		n, err := decodeEntry(r.buf, r.seed, &r.entry)
		if err == nil {
			if r.entry.kind == kindFunction {
				r.functions = append(r.functions, r.entry.key)
			} else if int64(r.entry.function) >= int64(len(r.functions)) {
				return nil, errTorn
			}
			r.buf = r.buf[n:]
			r.off += int64(n)
			return &r.entry, nil
		}
		if try > 0 || r.off+int64(len(r.buf)) >= r.end {
			return nil, err
		}
		want := min(readBytes, r.end-r.off)
		if int64(len(r.page)) < want {
			r.page = make([]byte, min(readBytes, max(4<<10, 2*want)))
		}
		got, err := r.file.ReadAt(r.page[:want], r.off)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		r.buf = r.page[:got]
	}
}

// cursor makes batches of a run's records, in order.
type cursor struct {
	disk disk
	run  *run
	// sequence is the next record wanted.
	sequence uint64

	open  bool
	index uint32
	at    uint64 // sequence of the reader's next record
	rd    reader
}

// seek makes the record with the sequence the next one.
func (c *cursor) seek(sequence uint64) {
	c.close()
	c.sequence = sequence
}

func (c *cursor) close() {
	if c.open {
		c.rd.file.Close()
	}
	c.open, c.rd = false, reader{}
}

// batch returns the next records, at most batchRecords and all of one segment; nil when there are
// none.
func (c *cursor) batch() (*dozev1.UsageBatch, error) {
	s, ok := c.run.locate(c.sequence)
	if !ok {
		return nil, nil
	}
	c.sequence = max(c.sequence, s.first)
	if !c.open || c.index != s.index {
		if err := c.enter(s); err != nil {
			return nil, err
		}
	}
	c.rd.end = s.end
	b, err := c.read(s)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("meter: read %s at record %d: %w", s.name, c.sequence, err)
	}
	c.sequence += uint64(len(b.Function))
	c.run.take(c.sequence - 1)
	return b, nil
}

// enter opens a segment.
func (c *cursor) enter(s segment) error {
	c.close()
	f, err := c.disk.open(s.name)
	if err != nil {
		return fmt.Errorf("meter: %w", err)
	}
	c.open, c.index, c.at = true, s.index, s.first
	c.rd = reader{file: f, seed: s.seed, off: headerBytes, end: s.end}
	return nil
}

// read makes a batch of the open segment, which has records from c.sequence on.
func (c *cursor) read(s segment) (*dozev1.UsageBatch, error) {
	count := int(min(batchRecords, s.first+s.count-c.sequence))
	b := &dozev1.UsageBatch{
		Epoch:         c.run.epoch.String(),
		FirstSequence: c.sequence,
		Function:      make([]uint32, 0, count),
		EndedAtMs:     make([]int64, 0, count),
		BilledMs:      make([]uint32, 0, count),
		MemoryMb:      make([]uint32, 0, count),
		InitMs:        make([]uint32, 0, count),
		Outcome:       make([]uint32, 0, count),
		RequestIds:    make([]byte, 0, 16*count),
	}
	numbers := make(map[uint32]uint32) // of the segment's table → of the batch's
	names := 0
	for len(b.Function) < count && names < batchNameBytes {
		e, err := c.rd.next()
		if err != nil {
			return nil, err
		}
		if e.kind != kindUsage {
			continue
		}
		c.at++
		if c.at <= c.sequence {
			continue
		}
		number, ok := numbers[e.function]
		if !ok {
			key := c.rd.functions[e.function]
			number = uint32(len(b.Functions))
			numbers[e.function] = number
			names += len(key.account) + len(key.function) + len(key.version)
			b.Functions = append(b.Functions, &dozev1.FunctionKey{
				Account: key.account, Function: key.function, Version: key.version,
			})
		}
		b.Function = append(b.Function, number)
		b.EndedAtMs = append(b.EndedAtMs, e.usage.EndedAtMs)
		b.BilledMs = append(b.BilledMs, e.usage.BilledMs)
		b.MemoryMb = append(b.MemoryMb, e.usage.MemoryMB)
		b.InitMs = append(b.InitMs, e.usage.InitMs)
		b.Outcome = append(b.Outcome, uint32(e.usage.Outcome))
		b.RequestIds = append(b.RequestIds, e.usage.RequestID[:]...)
	}
	return b, nil
}

// lastBatch is what retires an epoch.
func lastBatch(epoch uuid.UUID, next uint64) *dozev1.UsageBatch {
	return &dozev1.UsageBatch{Epoch: epoch.String(), FirstSequence: next, Last: true}
}
