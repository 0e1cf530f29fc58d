package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// peersFile is where a node keeps who the others were, so that a cluster that starts anew needs
	// nobody to tell it.
	peersFile = "peers.json"
	maxPeers  = 64 << 10 // bytes
)

// peer is a control node as it was last seen.
type peer struct {
	Name   string `json:"name"`
	Gossip string `json:"gossip"`
	Routes string `json:"routes"`
}

type peers []peer

func (p peers) gossip() (all []string) {
	for _, one := range p {
		all = append(all, one.Gossip)
	}
	return all
}

func (p peers) routes() (all []string) {
	for _, one := range p {
		all = append(all, one.Routes)
	}
	return all
}

func (c *Control) peersPath() string { return filepath.Join(c.config.DataDir, peersFile) }

// knownPeers are the control nodes, this one included, that were there when the file was written.
func (c *Control) knownPeers() (known peers) {
	raw, err := os.ReadFile(c.peersPath())
	if err == nil && len(raw) > maxPeers {
		err = errors.New("the file is too long")
	}
	if err == nil {
		err = json.Unmarshal(raw, &known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.config.Logger.Warn("the file of known control nodes is of no use", "path", c.peersPath(), "err", err)
	}
	return known
}

// waitPeers returns the control nodes that the durable plane is made of: those that are there, with
// those that were. At the first start it waits until there are as many as expected; later there may be
// fewer, because one was removed.
func (c *Control) waitPeers(ctx context.Context) (peers, error) {
	before := c.knownPeers()
	for {
		changed := c.members.Changed()
		all := before.with(c.seenPeers())
		if want := max(c.config.Cluster.Expect, 1); len(before) > 0 || len(all) >= want {
			return all, c.keepPeers(all)
		}
		select {
		case <-changed:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return nil, fmt.Errorf("control: %d of %d control nodes are there: %w", len(all), c.config.Cluster.Expect, ctx.Err())
		}
	}
}

func (c *Control) seenPeers() (seen peers) {
	for _, n := range c.members.Controls() {
		seen = append(seen, peer{n.Name, n.Gossip, n.Addr(n.Routes)})
	}
	return seen
}

// with is p with what newer says of the same names.
func (p peers) with(newer peers) peers {
	all := slices.Clone(newer)
	for _, old := range p {
		if !slices.ContainsFunc(newer, func(n peer) bool { return n.Name == old.Name }) {
			all = append(all, old)
		}
	}
	slices.SortFunc(all, func(a, b peer) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// forgetPeer has the next start not wait for a control node that was removed.
func (c *Control) forgetPeer(name string) error {
	return c.keepPeers(slices.DeleteFunc(c.knownPeers(), func(p peer) bool { return p.Name == name }))
}

func (c *Control) keepPeers(all peers) error {
	raw, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	next := c.peersPath() + ".new"
	if err := os.WriteFile(next, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("control: remember the control nodes: %w", err)
	}
	if err := os.Rename(next, c.peersPath()); err != nil {
		return fmt.Errorf("control: remember the control nodes: %w", err)
	}
	return nil
}
