package control

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/doze-run/doze/control/delivery"
	"github.com/doze-run/doze/control/quorum"
	"github.com/doze-run/doze/control/registry"
)

// resolver finds what an event's function means now; it implements delivery.Resolver.
type resolver struct {
	node   *quorum.Node
	region string
}

// Resolve answers delivery.ErrGone only after the quorum has confirmed it.
func (r *resolver) Resolve(ctx context.Context, account, function, qualifier string) (delivery.Target, error) {
	draw := rand.Float64()
	f, v, ok := r.node.Registry().Route(account, function, qualifier, draw)
	if !ok {
		if err := r.node.Read(ctx); err != nil {
			return delivery.Target{}, fmt.Errorf("resolve %s: %w", function, err)
		}
		if f, v, ok = r.node.Registry().Route(account, function, qualifier, draw); !ok {
			return delivery.Target{}, delivery.ErrGone
		}
	}
	return delivery.Target{
		Function: f, Version: v, InvokedARN: registry.ARN(r.region, account, function, qualifier), Policy: delivery.PolicyOf(f, v, qualifier),
	}, nil
}
