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
	// known returns when other nodes know of a change, too.
	known func(ctx context.Context)
	log   *slog.Logger
	due   chan *registry.Function
}

// retirer tells workers which incarnations have been replaced or deleted; *bus.Mesh is one.
type retirer interface {
	Retire(request *dozev1.RetireRequest) error
}

const (
	// settleAgain is how long after a failure a version is looked at again.
	settleAgain = time.Second
	// lookAfterEvery is how often the leader looks for what a node has begun and not ended.
	lookAfterEvery = 5 * time.Second
)

// settleQueue is how many functions may wait to be settled before a change waits too.
const settleQueue = 1024

func newSettler(node *quorum.Node, objects *bus.Objects, workers retirer, known func(context.Context), log *slog.Logger) *settler {
	return &settler{node: node, objects: objects, workers: workers, known: known, log: log, due: make(chan *registry.Function, settleQueue)}
}

// Propose implements gateway.Proposer. What takes something away from callers has been taken away, when it
// returns, by way of every control node that can be reached.
func (s *settler) Propose(ctx context.Context, command registry.Command) (any, error) {
	answer, err := s.node.Propose(ctx, command)
	if err != nil {
		return answer, err
	}
	var account, name string
	switch c := command.(type) {
	case *registry.DeleteFunction:
		s.retire(c.Account, c.Name, c.Version, "")
		s.known(ctx)
		return answer, nil
	case registry.DeleteFunction:
		s.retire(c.Account, c.Name, c.Version, "")
		s.known(ctx)
		return answer, nil
	case registry.DeleteAccessKey, registry.PutConcurrency, registry.RemovePermission, registry.UpdateAlias, registry.DeleteAlias,
		*registry.DeleteAccessKey, *registry.PutConcurrency, *registry.RemovePermission, *registry.UpdateAlias, *registry.DeleteAlias:
		s.known(ctx)
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
			// The change is made; the leader's next look settles it, or the next change.
			s.log.Warn("settling is behind", "function", name)
		}
	}
	return answer, nil
}

// run settles what this node has proposed.
func (s *settler) run(ctx context.Context) {
	again := time.NewTimer(time.Hour)
	again.Stop()
	defer again.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			err = s.settleAll(ctx)
		case f := <-s.due:
			err = s.settle(ctx, f)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("settle functions", "err", err)
			again.Reset(settleAgain)
		}
	}
}

// lookAfter settles, while this node leads, what was left by a node that is gone, or by an earlier life.
func (s *settler) lookAfter(ctx context.Context) {
	look := time.NewTicker(lookAfterEvery)
	defer look.Stop()
	for {
		if err := s.settleAll(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("settle functions", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

func (s *settler) settleAll(ctx context.Context) error {
	for _, f := range s.node.Registry().Unsettled() {
		if err := s.settle(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

func (s *settler) settle(ctx context.Context, f *registry.Function) error {
	for _, v := range append([]*registry.Version{f.Latest}, f.Versions...) {
		if !v.Unsettled() {
			continue
		}
		command := registry.Settle{
			Account: f.Account, Name: f.Name, Version: v.Version, Incarnation: v.Incarnation, RevisionID: uuid.NewString(),
		}
		// A gateway that does not know of the change would go on calling what it replaces.
		s.known(ctx)
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
