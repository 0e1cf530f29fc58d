package quorum

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/registry"
)

// fsm hands raft's log to the machine. raft calls Apply, Snapshot and Restore one at a time; mu is
// for those who ask from outside.
type fsm struct {
	log     *slog.Logger
	machine Machine
	failed  chan struct{}

	mu sync.Mutex
	// index is of the last command applied. raft's own AppliedIndex is what it has handed over.
	index   uint64
	halted  error
	waiters []waiter
	answers []kept // of the newest commands, for those who forwarded one; a ring
}

// kept is what the command at index came to.
type kept struct {
	index uint64
	result
}

// waiter waits until index has been applied.
type waiter struct {
	index uint64
	done  chan struct{}
}

// result is what Apply hands to the proposer on the same node.
type result struct {
	answer any
	err    error
}

func newFSM(log *slog.Logger) *fsm {
	return &fsm{log: log, machine: NewMachine(), failed: make(chan struct{})}
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.apply(l)
}

func (f *fsm) apply(l *raft.Log) result {
	if f.halted != nil {
		return result{err: f.halted}
	}
	answer, refused, err := f.machine.Apply(l.Data)
	if err != nil {
		// To go on would part this state from the other nodes'. Nothing more is applied.
		f.halted = fmt.Errorf("%w at index %d: %w", ErrHalted, l.Index, err)
		f.log.Error("raft: the log has an entry that this version does not understand; it applies nothing more",
			"index", l.Index, "error", err)
		close(f.failed)
		f.wake(func(waiter) bool { return true })
		return result{err: f.halted}
	}
	f.index = l.Index
	if len(f.answers) > 0 {
		f.answers[l.Index%uint64(len(f.answers))] = kept{l.Index, result{answer: answer, err: refused}}
	}
	if len(f.waiters) > 0 {
		f.wake(func(w waiter) bool { return w.index <= f.index })
	}
	return result{answer: answer, err: refused}
}

// wake releases the waiters that are due. mu is held.
func (f *fsm) wake(due func(waiter) bool) {
	f.waiters = slices.DeleteFunc(f.waiters, func(w waiter) bool {
		if !due(w) {
			return false
		}
		close(w.done)
		return true
	})
}

// wait returns once index has been applied, the machine has halted, or ctx ends.
func (f *fsm) wait(ctx context.Context, index uint64) error {
	f.mu.Lock()
	if f.index >= index || f.halted != nil {
		defer f.mu.Unlock()
		return f.halted
	}
	w := waiter{index, make(chan struct{})}
	f.waiters = append(f.waiters, w)
	f.mu.Unlock()
	select {
	case <-w.done:
		return f.err()
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		f.waiters = slices.DeleteFunc(f.waiters, func(o waiter) bool { return o.done == w.done })
		return fmt.Errorf("quorum: wait for index %d, have %d: %w", index, f.index, ctx.Err())
	}
}

func (f *fsm) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.halted
}

func (f *fsm) applied() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index
}

// answer is what the command at index came to, if that is not long ago.
func (f *fsm) answer(index uint64) (result, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.answers) == 0 {
		return result{}, false
	}
	k := f.answers[index%uint64(len(f.answers))]
	return k.result, k.index == index
}

// capture is a point-in-time copy of the whole state: both parts at one index.
func (f *fsm) capture() (uint64, *registry.Snapshot, *ledger.Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index, f.machine.Registry.Snapshot(), f.machine.Ledger.Snapshot()
}

// Snapshot implements raft.FSM. It is cheap; Persist writes, while Apply goes on.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	index, r, l := f.capture()
	return &fsmSnapshot{index: index, registry: r, ledger: l}, nil
}

// Restore implements raft.FSM. The state changes only when the whole snapshot could be read.
func (f *fsm) Restore(source io.ReadCloser) error {
	defer source.Close()
	index, r, l, err := readState(source)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machine.Registry.Restore(r)
	f.machine.Ledger.Restore(l)
	f.index = index
	f.wake(func(w waiter) bool { return w.index <= index })
	return nil
}

type fsmSnapshot struct {
	index    uint64
	registry *registry.Snapshot
	ledger   *ledger.Snapshot
}

// Persist implements raft.FSMSnapshot.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	buf := bufio.NewWriterSize(sink, 256<<10)
	err := writeState(buf, s.index, s.registry, s.ledger)
	if err == nil {
		err = buf.Flush()
	}
	if err != nil {
		_ = sink.Cancel() // err says why
		return err
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot; there is nothing to release.
func (s *fsmSnapshot) Release() {}
