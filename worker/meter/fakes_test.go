package meter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// bill is one record as the ledger counts it.
type bill struct {
	account, function, version string
	id                         [16]byte
	endedAt                    int64
	billed, memory, init       uint32
	outcome                    uint32
}

func billOf(r *Record) bill {
	return bill{r.Account, r.Function, r.Version, r.RequestID, r.EndedAtMs, r.BilledMs, r.MemoryMB, r.InitMs, uint32(r.Outcome)}
}

// fakeLedger is a usage stream and the ledger behind it. It counts as the real one does: an epoch
// without gaps, each sequence once. What goes wrong on the way is decided by its fields.
type fakeLedger struct {
	mu        sync.Mutex
	counted   map[string][]bill
	retired   map[string]bool
	listeners map[int]func(*dozev1.UsageApplied)
	nextID    int
	batches   []*dozev1.UsageBatch

	down         bool       // publish and ask fail
	stalled      bool       // batches are stored and lost before the ledger sees them
	mute         bool       // announcements get lost
	chaos        *rand.Rand // all of these now and then, when set
	afterPublish func()
	faults       []string
}

func newLedger() *fakeLedger {
	return &fakeLedger{counted: map[string][]bill{}, retired: map[string]bool{}, listeners: map[int]func(*dozev1.UsageApplied){}}
}

func (f *fakeLedger) now(p float64) bool { return f.chaos != nil && f.chaos.Float64() < p }

func (f *fakeLedger) PublishUsage(ctx context.Context, b *dozev1.UsageBatch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	if f.down || f.now(0.2) {
		f.mu.Unlock()
		return errors.New("stream is down")
	}
	b = proto.Clone(b).(*dozev1.UsageBatch)
	f.batches = append(f.batches, b)
	var tell *dozev1.UsageApplied
	if !f.stalled && !f.now(0.1) || b.Last {
		f.apply(b)
		tell = &dozev1.UsageApplied{Epoch: b.Epoch, Sequence: uint64(len(f.counted[b.Epoch]))}
	}
	if f.mute || f.now(0.2) {
		tell = nil
	}
	listeners := maps.Clone(f.listeners)
	after := f.afterPublish
	err := error(nil)
	if f.now(0.1) {
		err = errors.New("the answer got lost")
	}
	f.mu.Unlock()
	if tell != nil {
		for _, l := range listeners {
			l(tell)
		}
	}
	if after != nil {
		after()
	}
	return err
}

// apply counts a batch; the lock is held.
func (f *fakeLedger) apply(b *dozev1.UsageBatch) {
	n := len(b.Function)
	if len(b.EndedAtMs) != n || len(b.BilledMs) != n || len(b.MemoryMb) != n || len(b.InitMs) != n ||
		len(b.Outcome) != n || len(b.RequestIds) != 16*n || n > batchRecords || n == 0 && !b.Last || b.FirstSequence == 0 {
		f.faults = append(f.faults, fmt.Sprintf("malformed batch of %d", n))
		return
	}
	if f.retired[b.Epoch] && n > 0 {
		f.faults = append(f.faults, "records after the last batch of "+b.Epoch)
	}
	have := f.counted[b.Epoch]
	if b.FirstSequence > uint64(len(have))+1 {
		if b.Last {
			f.faults = append(f.faults, "retired before all was applied: "+b.Epoch)
		}
		return // a gap
	}
	for i := range n {
		r := bill{
			endedAt: b.EndedAtMs[i], billed: b.BilledMs[i], memory: b.MemoryMb[i], init: b.InitMs[i],
			outcome: b.Outcome[i], id: [16]byte(b.RequestIds[16*i:]),
		}
		key := b.Functions[b.Function[i]]
		r.account, r.function, r.version = key.Account, key.Function, key.Version
		switch at := b.FirstSequence - 1 + uint64(i); {
		case at == uint64(len(have)):
			have = append(have, r)
		case have[at] != r:
			f.faults = append(f.faults, fmt.Sprintf("sequence %d of %s came with two contents", at+1, b.Epoch))
		}
	}
	f.counted[b.Epoch] = have
	if b.Last {
		if b.FirstSequence != uint64(len(have))+1 {
			f.faults = append(f.faults, "last batch with a wrong sequence")
		}
		f.retired[b.Epoch] = true
	}
}

