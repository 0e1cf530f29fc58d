package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/invoke"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Publisher stores events durably; *bus.Events does.
type Publisher interface {
	// PublishEvent returns when the event is stored. It may have to give it a new id.
	PublishEvent(ctx context.Context, event *dozev1.Event) error
}

// Acceptor takes asynchronous invocations into the event store. Its methods may be called from many
// goroutines.
type Acceptor struct{ publisher Publisher }

// NewAcceptor returns an Acceptor.
func NewAcceptor(publisher Publisher) *Acceptor { return &Acceptor{publisher} }

// Accept stores an event and returns when it is stored: only then may the caller be told 202. The
// id that counts is in event.RequestID on return.
//
// invoke.ErrEventsFull, bus.ErrEventTooLarge; after any other error the event may be stored, and run.
func (a *Acceptor) Accept(ctx context.Context, event *invoke.Event) error {
	id := event.RequestID
	stored := &dozev1.Event{
		Id: id[:], Account: event.Function.Account, Function: event.Function.Name, Qualifier: event.Qualifier,
		AcceptedAtMs: time.Now().UnixMilli(), Payload: event.Payload, ClientContext: event.ClientContext,
		TraceId: event.TraceID,
	}
	err := a.publisher.PublishEvent(ctx, stored)
	if errors.Is(err, bus.ErrEventsFull) {
		return invoke.ErrEventsFull
	}
	if err != nil {
		return fmt.Errorf("accept event: %w", err)
	}
	if copy(event.RequestID[:], stored.Id) != len(event.RequestID) {
		return fmt.Errorf("accept event: stored under an id of %d bytes", len(stored.Id))
	}
	return nil
}
