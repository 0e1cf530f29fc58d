package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/bus/gossip"
	"github.com/doze-run/doze/control/gateway"
	"github.com/doze-run/doze/control/quorum"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// removedFile marks the data folder of a control node that is no part of its cluster any more.
	removedFile = "removed"
	// removeLimit bounds the removal of a node, handing over what it led included.
	removeLimit = 25 * time.Second
	// removePause is how often it is looked whether a node that is to go still leads.
	removePause = 50 * time.Millisecond
	// strangerRounds is how many times in a row the leader has to see a control node with state that is no
	// member, before it tells that node so.
	strangerRounds = 3
)

// errRemoved is why a control node that was removed stops.
var errRemoved = errors.New("control: an operator has removed this node from its cluster (doze node remove)")

// checkRemoved refuses a data folder whose node was removed: what is in it may be older than what the
// cluster has agreed on without it.
func (c *Control) checkRemoved() error {
	path := filepath.Join(c.config.DataDir, removedFile)
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	return fmt.Errorf("control: this node was removed from its cluster (%s says so): empty %s to have it join as a new node, best by another name", path, c.config.DataDir)
}

// removed marks this node's folder and stops it.
func (c *Control) removed() error {
	path := filepath.Join(c.config.DataDir, removedFile)
	if err := os.WriteFile(path, []byte(time.Now().UTC().Format(time.RFC3339)+"\n"), 0o600); err != nil {
		return fmt.Errorf("control: mark the data folder: %w", err)
	}
	c.members.Update(func(n *gossip.Node) { n.Removed = true })
	c.fail(errRemoved)
	return nil
}

