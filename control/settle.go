package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/quorum"
	"github.com/doze-run/doze/control/registry"
)

// settler ends what a create or an update begins: a version is Pending or InProgress until its
// code has been seen in the store, then it is Active or Successful. It proposes changes for the
// gateway so that it sees those that need it.
type settler struct {
	node    *quorum.Node
	objects *bus.Objects
	log     *slog.Logger
	due     chan *registry.Function
}

// settleAgain is how long after a failure a version is looked at again.
const settleAgain = time.Second

// settleQueue is how many functions may wait to be settled before a change waits too.
const settleQueue = 1024

func newSettler(node *quorum.Node, objects *bus.Objects, log *slog.Logger) *settler {
	return &settler{node: node, objects: objects, log: log, due: make(chan *registry.Function, settleQueue)}
}

// Propose implements gateway.Proposer.
func (s *settler) Propose(ctx context.Context, command registry.Command) (any, error) {
	answer, err := s.node.Propose(ctx, command)
	if err != nil {
		return answer, err
	}
	var account, name string
	switch c := command.(type) {
	case *registry.CreateFunction:
		account, name = c.Account, c.Name
	case registry.CreateFunction:
		account, name = c.Account, c.Name
	case *registry.UpdateCode:
		account, name = c.Account, c.Name
	case registry.UpdateCode:
		account, name = c.Account, c.Name
	case *registry.UpdateConfig:
		account, name = c.Account, c.Name
	case registry.UpdateConfig:
		account, name = c.Account, c.Name
	default:
		return answer, nil
	}
	if f, ok := s.node.Registry().Function(account, name); ok {
		select {
		case s.due <- f:
		case <-ctx.Done():
			// The change is made; the next leader's first look settles it, or the next change.
			s.log.Warn("settling is behind", "function", name)
		}
	}
	return answer, nil
}

// run settles what is due while this node leads, beginning with what an earlier leader left.
func (s *settler) run(ctx context.Context) {
	again := time.NewTimer(0) // the first look
	defer again.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			for _, f := range s.node.Registry().Unsettled() {
				if err = s.settle(ctx, f); err != nil {
					break
				}
			}
		case f := <-s.due:
			err = s.settle(ctx, f)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("settle functions", "err", err)
			again.Reset(settleAgain)
		}
	}
}

func (s *settler) settle(ctx context.Context, f *registry.Function) error {
	for _, v := range append([]*registry.Version{f.Latest}, f.Versions...) {
		if !v.Unsettled() {
			continue
		}
		command := registry.Settle{
			Account: f.Account, Name: f.Name, Version: v.Version, Incarnation: v.Incarnation, RevisionID: uuid.NewString(),
		}
		if v.Code.SHA256 != "" {
			switch code, _, err := s.objects.Get(ctx, v.Code.SHA256); {
			case err == nil:
				_ = code.Close()
			case errors.Is(err, bus.ErrObjectNotFound):
				command.Failed, command.Reason, command.ReasonCode = true, "The code package is not in the store. Upload it again.", "InternalError"
			default:
				return fmt.Errorf("look up code: %w", err)
			}
		}
		if _, err := s.node.Propose(ctx, command); err != nil && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
	}
	return nil
}
