package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// pullLife is how long one pull request waits on the server before it is renewed.
	pullLife = 30 * time.Second
	// pullRetry is the wait after a failed pull, doubled up to pullRetryMax.
	pullRetry    = 50 * time.Millisecond
	pullRetryMax = 2 * time.Second
	// pullBytesMin lets the largest event through whatever else is in flight: its message with
	// subject and headers.
	pullBytesMin = MaxEventBytes + 64<<10
)

// EventLimits bounds what a poller holds of each stream that it draws from (two a shard). Of each it
// can hold one event at least.
type EventLimits struct {
	Events int
	Bytes  int64
}

// EventDelivery is one event in a poller's hands. While it is there the store is told, so that it
// is not handed to anybody else; exactly one of Ack and Nak ends that.
type EventDelivery struct {
	Event *dozev1.Event
	// Deliveries counts how often the store handed this message out, this time included.
	Deliveries uint64

	msg     jetstream.Msg
	gate    *eventGate
	size    int64
	settled atomic.Bool
}

// Ack settles the event for good. An error means that the store was not told and will hand the
// event out again.
func (d *EventDelivery) Ack() error {
	if d.settled.Swap(true) {
		return nil
	}
	err := d.msg.Ack()
	d.gate.release(d)
	if err != nil {
		return fmt.Errorf("bus: settle event: %w", err)
	}
	return nil
}

// Nak gives the event back; it is handed out again after the delay, to any poller.
func (d *EventDelivery) Nak(delay time.Duration) error {
	if d.settled.Swap(true) {
		return nil
	}
	err := d.msg.NakWithDelay(max(delay, 0))
	d.gate.release(d)
	if err != nil {
		return fmt.Errorf("bus: give event back: %w", err)
	}
	return nil
}

// ConsumeEvents hands stored events to handler, fresh ones and those whose time has come, until ctx
// ends; then it waits until every delivery is settled. The handler is called by several goroutines
// and must not block: what it delays is the other events of the same stream. A stream that cannot
// be reached is tried again and again.
func (e *Events) ConsumeEvents(ctx context.Context, limits EventLimits, handler func(*EventDelivery)) error {
	streams := make([]string, 0, 2*e.shards)
	for shard := range e.shards {
		streams = append(streams, eventStream(shard), timerStream(shard))
	}
	gates := make([]*eventGate, len(streams))
	var pulls, renewal sync.WaitGroup
	for i, stream := range streams {
		gates[i] = newEventGate(max(limits.Events, 1), max(limits.Bytes, pullBytesMin))
		pulls.Go(func() { e.pull(ctx, stream, gates[i], handler) })
	}
	settled := make(chan struct{})
	renewal.Go(func() {
		tick := time.NewTicker(eventAckWait / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				for _, gate := range gates {
					gate.renew()
				}
			case <-settled:
				return
			}
		}
	})
	pulls.Wait()
	for _, gate := range gates {
		gate.drained()
	}
	close(settled)
	renewal.Wait()
	return ctx.Err()
}

// pull draws from one stream until ctx ends.
func (e *Events) pull(ctx context.Context, stream string, gate *eventGate, handler func(*EventDelivery)) {
	wait := pullRetry
	for ctx.Err() == nil {
		err := e.pullOnce(ctx, stream, gate, handler, func() { wait = pullRetry })
		if err == nil || ctx.Err() != nil {
			continue
		}
		e.c.log.Warn("event stream not reached", "stream", stream, "err", err, "again_in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, pullRetryMax)
	}
}

// pullOnce binds to the stream's consumer and draws from it until something fails.
func (e *Events) pullOnce(ctx context.Context, stream string, gate *eventGate, handler func(*EventDelivery), alive func()) error {
	consumer, err := e.c.js.Consumer(ctx, stream, pollerConsumer)
	if err != nil {
		return err
	}
	alive()
	for {
		slots, bytes, err := gate.room(ctx)
		if err != nil {
			return nil
		}
		pullCtx, cancel := context.WithTimeout(ctx, pullLife)
		batch, err := consumer.Fetch(slots, jetstream.FetchContext(pullCtx), jetstream.FetchMaxBytes(int(bytes)))
		if err != nil {
			cancel()
			return err
		}
		for msg := range batch.Messages() {
			e.deliver(ctx, stream, msg, gate, handler)
		}
		err = batch.Error()
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			return err
		}
	}
}

// deliver hands one message on, or gives it back when polling has ended meanwhile.
func (e *Events) deliver(ctx context.Context, stream string, msg jetstream.Msg, gate *eventGate, handler func(*EventDelivery)) {
	d := &EventDelivery{Event: &dozev1.Event{}, msg: msg, gate: gate, size: int64(len(msg.Data()))}
	gate.take(d)
	meta, err := msg.Metadata()
	if err == nil {
		d.Deliveries = meta.NumDelivered
		err = proto.Unmarshal(msg.Data(), d.Event)
	}
	if err != nil {
		// Nothing of Doze writes such a message, and no attempt will make it readable.
		e.c.log.Error("unreadable event dropped", "stream", stream, "subject", msg.Subject(), "bytes", len(msg.Data()), "err", err)
		d.settled.Store(true)
		if err := msg.Term(); err != nil {
			e.c.log.Warn("drop unreadable event", "err", err)
		}
		gate.release(d)
		return
	}
	if ctx.Err() != nil {
		if err := d.Nak(0); err != nil {
			e.c.log.Warn("give event back", "err", err)
		}
		return
	}
	handler(d)
}

// eventGate counts what one pull loop has in flight.
type eventGate struct {
	slots int
	bytes int64

	mu     sync.Mutex
	held   map[*EventDelivery]struct{}
	size   int64
	change chan struct{} // closed and replaced on release, when somebody waits
}

func newEventGate(slots int, bytes int64) *eventGate {
	return &eventGate{slots: slots, bytes: bytes, held: make(map[*EventDelivery]struct{})}
}

func (g *eventGate) take(d *EventDelivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[d] = struct{}{}
	g.size += d.size
}

func (g *eventGate) release(d *EventDelivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.held, d)
	g.size -= d.size
	if g.change != nil {
		close(g.change)
		g.change = nil
	}
}

// changed returns a channel that closes on the next release. g.mu must be held.
func (g *eventGate) changed() <-chan struct{} {
	if g.change == nil {
		g.change = make(chan struct{})
	}
	return g.change
}

// room waits until something fits and returns how much.
func (g *eventGate) room(ctx context.Context) (slots int, bytes int64, err error) {
	for {
		g.mu.Lock()
		slots, bytes = g.slots-len(g.held), g.bytes-g.size
		if len(g.held) == 0 {
			bytes = max(bytes, pullBytesMin)
		}
		if slots > 0 && bytes >= pullBytesMin {
			g.mu.Unlock()
			return slots, bytes, ctx.Err()
		}
		change := g.changed()
		g.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
}

// renew tells the store of every delivery in flight that it is being worked on.
func (g *eventGate) renew() {
	g.mu.Lock()
	held := make([]*EventDelivery, 0, len(g.held))
	for d := range g.held {
		held = append(held, d)
	}
	g.mu.Unlock()
	for _, d := range held {
		if !d.settled.Load() {
			_ = d.msg.InProgress() // a store that cannot be told hands it out again
		}
	}
}

// drained waits until nothing is in flight.
func (g *eventGate) drained() {
	for {
		g.mu.Lock()
		if len(g.held) == 0 {
			g.mu.Unlock()
			return
		}
		change := g.changed()
		g.mu.Unlock()
		<-change
	}
}
