package quorum

import (
	"context"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// restoreGap is how far the index jumps when a state is replaced. What others wait for meanwhile is
// below it, so that nobody takes the old state for the new one.
const restoreGap = 1024

// Restore replaces the whole state, on every node, by another one, which has the cluster's own next
// index from then on; only the leader can. allowed looks at the state that would be lost, when no
// change can come in between any more, and its error ends Restore with nothing done. It returns when
// the new state is on the disks of a majority. Errors: allowed's, and as Propose.
//
// The state that it returns is the one that is there now.
func (n *Node) Restore(ctx context.Context, state State, allowed func(now State) error) (State, error) {
	var now State
	var refused error
	err := n.await(ctx, func() error {
		n.replacing.Lock()
		defer n.replacing.Unlock()
		if err := n.raft.Barrier(patience(ctx)).Error(); err != nil {
			return err
		}
		if refused = allowed(n.fsm.state()); refused != nil {
			return nil
		}
		state.Index = max(state.Index, n.raft.LastIndex()) + restoreGap
		size := &counter{}
		if err := state.Write(size); err != nil {
			return err
		}
		from, to := io.Pipe()
		written := make(chan struct{})
		go func() {
			defer close(written)
			_ = to.CloseWithError(state.Write(to)) // never fails
		}()
		err := n.raft.Restore(&raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: state.Index, Size: size.n}, from, patience(ctx))
		_ = from.Close()
		<-written
		now = n.fsm.state()
		return err
	})
	if err != nil {
		return State{}, err // of the two others nothing is known: see await
	}
	return now, refused
}

// HandOverTo makes another voter the leader; only the leader can. It returns when this node does not lead
// any more, which need not mean that the other one does.
func (n *Node) HandOverTo(ctx context.Context, id string) error {
	members, err := n.Members()
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.ID == id && m.Voter {
			return n.await(ctx, func() error {
				return n.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(m.Addr)).Error()
			})
		}
	}
	return fmt.Errorf("quorum: hand over: %q is no voter", id)
}

// counter counts what is written.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
