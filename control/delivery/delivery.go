// Package delivery brings asynchronous invocations to their end: it accepts them into the event
// store, and its pollers take them out again and run them through the call path until each has
// ended in exactly one recorded way.
//
// It knows events, attempts and waits as AWS Lambda's asynchronous invocation has them. It must not
// know HTTP, how a call finds an instance, or how the store keeps an event.
package delivery

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Source is the store of accepted events, as a poller sees it.
type Source interface {
	// Consume hands stored events to handler until ctx ends, then waits until all it handed out are
	// settled. The handler is called by several goroutines and does not block.
	Consume(ctx context.Context, handler func(Delivery)) error
	// RetryAt stores an event so that it comes again at the given time. Storing the same event with
	// the same Attempt and Throttled twice stores it once.
	RetryAt(ctx context.Context, event *dozev1.Event, at time.Time) error
}

// Delivery is one event in a poller's hands. Exactly one of Ack and Nak counts, the first.
type Delivery struct {
	Event *dozev1.Event
	// Deliveries counts how often the store has handed this out, this time included.
	Deliveries uint64
	Settler
}

// Settler ends a delivery.
type Settler interface {
	// Ack settles the event for good.
	Ack() error
	// Nak gives it back unchanged; it is handed out again after the delay.
	Nak(delay time.Duration) error
}

// Invoker runs one call; package invoke implements it.
type Invoker interface {
	Invoke(ctx context.Context, call *invoke.Call) (*invoke.Answer, error)
}

// ErrGone says that the function, or what the qualifier named, does not exist.
var ErrGone = errors.New("function or qualifier does not exist")

// Target is what an event's function and qualifier mean at the moment.
type Target struct {
	Function *registry.Function
	Version  *registry.Version
	// InvokedARN is the function's ARN, with the qualifier if the caller gave one.
	InvokedARN string
	Policy     Policy
}

// Resolver finds the target of an event.
type Resolver interface {
	// Resolve answers ErrGone only after the quorum has confirmed it: a node that lags must not drop
	// the events of a function that is new. Any other error is taken for a passing one.
	Resolve(ctx context.Context, account, function, qualifier string) (Target, error)
}

// Config is what a Poller is made of.
type Config struct {
	Source   Source
	Invoker  Invoker
	Resolver Resolver
	// Sink is told of every event's end. Nil: a LogSink.
	Sink   Sink
	Logger *slog.Logger
	// RetryWaits are the waits before the second, third, ... attempt; the last one repeats. Empty:
	// 1 and 2 minutes, as on AWS.
	RetryWaits []time.Duration
	// MaxHeld and MaxHeldBytes bound the events in memory, 0: DefaultMaxHeld and -Bytes.
	MaxHeld      int
	MaxHeldBytes int64
	// MaxRunning bounds one function's attempts at once, 0: DefaultMaxRunning.
	MaxRunning int
	// Jitter answers a number in [0, 1), for back-off; nil: math/rand/v2. It is called by many
	// goroutines.
	Jitter func() float64
}

// Defaults of a Config.
const (
	DefaultMaxHeld      = 512
	DefaultMaxHeldBytes = 64 << 20
	DefaultMaxRunning   = 64
)

// busSource is the bus's event store as a Source.
type busSource struct {
	events *bus.Events
	limits bus.EventLimits
}

// FromBus makes a Source of the bus's event store for a poller that holds maxHeld events of
// maxHeldBytes. It may draw somewhat more: what no lane has room for is only in passing.
func FromBus(events *bus.Events, maxHeld int, maxHeldBytes int64) Source {
	return &busSource{events, bus.EventLimits{Events: maxHeld + 32, Bytes: maxHeldBytes + 8*bus.MaxEventBytes}}
}

func (s *busSource) Consume(ctx context.Context, handler func(Delivery)) error {
	return s.events.ConsumeEvents(ctx, s.limits, func(d *bus.EventDelivery) {
		handler(Delivery{Event: d.Event, Deliveries: d.Deliveries, Settler: d})
	})
}

func (s *busSource) RetryAt(ctx context.Context, event *dozev1.Event, at time.Time) error {
	return s.events.RetryAt(ctx, event, at)
}
