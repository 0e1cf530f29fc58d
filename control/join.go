package control

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/doze-run/doze/bus/gossip"
	"github.com/doze-run/doze/bus/nodetls"
	"github.com/doze-run/doze/control/quorum"
)

const (
	// joinTry bounds one request to be taken in.
	joinTry = 5 * time.Second
	// reconcileEvery is how often the leader compares the voters with who is there.
	reconcileEvery = time.Second
)

func raftDir(config Config) string { return filepath.Join(config.DataDir, "raft") }

func hasState(config Config) (bool, error) { return quorum.HasState(raftDir(config), config.Logger) }

// joinState opens this node's part of the replicated state, and returns when there is a leader. A node
// with state takes part again. One without state
//
//   - asks to be taken in, when others have state: if it had been a voter, with a disk that is lost, the
//     leader takes that one out first, because it may have promised what this one does not know of;
//   - begins a new cluster, when exactly as many control nodes as expected see one another and none has
//     state: the one with the least name makes all of them voters, the others open and wait for it;
//   - or does so alone, when it is told to.
func (c *Control) joinState(ctx context.Context, raft net.Listener) error {
	config := quorum.Config{
		NodeID: c.config.Cluster.Name, DataDir: raftDir(c.config), Listener: raft,
		Advertise: advertise(c.config.Cluster.Host, raft.Addr().String()), Resolve: c.raftAddress, Forward: (*forwarder)(c),
		Timing: quorum.Timing{Lease: 500 * time.Millisecond, Commit: 10 * time.Millisecond},
		Logger: c.config.Logger,
	}
	if certificate := c.config.Cluster.TLS; certificate != nil {
		dialer := tls.Dialer{Config: certificate.Client(nodetls.Control)}
		config.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	has, err := hasState(c.config)
	if err == nil && !has {
		config.Bootstrap, config.Peers, err = c.waitTurn(ctx, config.Advertise)
	}
	if err != nil {
		return errors.Join(err, raft.Close())
	}
	node, err := quorum.Open(config)
	if err != nil {
		return errors.Join(err, raft.Close())
	}
	c.setQuorum(node)
	if err := node.WaitReady(ctx); err != nil {
		return fmt.Errorf("control: no leader: %w", err)
	}
	c.members.Update(func(n *gossip.Node) { n.State = gossip.StateMember })
	return nil
}

// waitTurn returns when this node, which has no state, may open the replicated state, and how.
func (c *Control) waitTurn(ctx context.Context, address string) (bootstrap bool, peers []quorum.Member, err error) {
	cluster := c.config.Cluster
	if cluster.Bootstrap {
		c.founding = true
		return true, nil, nil
	}
	said := ""
	say := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != said {
			said = text
			c.config.Logger.Info(text)
		}
	}
	for {
		changed := c.members.Changed()
		nodes := c.members.Controls()
		var members []string
		for _, n := range nodes {
			if n.State == gossip.StateMember {
				members = append(members, n.Name)
			}
		}
		least := nodes[0].Name
		founding := cluster.Expect > 0 && len(nodes) == cluster.Expect &&
			!slices.ContainsFunc(nodes, func(n gossip.Node) bool { return n.Expect != cluster.Expect })
		switch {
		case founding && len(members) == 0 && least == cluster.Name:
			for _, n := range nodes[1:] {
				peers = append(peers, quorum.Member{ID: n.Name, Addr: n.Addr(n.Raft), Voter: true})
			}
			c.config.Logger.Info("beginning a new cluster", "nodes", len(nodes))
			c.founding = true
			return true, peers, nil
		case founding && (len(members) == 0 || len(members) == 1 && members[0] == least):
			c.founding = true
			return false, nil, nil // the least begins, or has begun
		case len(members) > 0:
			say("asking to be taken in by the cluster of %v", members)
			for _, name := range members {
				if err := c.askToJoin(ctx, name, address); err == nil {
					return false, nil, nil
				} else {
					c.config.Logger.Debug("not taken in", "by", name, "err", err)
				}
			}
		case cluster.Expect == 0:
			say("waiting for a node of the cluster to join")
		case len(nodes) > cluster.Expect:
			say("there are %d control nodes, but --bootstrap-expect is %d: no cluster is begun; stop the surplus ones, or correct the number on all", len(nodes), cluster.Expect)
		default:
			say("waiting for control nodes: %d of %d are there", len(nodes), cluster.Expect)
		}
		select {
		case <-changed:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return false, nil, fmt.Errorf("control: no cluster to take part in: %s: %w", said, ctx.Err())
		}
	}
}

// joinRequest asks to be made a voter by a node that has no state.
type joinRequest struct {
	Name string `json:"name"`
	Raft string `json:"raft"`
}

func (c *Control) askToJoin(ctx context.Context, by, address string) error {
	request, err := json.Marshal(joinRequest{c.config.Cluster.Name, address})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTry)
	defer cancel()
	_, err = c.mesh.AskNode(ctx, by, verbJoin, request)
	return err
}

// takeIn makes a node without state a voter, on the leader; others pass it on.
func (c *Control) takeIn(ctx context.Context, raw []byte) error {
	var request joinRequest
	if err := json.Unmarshal(raw, &request); err != nil || request.Name == "" || request.Raft == "" {
		return fmt.Errorf("control: malformed request to join: %w", err)
	}
	node := c.quorumNow()
	if node == nil {
		return errNotReady
	}
	if !node.IsLeader() {
		leader, _ := node.Leader()
		if leader == "" || leader == c.config.Cluster.Name {
			return errNotReady
		}
		_, err := c.mesh.AskNode(ctx, leader, verbJoin, raw)
		return err
	}
	members, err := node.Members()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(members, func(m quorum.Member) bool { return m.ID == request.Name }) {
		c.config.Logger.Warn("a control node comes back without its state: it is taken out and in again", "node", request.Name)
		if err := node.Remove(ctx, request.Name); err != nil {
			return err
		}
	}
	c.config.Logger.Info("taking in a control node", "node", request.Name, "address", request.Raft)
	return node.AddVoter(ctx, request.Name, request.Raft)
}

// reconcile keeps the voters' addresses right, and removed nodes out, while this node leads.
func (c *Control) reconcile(ctx context.Context) {
	ticker := time.NewTicker(reconcileEvery)
	defer ticker.Stop()
	removed := strangers{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		members, err := c.quorum.Members()
		if err != nil {
			continue
		}
		for _, name := range removed.look(c.members.Controls(), members) {
			c.config.Logger.Warn("a control node that was removed is there: it is told so", "node", name)
			if _, err := c.mesh.AskNode(ctx, name, verbRemoved, nil); err != nil {
				c.config.Logger.Debug("it does not answer", "node", name, "err", err)
			}
		}
		for _, n := range c.members.Controls() {
			i := slices.IndexFunc(members, func(m quorum.Member) bool { return m.ID == n.Name })
			if i < 0 || n.State != gossip.StateMember || members[i].Addr == n.Addr(n.Raft) {
				continue
			}
			c.config.Logger.Info("a control node has another address", "node", n.Name, "address", n.Addr(n.Raft))
			if err := c.quorum.AddVoter(ctx, n.Name, n.Addr(n.Raft)); err != nil {
				c.config.Logger.Warn("change a control node's address", "node", n.Name, "err", err)
			}
		}
	}
}

// raftAddress finds another control node by gossip.
func (c *Control) raftAddress(name string) string {
	for _, n := range c.members.Controls() {
		if n.Name == name {
			return n.Addr(n.Raft)
		}
	}
	return ""
}
