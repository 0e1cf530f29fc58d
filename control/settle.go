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
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// settler ends what a create, an update or a deletion begins: a version is Pending or InProgress
// until its code has been seen in the store, then it is Active or Successful, and instances of what
// it replaced, or of what was deleted, are let go. It proposes changes for the gateway so that it
// sees those that need it.
type settler struct {
	node    *quorum.Node
	objects *bus.Objects
	workers retirer
	log     *slog.Logger
	due     chan *registry.Function
}

// retirer tells workers which incarnations have been replaced or deleted; *bus.Conn is one.
type retirer interface {
	Retire(request *dozev1.RetireRequest) error
}

// settleAgain is how long after a failure a version is looked at again.
const settleAgain = time.Second

// settleQueue is how many functions may wait to be settled before a change waits too.
const settleQueue = 1024

func newSettler(node *quorum.Node, objects *bus.Objects, workers retirer, log *slog.Logger) *settler {
	return &settler{node: node, objects: objects, workers: workers, log: log, due: make(chan *registry.Function, settleQueue)}
}

// Propose implements gateway.Proposer.
func (s *settler) Propose(ctx context.Context, command registry.Command) (any, error) {
	answer, err := s.node.Propose(ctx, command)
	if err != nil {
		return answer, err
	}
	var account, name string
	switch c := command.(type) {
	case *registry.DeleteFunction:
		s.retire(c.Account, c.Name, c.Version, "")
		return answer, nil
	case registry.DeleteFunction:
		s.retire(c.Account, c.Name, c.Version, "")
		return answer, nil
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
		switch _, err := s.node.Propose(ctx, command); {
		case err == nil:
			s.retire(f.Account, f.Name, v.Version, v.Incarnation)
		case !errors.Is(err, registry.ErrNotFound):
			return err
		}
	}
	return nil
}

// retire lets instances of what is not called any more end.
func (s *settler) retire(account, function, version, except string) {
	err := s.workers.Retire(&dozev1.RetireRequest{Account: account, Function: function, Version: version, Revision: except})
	if err != nil {
		s.log.Warn("tell workers what has been replaced", "function", function, "err", err)
	}
}
