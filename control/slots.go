package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/slots"
)

// idleFile says, while a node is stopped, that it stopped with all of its executions ended: the next
// start need not wait for them to be over.
const idleFile = "slots.idle"

// openSlots takes part in the cluster's slots, for reserved concurrency. Alone, the invoker counts itself.
func (c *Control) openSlots() (invoke.Slots, error) {
	if c.members == nil {
		return nil, nil
	}
	marker := filepath.Join(c.config.DataDir, idleFile)
	idle := true
	if err := os.Remove(marker); errors.Is(err, fs.ErrNotExist) {
		idle = c.founding // there was no life before
	} else if err != nil {
		return nil, fmt.Errorf("control: slots: %w", err)
	}
	var known atomic.Pointer[[]string]
	node, err := slots.Open(slots.Config{
		Node: c.config.Cluster.Name, Boot: uuid.NewString(), Wire: c.mesh, Clean: idle, Logger: c.config.Logger,
		Members: func() []string { return c.voters(&known) }, Limit: c.reserved, Longest: c.longest,
	})
	if err != nil {
		return nil, err
	}
	c.onClose(func(context.Context) error {
		clean, err := node.Close()
		if clean {
			err = errors.Join(err, os.WriteFile(marker, nil, 0o600))
		}
		if err != nil {
			return fmt.Errorf("control: slots: %w", err)
		}
		return nil
	})
	return leases{node}, nil
}

// voters are the control nodes that the cluster has agreed on, or had when that was last known.
func (c *Control) voters(known *atomic.Pointer[[]string]) []string {
	members, err := c.quorum.Members()
	if err == nil {
		var names []string
		for _, m := range members {
			if m.Voter {
				names = append(names, m.ID)
			}
		}
		known.Store(&names)
	}
	if names := known.Load(); names != nil {
		return *names
	}
	return nil
}

// reserved is a function's reserved concurrency.
func (c *Control) reserved(account, name string) (int, bool) {
	f, ok := c.quorum.Registry().Function(account, name)
	if !ok || f.Reserved == nil {
		return 0, false
	}
	return *f.Reserved, true
}

// longest is the longest timeout of a function's versions.
func (c *Control) longest(account, name string) time.Duration {
	f, ok := c.quorum.Registry().Function(account, name)
	if !ok {
		return 0
	}
	most := f.Latest.Config.Timeout
	for _, v := range f.Versions {
		most = max(most, v.Config.Timeout)
	}
	return time.Duration(most) * time.Second
}

// leases are slots as the invoker takes them.
type leases struct{ node *slots.Node }

// Take implements invoke.Slots.
func (l leases) Take(account, function, key string, limit int, run time.Duration) (invoke.Slot, error) {
	slot, err := l.node.Take(account, function, key, limit, run)
	if err != nil {
		return nil, err
	}
	return slot, nil
}