func (f *fakeLedger) OnApplied(cb func(*dozev1.UsageApplied)) (func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.nextID
	f.nextID++
	f.listeners[id] = cb
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.listeners, id)
	}, nil
}

func (f *fakeLedger) AppliedMark(ctx context.Context, epoch string) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || f.now(0.2) {
		return 0, errors.New("ledger has no leader")
	}
	if f.retired[epoch] {
		return 0, nil // forgotten
	}
	return uint64(len(f.counted[epoch])), nil
}

func (f *fakeLedger) set(change func(*fakeLedger)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeLedger) count(epoch string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.counted[epoch])
}

// check fails the test for what the ledger saw and must not see.
func (f *fakeLedger) check(t testing.TB) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fault := range f.faults {
		t.Error(fault)
	}
}

// errDead is what every operation gives after the simulated death of the process.
var errDead = errors.New("the process is dead")

// faultyDisk makes a disk's operations fail. Operations are counted; a write is cut at cutAt bytes
// when it fails, as the kernel would have taken a part of it.
type faultyDisk struct {
	disk
	mu    sync.Mutex
	ops   int
	dieAt int // the number of the operation at which the process dies; 0: never
	cutAt int
	dead  bool
	full  bool // no room for new files
	// badWrites is how many of the next writes of records fail.
	badWrites int
	badBytes  int
}

// step counts an operation; the returned error is what it gives.
func (d *faultyDisk) step() error {
	d.ops++
	if d.dead {
		return errDead
	}
	if d.dieAt != 0 && d.ops >= d.dieAt {
		d.dead = true
		return errDead
	}
	return nil
}

func (d *faultyDisk) set(change func(*faultyDisk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *faultyDisk) create(name string, size int64) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return nil, err
	}
	if d.full {
		return nil, unix.ENOSPC
	}
	f, err := d.disk.create(name, size)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file: f, d: d}, nil
}

func (d *faultyDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	return d.disk.rename(from, to)
}

func (d *faultyDisk) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	return d.disk.remove(name)
}

type faultyFile struct {
	file
	d *faultyDisk
}

func (f *faultyFile) WriteAt(b []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	wasDead := f.d.dead
	err, cut := f.d.step(), f.d.cutAt
	if err == nil && f.d.badWrites > 0 {
		f.d.badWrites--
		err, cut = unix.EIO, f.d.badBytes
	}
	if err == nil {
		return f.file.WriteAt(b, at)
	}
	if wasDead {
		return 0, err
	}
	n, werr := f.file.WriteAt(b[:min(cut, len(b))], at)
	return n, errors.Join(err, werr)
}

func (f *faultyFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

// sample makes record number n, each different.
func sample(n int) *Record {
	r := &Record{
		Account: "000000000000", Function: fmt.Sprintf("f%d", n%7), Version: "$LATEST",
		EndedAtMs: 1_700_000_000_000 + int64(n), BilledMs: uint32(n%900 + 1), MemoryMB: 128, InitMs: uint32(n % 3), Outcome: uint8(n%7 + 1),
	}
	copy(r.RequestID[:], fmt.Sprintf("%016d", n))
	return r
}

var _ io.ReaderAt = file(nil)

// discard is a ledger that applies at once and keeps nothing.
type discard struct{ told func(*dozev1.UsageApplied) }

func (d *discard) PublishUsage(_ context.Context, b *dozev1.UsageBatch) error {
	d.told(&dozev1.UsageApplied{Epoch: b.Epoch, Sequence: b.FirstSequence + uint64(len(b.Function)) - 1})
	return nil
}

func (d *discard) OnApplied(f func(*dozev1.UsageApplied)) (func(), error) {
	d.told = f
	return func() {}, nil
}

func (d *discard) AppliedMark(context.Context, string) (uint64, error) { return 0, nil }
