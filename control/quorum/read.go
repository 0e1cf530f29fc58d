package quorum

import (
	"context"
)

// ReadIndex is Read for another node's sake: that node has seen all acknowledged changes when its
// WaitApplied of this index returns.
//
// Why it is enough: what this leader acknowledged, it had applied before. What leaders before it
// acknowledged, it applied before its barrier, which leading() stands for. So all that is left is
// to make sure that it still leads, in the same term.
func (n *Node) ReadIndex(ctx context.Context) (uint64, error) {
	term, ok := n.leadership.term()
	if !ok {
		return 0, n.notLeader()
	}
	if err := n.await(ctx, func() error { return n.raft.VerifyLeader().Error() }); err != nil {
		return 0, err
	}
	if n.raft.CurrentTerm() != term {
		return 0, n.notLeader()
	}
	return n.fsm.applied(), nil
}

// WaitApplied returns once this node has applied the command at index, which must be one that
// ReadIndex answered.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error { return n.fsm.wait(ctx, index) }

// AppliedIndex is the index of the last command in this node's state.
func (n *Node) AppliedIndex() uint64 { return n.fsm.applied() }

func (n *Node) notLeader() error {
	id, addr := n.Leader()
	return &NotLeaderError{ID: id, Addr: addr}
}
