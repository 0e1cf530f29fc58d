package quorum

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// Errors of calls. Those of the commands themselves are registry.Error and ledger's.
var (
	// ErrNotLeader: another node leads, or none does now. Nothing happened. Errors of this kind are
	// *NotLeaderError.
	ErrNotLeader = errors.New("quorum: not the leader")
	// ErrUnknown: the call was under way when its context ended or leadership was lost. It may have
	// taken effect, now or later, or not.
	ErrUnknown = errors.New("quorum: outcome unknown")
	// ErrBusy: the node was too busy to look at the call in time. Nothing happened.
	ErrBusy = errors.New("quorum: too busy")
	// ErrClosed: the node is closing. Nothing happened.
	ErrClosed = errors.New("quorum: closed")
	// ErrHalted: the node has stopped applying the log; see Node.Failed.
	ErrHalted = errors.New("quorum: halted")
	// ErrTooLarge: the entry is over MaxEntry. Nothing happened.
	ErrTooLarge = errors.New("quorum: entry too large")
	// ErrFormat: the data folder is of another format, or not a Doze folder at all.
	ErrFormat = errors.New("quorum: data folder of another format")
	// ErrNodeID: the data folder belongs to a node of another name.
	ErrNodeID = errors.New("quorum: data folder of another node")
)

// NotLeaderError says who leads, as far as this node knows; both are empty when nobody does.
type NotLeaderError struct {
	ID, Addr string
}

func (e *NotLeaderError) Error() string {
	if e.ID == "" {
		return ErrNotLeader.Error() + ": no leader is known"
	}
	return fmt.Sprintf("%s: node %s at %s is", ErrNotLeader, e.ID, e.Addr)
}

// Is makes errors.Is(err, ErrNotLeader) true.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// translate turns raft's errors into this package's.
func (n *Node) translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		id, addr := n.Leader()
		return &NotLeaderError{ID: id, Addr: addr}
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrBusy
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	}
	return fmt.Errorf("quorum: %w", err)
}
