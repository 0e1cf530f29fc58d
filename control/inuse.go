package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// lookInUse is how often it is looked whether functions have other runtimes now.
	lookInUse = 200 * time.Millisecond
	// repeatInUse is how often workers are told although nothing changed: one may have come late.
	repeatInUse = 2 * time.Second
	// maxInUse bounds how many runtimes, with their sizes of memory, are told of.
	maxInUse = 128
)

// tellInUse tells workers which runtimes functions have, so that they can have some of each ready, until ctx
// ends.
func (c *Control) tellInUse(ctx context.Context) {
	ticker := time.NewTicker(lookInUse)
	defer ticker.Stop()
	var (
		seen *registry.Snapshot
		told time.Time
		uses dozev1.RuntimesInUse
	)
	for {
		now, state := time.Now(), c.quorum.Registry().Snapshot()
		changed := !state.Same(seen)
		if changed {
			uses.Uses = inUse(state, c.config.Egress)
		}
		if changed || now.Sub(told) >= repeatInUse {
			if err := c.mesh.TellRuntimesInUse(&uses); err != nil {
				c.config.Logger.Warn("tell workers which runtimes are in use", "err", err)
			} else {
				seen, told = state, now
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// inUse are the uses, each once. egress is the platform's default.
func inUse(state *registry.Snapshot, egress bool) []*dozev1.RuntimeUse {
	var uses []*dozev1.RuntimeUse
	for use := range state.Uses(maxInUse) {
		like := registry.Config{Network: use.Network}
		uses = append(uses, &dozev1.RuntimeUse{Runtime: use.Runtime, MemoryMb: uint32(use.MemoryMB), Egress: like.Egress(egress)})
	}
	slices.SortFunc(uses, func(a, b *dozev1.RuntimeUse) int {
		if c := cmp.Or(cmp.Compare(a.Runtime, b.Runtime), cmp.Compare(a.MemoryMb, b.MemoryMb)); c != 0 || a.Egress == b.Egress {
			return c
		}
		if b.Egress {
			return -1
		}
		return 1
	})
	uses = slices.CompactFunc(uses, func(a, b *dozev1.RuntimeUse) bool {
		return a.Runtime == b.Runtime && a.MemoryMb == b.MemoryMb && a.Egress == b.Egress
	})
	return uses
}
