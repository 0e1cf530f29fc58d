package quorum

import (
	"context"
	"fmt"
	"time"

	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Propose applies a registry command on every node and answers what the command answered:
// its *Function, *Version or *Policy, or its *registry.Error. When it returns without an error of
// this package, the command is on the disks of a majority and visible in this node's Registry. A
// node that does not lead has the leader do it, if it has a Forwarder.
//
// Errors: ErrNotLeader, ErrBusy, ErrClosed, ErrTooLarge (nothing happened), ErrUnknown (it may have),
// ErrHalted. Many callers at once share writes to the disk.
func (n *Node) Propose(ctx context.Context, cmd registry.Command) (any, error) {
	entry, err := registry.Append([]byte{forRegistry}, cmd)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return n.propose(ctx, entry)
}

// ProposeUsage counts usage batches in the ledger, as one log entry, and answers what came of each,
// in order. Batches that are malformed whatever the ledger holds never reach the log. Errors as
// Propose; with ErrUnknown, simply propose again: records are counted once.
func (n *Node) ProposeUsage(ctx context.Context, batches []*dozev1.UsageBatch) ([]ledger.Applied, error) {
	applied := make([]ledger.Applied, len(batches))
	good := make([]*dozev1.UsageBatch, 0, len(batches))
	place := make([]int, 0, len(batches))
	for i, b := range batches {
		applied[i] = ledger.Applied{Epoch: b.GetEpoch(), Err: ledger.Check(b)}
		if applied[i].Err == nil {
			good, place = append(good, b), append(place, i)
		}
	}
	if len(good) == 0 {
		return applied, nil
	}
	entry, err := ledger.Append([]byte{forLedger}, good)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	answer, err := n.propose(ctx, entry)
	if err != nil {
		return nil, err
	}
	results, ok := answer.([]ledger.Applied)
	if !ok || len(results) != len(good) {
		return nil, fmt.Errorf("quorum: ledger answered %T", answer)
	}
	for i, r := range results {
		applied[place[i]] = r
	}
	return applied, nil
}

// applyHere puts one entry into the log, if this node leads, and waits for what the machine answers.
func (n *Node) applyHere(ctx context.Context, entry []byte) (res result, index uint64, err error) {
	var applied result
	var at uint64
	err = n.await(ctx, func() error {
		n.replacing.RLock()
		defer n.replacing.RUnlock()
		f := n.raft.Apply(entry, patience(ctx))
		if err := f.Error(); err != nil {
			return err
		}
		// Only read when await saw this function end.
		applied, at = f.Response().(result), f.Index()
		return nil
	})
	if err != nil {
		return result{}, 0, err
	}
	return applied, at, nil
}

// patience is how long a call may wait for raft to look at it.
func patience(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return enqueueTimeout
	}
	// 0 would mean for ever.
	return max(min(time.Until(deadline), enqueueTimeout), time.Millisecond)
}