// Remove takes a node out of the cluster.
func (p *platform) Remove(ctx context.Context, name string, force bool) error {
	c := (*Control)(p)
	if c.members == nil {
		return gateway.Refused("This is all of Doze in one process: there is no node to remove.")
	}
	n, nodes, err := p.find(ctx, name)
	if err != nil {
		return err
	}
	if !gone(n) && !force {
		return gateway.Refused("%s is there (%s): drain and stop it first, or remove it with --force, which stops it.", name, n.State)
	}
	if n.Role == gossip.Control {
		if text := losesQuorum(nodes, n); text != "" {
			return &gateway.Fault{Code: gateway.CodeConflict, Message: text}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	if n.Role == gossip.Worker {
		if !gone(n) {
			if err := c.mesh.AskStop(ctx, name); err != nil {
				return gateway.Refused("Worker %s does not answer: %v.", name, err)
			}
		}
		return c.forgetEverywhere(ctx, name)
	}
	if n.Raft == "leader" {
		if err := c.dethrone(ctx, name); err != nil {
			return err
		}
	}
	if err := c.removeControl(ctx, name); err != nil {
		return gateway.Refused("%s is not removed, or not from everything; run this again. %v.", name, err)
	}
	if !gone(n) {
		if _, err := c.mesh.AskNode(ctx, name, verbRemoved, nil); err != nil {
			c.config.Logger.Warn("a removed control node does not hear that it is", "node", name, "err", err)
		}
	}
	return c.forgetEverywhere(ctx, name)
}

// losesQuorum says why a control node cannot go, "" when it can.
func losesQuorum(nodes []*dozev1.Node, out *dozev1.Node) string {
	if out.Raft == "none" {
		return ""
	}
	voters, there := 0, 0
	var missing []string
	for _, n := range nodes {
		if n == out || n.Role != gossip.Control || n.Raft == "none" {
			continue
		}
		voters++
		if gone(n) || n.State == nodeSuspect {
			missing = append(missing, n.Name+" ("+n.State+")")
			continue
		}
		there++
	}
	switch {
	case voters == 0:
		return fmt.Sprintf("%s is the last control node: the cluster's state is nowhere else.", out.Name)
	case there < voters/2+1:
		return fmt.Sprintf("Without %s there would be %d control nodes, and of those only %d are there, which is no majority: nothing could be changed any more. Bring back %s first.",
			out.Name, voters, there, strings.Join(missing, ", "))
	}
	return ""
}

// dethrone has a control node that leads drain, and returns when another leads.
func (c *Control) dethrone(ctx context.Context, name string) error {
	if _, err := c.mesh.AskNode(ctx, name, verbDrain, nil); err != nil {
		return gateway.Refused("%s leads and does not answer: %v.", name, err)
	}
	for {
		if leader, _ := c.quorum.Leader(); leader != "" && leader != name {
			return nil
		}
		select {
		case <-time.After(removePause):
		case <-ctx.Done():
			return gateway.Refused("%s leads, and does not hand over.", name)
		}
	}
}

// removeRequest asks the leader to take a control node out.
type removeRequest struct {
	Name string `json:"name"`
}

// removeControl has the leader take a control node out of the replicated state and of the streams.
func (c *Control) removeControl(ctx context.Context, name string) error {
	request, err := json.Marshal(removeRequest{name})
	if err != nil {
		return err
	}
	for {
		leader, _ := c.quorum.Leader()
		if leader != "" {
			_, err = c.mesh.AskNode(ctx, leader, verbRemove, request)
		} else {
			err = errNotReady
		}
		if !mayLead(err) {
			return err
		}
		select {
		case <-time.After(removePause):
		case <-ctx.Done():
			return fmt.Errorf("no control node leads: %w", ctx.Err())
		}
	}
}

// mayLead says that a request came to a node that does not lead, or not yet.
func mayLead(err error) bool {
	var refused *bus.NodeError
	return errors.As(err, &refused) && (refused.Code == errNotReady.Code || errors.Is(refusals[refused.Code], quorum.ErrNotLeader))
}

// takeOut is removeControl's on the leader.
func (c *Control) takeOut(ctx context.Context, raw []byte) error {
	var request removeRequest
	if err := json.Unmarshal(raw, &request); err != nil || request.Name == "" {
		return fmt.Errorf("control: malformed request to remove a node: %w", err)
	}
	members, err := c.quorum.Members()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(members, func(m quorum.Member) bool { return m.ID == request.Name }) {
		c.config.Logger.Warn("removing a control node, as an operator asks", "node", request.Name)
		if err := c.quorum.Remove(ctx, request.Name); err != nil {
			return err
		}
	}
	return c.streams.RemovePeer(ctx, request.Name)
}

// forgetEverywhere has the control nodes forget a node that has gone.
func (c *Control) forgetEverywhere(ctx context.Context, name string) error {
	request, err := json.Marshal(removeRequest{name})
	if err != nil {
		return err
	}
	for _, n := range c.members.Controls() {
		if n.Name == name {
			continue
		}
		if _, err := c.mesh.AskNode(ctx, n.Name, verbForget, request); err != nil {
			c.config.Logger.Warn("a control node does not forget a removed one", "node", n.Name, "removed", name, "err", err)
		}
	}
	return nil
}

// forget drops what this node knows of one that was removed.
func (c *Control) forget(raw []byte) error {
	var request removeRequest
	if err := json.Unmarshal(raw, &request); err != nil || request.Name == "" {
		return fmt.Errorf("control: malformed request to forget a node: %w", err)
	}
	c.members.Forget(request.Name)
	return c.forgetPeer(request.Name)
}

// strangers tells control nodes that were removed while they were away that they were.
type strangers map[string]int

// look counts the rounds in which a node with state was no member, and says which to tell.
func (s strangers) look(there []gossip.Node, members []quorum.Member) (tell []string) {
	for name := range s {
		if !slices.ContainsFunc(there, func(n gossip.Node) bool { return n.Name == name }) {
			delete(s, name)
		}
	}
	for _, n := range there {
		if n.State != gossip.StateMember || slices.ContainsFunc(members, func(m quorum.Member) bool { return m.ID == n.Name }) {
			delete(s, n.Name)
			continue
		}
		if s[n.Name]++; s[n.Name] >= strangerRounds {
			tell = append(tell, n.Name)
		}
	}
	return tell
}
