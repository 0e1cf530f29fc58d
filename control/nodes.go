package control

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/doze-run/doze/bus/gossip"
	"github.com/doze-run/doze/control/gateway"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// askNodes bounds what a list of nodes waits for one node's answer.
const askNodes = time.Second

// States of a node, for people.
const (
	nodeAlive    = "alive"
	nodeSuspect  = "suspect"
	nodeDraining = "draining"
	nodeDrained  = "drained"
	nodeLeft     = "left"
	nodeDead     = "dead"
)

// Nodes lists the cluster's nodes: those that gossip knows, those that have gone since this node began, and
// voters of which neither says anything.
func (p *platform) Nodes(ctx context.Context) ([]*dozev1.Node, error) {
	c := (*Control)(p)
	nodes := nodeList{}
	if c.members == nil {
		n := nodes.of(aloneName, gossip.Control)
		n.State, n.Address, n.Version = nodeAlive, c.config.HTTP.Addr().String(), c.config.Version
	} else {
		for _, m := range c.members.Nodes() {
			if !c.members.Forgotten(m.Name) {
				nodes.gossiped(m, nodeSuspect) // until it says something
			}
		}
		for _, g := range c.members.Gone() {
			state := nodeDead
			if g.Left {
				state = nodeLeft
			}
			nodes.gossiped(g.Node, state)
		}
	}
	for _, w := range c.placement.Workers() {
		nodes.worker(w)
	}
	if err := c.raftRoles(nodes); err != nil {
		return nil, err
	}
	c.askStates(ctx, nodes)
	return slices.SortedFunc(maps.Values(nodes), func(a, b *dozev1.Node) int {
		if a.Role != b.Role {
			return strings.Compare(a.Role, b.Role)
		}
		return strings.Compare(a.Name, b.Name)
	}), nil
}

// nodeList is nodes by name.
type nodeList map[string]*dozev1.Node

func (l nodeList) of(name, role string) *dozev1.Node {
	if l[name] == nil {
		l[name] = &dozev1.Node{Name: name, Role: role}
	}
	return l[name]
}

// gossiped takes in what gossip says. A node that is there is named before it among those that have gone.
func (l nodeList) gossiped(m gossip.Node, state string) {
	if l[m.Name] != nil {
		return
	}
	n := l.of(m.Name, m.Role)
	n.State, n.Version, n.Address = state, m.Version, m.Host
	if m.Role == gossip.Control {
		n.Address = m.Addr(m.HTTP)
	}
}

// worker takes in a worker's report, which is not a second old.
func (l nodeList) worker(w *dozev1.WorkerReport) {
	n := l.of(w.Worker, gossip.Worker)
	n.MemoryTotalBytes, n.MemoryFreeBytes, n.Unavailable = w.MemoryTotalBytes, w.MemoryFreeBytes, w.Unavailable
	for _, h := range w.Hosted {
		n.Instances += int64(h.Instances)
		n.Calls += int64(h.Busy)
	}
	switch {
	case n.State == nodeLeft: // its last report
	case w.Drained:
		n.State = nodeDrained
	case w.Draining:
		n.State = nodeDraining
	default:
		n.State = nodeAlive
	}
}

// raftRoles fills in the control nodes' parts in the replicated state.
func (c *Control) raftRoles(nodes nodeList) error {
	members, err := c.quorum.Members()
	if err != nil {
		return err
	}
	leader, _ := c.quorum.Leader()
	for _, m := range members {
		n := nodes.of(m.ID, gossip.Control)
		if n.State == "" {
			n.State = nodeDead // nobody has seen it
		}
		switch {
		case m.ID == leader:
			n.Raft = "leader"
		case !m.Voter:
			n.Raft = "none"
		case n.State == nodeDead || n.State == nodeLeft:
			n.Raft = "voter"
		default:
			n.Raft = "follower"
		}
	}
	for _, n := range nodes {
		if n.Role == gossip.Control && n.Raft == "" {
			n.Raft = "none"
		}
	}
	return nil
}

// askStates asks the control nodes that are there how they are.
func (c *Control) askStates(ctx context.Context, nodes nodeList) {
	ctx, cancel := context.WithTimeout(ctx, askNodes)
	defer cancel()
	var asking sync.WaitGroup
	for _, n := range nodes {
		if n.Role != gossip.Control || n.State != nodeSuspect && n.State != nodeAlive {
			continue
		}
		asking.Go(func() {
			state, err := c.stateOf(ctx, n.Name)
			if err != nil {
				c.config.Logger.Debug("a control node does not say how it is", "node", n.Name, "err", err)
				return
			}
			n.State, n.Calls, n.Queued = nodeAlive, int64(state.Calls), int64(state.Queued)
			n.StreamsLed, n.StreamsBehind = int64(state.Led), int64(state.Behind)
			switch {
			case state.Draining && state.empty():
				n.State = nodeDrained
			case state.Draining:
				n.State = nodeDraining
			}
		})
	}
	asking.Wait()
}

// stateOf asks one control node, which may be this one.
func (c *Control) stateOf(ctx context.Context, name string) (state nodeState, err error) {
	if name == c.Name() {
		return c.state(ctx)
	}
	raw, err := c.mesh.AskNode(ctx, name, verbNode, nil)
	if err != nil {
		return state, err
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return state, fmt.Errorf("control: what %s says of itself: %w", name, err)
	}
	return state, nil
}

// find is one node of the list, or a refusal.
func (p *platform) find(ctx context.Context, name string) (*dozev1.Node, []*dozev1.Node, error) {
	nodes, err := p.Nodes(ctx)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(nodes, func(n *dozev1.Node) bool { return n.Name == name })
	if i < 0 {
		return nil, nil, gateway.Missing("No node is called %s.", name)
	}
	return nodes[i], nodes, nil
}

// gone says that a node is not there.
func gone(n *dozev1.Node) bool { return n.State == nodeLeft || n.State == nodeDead }

// Drain tells a node to take nothing new.
func (p *platform) Drain(ctx context.Context, name string) error {
	c := (*Control)(p)
	if c.members == nil {
		return gateway.Refused("This is all of Doze in one process: stop it, and running calls may end.")
	}
	n, nodes, err := p.find(ctx, name)
	switch {
	case err != nil:
		return err
	case gone(n):
		return gateway.Refused("%s is not there (%s).", name, n.State)
	case n.Role == gossip.Worker:
		if err := c.mesh.AskDrain(ctx, name); err != nil {
			return gateway.Refused("Worker %s does not answer: %v.", name, err)
		}
		return nil
	}
	if !slices.ContainsFunc(nodes, func(other *dozev1.Node) bool {
		return other.Name != name && other.Role == gossip.Control && other.State == nodeAlive
	}) {
		return gateway.Refused("%s is the last control node that takes calls: without it there would be none.", name)
	}
	if _, err := c.mesh.AskNode(ctx, name, verbDrain, nil); err != nil {
		return gateway.Refused("Control node %s does not answer: %v.", name, err)
	}
	return nil
}
