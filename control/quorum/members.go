package quorum

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"
)

// Member is one node of the cluster, as the log has it.
type Member struct {
	ID, Addr string
	// Voter is false for a node that only follows.
	Voter bool
}

// Members is the cluster's newest configuration that this node has.
func (n *Node) Members() ([]Member, error) {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, n.translate(err)
	}
	var members []Member
	for _, s := range f.Configuration().Servers {
		members = append(members, Member{string(s.ID), string(s.Address), s.Suffrage == raft.Voter})
	}
	return members, nil
}

// AddVoter makes the node at addr a voter, or gives the voter id another address. It returns when
// the change is committed; only the leader can. The new node catches up by itself. Errors as Propose.
func (n *Node) AddVoter(ctx context.Context, id, addr string) error {
	if id == "" || addr == "" {
		return fmt.Errorf("quorum: add voter: id and address must be set")
	}
	return n.await(ctx, func() error {
		return n.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, patience(ctx)).Error()
	})
}

// Remove takes a node out of the cluster, itself included: the leader that removes itself steps
// down. A removed node must not come back with its old folder. Errors as Propose.
func (n *Node) Remove(ctx context.Context, id string) error {
	return n.await(ctx, func() error {
		return n.raft.RemoveServer(raft.ServerID(id), 0, patience(ctx)).Error()
	})
}

// onlyVoter reports whether this node is all there is of the cluster.
func (n *Node) onlyVoter() bool {
	members, err := n.Members()
	if err != nil {
		return false
	}
	voters, self := 0, false
	for _, m := range members {
		if m.Voter {
			voters++
			self = self || m.ID == string(n.id)
		}
	}
	return voters == 1 && self
}

// correctAddress tells the cluster when the leader is now reached by another address than it was.
func (n *Node) correctAddress() error {
	members, err := n.Members()
	if err != nil {
		return err
	}
	local := n.trans.LocalAddr()
	for _, m := range members {
		if m.ID == string(n.id) && m.Voter && m.Addr != string(local) {
			return n.raft.AddVoter(n.id, local, 0, enqueueTimeout).Error()
		}
	}
	return nil
}
