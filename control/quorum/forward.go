package quorum

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Forwarder takes to the leader what only the leader can do. It reaches the other node's
// ApplyForwarded and ReadIndex, and brings back their errors so that errors.Is finds ErrNotLeader,
// ErrBusy, ErrClosed and ErrTooLarge again; what it cannot tell is ErrUnknown.
type Forwarder interface {
	Apply(ctx context.Context, leader string, entry []byte) (index uint64, err error)
	ReadIndex(ctx context.Context, leader string) (index uint64, err error)
}

const (
	// leaderWait is how long a call waits for a leader when its caller set no limit.
	leaderWait = 5 * time.Second
	// leaderPause is how long after a node that does not lead was taken for the leader another is looked for.
	leaderPause = 20 * time.Millisecond
	// keptAnswers is how many of the newest commands' answers are kept for those who forwarded one. A
	// node is never so far behind the leader, but for one that catches up from a snapshot.
	keptAnswers = 1024
)

// ApplyForwarded puts an entry of another node's into the log, and returns its index: that node has the
// same answer as this one once it has applied it. Errors as Propose.
func (n *Node) ApplyForwarded(ctx context.Context, entry []byte) (index uint64, err error) {
	if len(entry) > MaxEntry {
		return 0, ErrTooLarge
	}
	_, index, err = n.applyHere(ctx, entry)
	return index, err
}

// forwarded has the leader do what do says, and looks for the leader as long as ctx (or leaderWait)
// allows.
func (n *Node) forwarded(ctx context.Context, do func(ctx context.Context, leader string) (uint64, error)) (uint64, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, leaderWait)
		defer cancel()
	}
	for {
		_, _, changed := n.leadership.now()
		var pause <-chan time.Time
		if id, _ := n.Leader(); id == string(n.id) {
			return 0, errLeadsNow
		} else if id != "" {
			index, err := do(ctx, id)
			if !errors.Is(err, ErrNotLeader) {
				return index, err
			}
			pause = time.After(leaderPause)
		}
		select {
		case <-changed:
		case <-pause:
		case <-n.closed:
			return 0, ErrClosed
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", n.notLeader(), ctx.Err())
		}
	}
}

// errLeadsNow: this node has become the leader meanwhile.
var errLeadsNow = errors.New("quorum: this node leads")

// propose puts one entry into the log, here or by way of the leader, and waits for what the machine
// answers.
func (n *Node) propose(ctx context.Context, entry []byte) (any, error) {
	for {
		res, _, err := n.applyHere(ctx, entry)
		if n.forward == nil || !errors.Is(err, ErrNotLeader) {
			if err != nil {
				return nil, err
			}
			return res.answer, res.err
		}
		index, err := n.forwarded(ctx, func(ctx context.Context, leader string) (uint64, error) {
			return n.forward.Apply(ctx, leader, entry)
		})
		switch {
		case errors.Is(err, errLeadsNow):
			if err := n.settle(ctx); err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, err
		}
		if err := n.fsm.wait(ctx, index); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
		}
		if res, ok := n.fsm.answer(index); ok {
			return res.answer, res.err
		}
		return nil, fmt.Errorf("%w: this node had its state from a snapshot meanwhile", ErrUnknown)
	}
}

// settle waits a moment for this node's leadership to be established, or lost.
func (n *Node) settle(ctx context.Context) error {
	leading, _, changed := n.leadership.now()
	if leading != nil {
		return nil
	}
	select {
	case <-changed:
	case <-time.After(leaderPause):
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", n.notLeader(), ctx.Err())
	}
	return nil
}

// Read returns once this node's Registry and Ledger hold every change that was acknowledged, by any
// node, before Read was called: what is read then is linearizable. A node that does not lead asks the
// leader how far it has come; without a Forwarder it answers ErrNotLeader. It writes nothing to the log.
func (n *Node) Read(ctx context.Context) error {
	for {
		_, err := n.ReadIndex(ctx)
		if n.forward == nil || !errors.Is(err, ErrNotLeader) {
			return err
		}
		index, err := n.forwarded(ctx, n.forward.ReadIndex)
		switch {
		case errors.Is(err, errLeadsNow):
			if err := n.settle(ctx); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		return n.fsm.wait(ctx, index)
	}
}
