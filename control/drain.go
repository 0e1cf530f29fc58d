package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/doze-run/doze/bus/gossip"
)

const (
	// keepAway is how often a node that drains looks whether it leads something again.
	keepAway = 250 * time.Millisecond
	// handOverLimit bounds one try to hand over what this node leads.
	handOverLimit = 3 * time.Second
	// emptyLimit bounds how long a node that stops waits for its queues; what is in them then is published
	// again, elsewhere, by those who asked.
	emptyLimit = 5 * time.Second
	emptyPause = 20 * time.Millisecond
)

// draining is the end of a control node's part in the cluster, which begins once.
type draining struct {
	once  sync.Once
	begun chan struct{}
}

// Drain has this node stop being a home and a leader: it is not ready any more, others give its queues
// nothing new, and it hands over what it leads, again and again until it is closed. It goes on answering
// who still comes. It does not wait; a restart ends it.
func (c *Control) Drain() {
	c.drain.once.Do(func() {
		close(c.drain.begun)
		c.config.Logger.Info("draining: not ready, not a home and not a leader any more")
		c.gateway.Leave()
		if c.members == nil {
			return
		}
		c.running.Go(func() {
			if err := c.pollers.Stop(c.background); err != nil {
				c.config.Logger.Debug("events are given back", "err", err)
			}
		})
		c.running.Go(func() {
			// Others publish to their next home as soon as they hear of it.
			c.members.Update(func(n *gossip.Node) { n.Serving = false })
			ticker := time.NewTicker(keepAway)
			defer ticker.Stop()
			for {
				if err := c.handOver(c.background); err != nil && c.background.Err() == nil {
					c.config.Logger.Warn("hand over leadership", "err", err)
				}
				select {
				case <-ticker.C:
				case <-c.background.Done():
					return
				}
			}
		})
	})
}

// handOver has others lead what this node leads. When nobody else is there to stay, as at the end of a whole
// cluster, it keeps it.
func (c *Control) handOver(ctx context.Context) error {
	if !slices.ContainsFunc(c.members.Controls(), func(n gossip.Node) bool { return n.Name != c.Name() && n.Serving }) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handOverLimit)
	defer cancel()
	return errors.Join(c.quorum.HandOver(ctx), c.streams.StepDown(ctx))
}

func (c *Control) isDraining() bool {
	select {
	case <-c.drain.begun:
		return true
	default:
		return false
	}
}

// errDraining is why a node that drains is not ready.
var errDraining = errors.New("this node is draining")

// nodeState is what a control node tells others of itself.
type nodeState struct {
	Draining bool   `json:"draining"`
	Calls    int    `json:"calls"`  // that its gateway waits for
	Queued   uint64 `json:"queued"` // in its queues
	Led      int    `json:"led"`    // streams and consumers
	Behind   int    `json:"behind"` // streams and consumers that lack something here
	Leads    bool   `json:"leads"`  // the replicated state
}

// empty says that nothing is left of what a node that drains had.
func (s nodeState) empty() bool { return s.Calls == 0 && s.Queued == 0 && s.Led == 0 && !s.Leads }

func (c *Control) state(ctx context.Context) (nodeState, error) {
	s := nodeState{Draining: c.isDraining(), Leads: c.quorum.IsLeader(), Calls: c.asker.InFlight(), Behind: c.streams.Behind()}
	var failures [2]error
	s.Queued, failures[0] = c.home.QueuedCalls(ctx)
	s.Led, failures[1] = c.streams.Leads()
	return s, errors.Join(failures[:]...)
}

// waitEmpty returns when no call is in this node's queues, or after a while.
func (c *Control) waitEmpty(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, emptyLimit)
	defer cancel()
	for {
		queued, err := c.home.QueuedCalls(ctx)
		if err == nil && queued == 0 {
			return nil
		}
		select {
		case <-time.After(emptyPause):
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("control: %d calls are left in this node's queues", queued)
			}
			return err
		}
	}
}
