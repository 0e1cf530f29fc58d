package bus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Errors of the event store.
var (
	// ErrEventsFull: every event stream is at its bound; the event was not accepted.
	ErrEventsFull = errors.New("bus: the event streams are full")
	// ErrTimersFull: the timer stream is at its bound; the retry was not stored.
	ErrTimersFull = errors.New("bus: the timer streams are full")
	// ErrEventTooLarge: the event is over MaxEventBytes.
	ErrEventTooLarge = errors.New("bus: event too large")
)

const (
	// MaxEventBytes bounds an event as it is stored: AWS's 1 MB of payload, and its envelope.
	MaxEventBytes = 1<<20 + 64<<10
	// eventTry is how long one shard may take to acknowledge before the event goes to another.
	eventTry = 2 * time.Second
	// timerCheck is how often the size of a timer stream is looked up.
	timerCheck = time.Second
	// timerBoundKey is the metadata of a timer stream that holds its bound in bytes.
	timerBoundKey = "doze-bound-bytes"
	// MinRetryWait is the least time between storing a retry and its delivery: the server looks at
	// its schedules four times a second at most. Above that the wait is exact to the millisecond.
	MinRetryWait = 250 * time.Millisecond
)

// Events is the store of accepted asynchronous invocations: a few work-queue streams (shards) and,
// beside each, a timer stream for those that wait for their next attempt. Its methods may be called
// from many goroutines.
type Events struct {
	c      *Conn
	shards int
	next   atomic.Uint32 // shard of the next publish
	timers []timerGauge
}

// Events returns the event store of EventShards shards, which EnsureStreams has made.
func (c *Conn) Events(shards int) *Events {
	e := &Events{c: c, shards: shards, timers: make([]timerGauge, shards)}
	e.next.Store(mathrand.Uint32()) // #nosec: spreads publishers, nothing more
	return e
}

// PublishEvent stores an event and returns when it is stored: on every replica's log, and on disk
// within the sync interval. A shard that does not answer within two seconds is given up for
// another, under a new id: then event.Id is replaced, and the one that is there on return is the
// one that counts. Without a deadline in ctx it gives up after every shard was tried twice; in a cluster it
// goes on for leaderPatience, because a node that is killed may have led all of them.
//
// ErrEventsFull, ErrEventTooLarge; any other error leaves open whether the event is stored.
func (e *Events) PublishEvent(ctx context.Context, event *dozev1.Event) error {
	first := int(e.next.Add(1) % uint32(e.shards))
	var failure error
	full := 0
	for try, begun := 0, time.Now(); ; try++ {
		if try >= 2*e.shards {
			if !e.c.clustered || !mayPass(failure) || time.Since(begun) > leaderPatience {
				return fmt.Errorf("bus: publish event: %w", failure)
			}
			select {
			case <-time.After(leaderPause):
			case <-ctx.Done():
			}
		}
		shard := (first + try) % e.shards
		if try > 0 && e.shards > 1 && !isFull(failure) {
			// The silent shard may have stored it: there it runs under an id that nobody was told.
			event.Id = newEventID()
		}
		data, err := proto.Marshal(event)
		if err != nil {
			return fmt.Errorf("bus: encode event: %w", err)
		}
		if len(data) > MaxEventBytes {
			return fmt.Errorf("%w: %d bytes", ErrEventTooLarge, len(data))
		}
		tryCtx, cancel := context.WithTimeout(ctx, eventTry)
		_, failure = e.c.js.Publish(tryCtx, eventSubject(shard, event.Account, event.Function), data,
			jetstream.WithMsgID(hex.EncodeToString(event.Id)))
		cancel()
		switch {
		case failure == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("bus: publish event: %w", failure)
		case isFull(failure):
			if full++; full == e.shards {
				return ErrEventsFull
			}
		}
	}
}

// RetryAt stores an event in a timer stream, from where it comes back to a poller at the given
// time (MinRetryWait from now at the earliest). The id, Attempt and Throttled of the event name
// this retry: storing it again replaces it, or does nothing. It returns when it is stored; the
// original is to be settled after that, not before.
//
// ErrTimersFull, ErrEventTooLarge; any other error leaves open whether it is stored.
func (e *Events) RetryAt(ctx context.Context, event *dozev1.Event, at time.Time) error {
	if len(event.Id) == 0 {
		return errors.New("bus: event without an id")
	}
	data, err := proto.Marshal(event)
	if err != nil {
		return fmt.Errorf("bus: encode event: %w", err)
	}
	if len(data) > MaxEventBytes {
		return fmt.Errorf("%w: %d bytes", ErrEventTooLarge, len(data))
	}
	// The shard follows from the id, so that the same retry meets its double.
	shard := int(event.Id[len(event.Id)-1]) % e.shards
	if err := e.c.insist(ctx, func(ctx context.Context) error {
		return e.timers[shard].admit(ctx, e.c.js, timerStream(shard), int64(len(data)))
	}); err != nil {
		return err
	}
	id := hex.EncodeToString(event.Id) + "-" + strconv.FormatUint(uint64(event.Attempt), 10) + "-" + strconv.FormatUint(uint64(event.Throttled), 10)
	msg := nats.NewMsg(subjectTimer + "." + strconv.Itoa(shard) + ".at." + id)
	msg.Data = data
	// The server parses RFC 3339 with a fraction, which the client's own option would round away.
	msg.Header.Set("Nats-Schedule", "@at "+at.UTC().Format(time.RFC3339Nano))
	msg.Header.Set("Nats-Schedule-Target", dueSubject(shard, event.Account, event.Function))
	msg.Header.Set("Nats-Rollup", "sub")
	msg.Header.Set("Nats-Msg-Id", id)
	// It may be stored at another shard no more than once: its double would not be met there. So this one is
	// insisted on.
	if err := e.c.insist(ctx, func(ctx context.Context) error {
		_, err := e.c.js.PublishMsg(ctx, msg)
		return err
	}); err != nil {
		if isFull(err) {
			return ErrTimersFull
		}
		return fmt.Errorf("bus: store retry: %w", err)
	}
	return nil
}

// timerGauge keeps one timer stream within its bound. The stream cannot refuse by itself; what
// several publishers add within timerCheck is the most it can be over.
type timerGauge struct {
	mu      sync.Mutex
	checked time.Time
	bytes   int64 // as last seen, and what was added since
	bound   int64
}

func (g *timerGauge) admit(ctx context.Context, js jetstream.JetStream, name string, size int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); g.checked.IsZero() || now.Sub(g.checked) >= timerCheck {
		stream, err := js.Stream(ctx, name)
		switch {
		case err == nil:
			info := stream.CachedInfo()
			bound, err := strconv.ParseInt(info.Config.Metadata[timerBoundKey], 10, 64)
			if err != nil {
				return fmt.Errorf("bus: %s has no bound: %w", name, err)
			}
			g.bytes, g.bound = int64(info.State.Bytes), bound
		case g.checked.IsZero():
			return fmt.Errorf("bus: look up %s: %w", name, err)
		}
		// Without an answer it goes by what it knows: who waits for this one must not wait for another, too.
		g.checked = time.Now()
	}
	if g.bytes+size > g.bound {
		return ErrTimersFull
	}
	g.bytes += size
	return nil
}

// Waiting is how many events are stored and not yet settled: Ready ones (with those in pollers'
// hands), and Delayed ones whose time has not come.
type Waiting struct {
	Ready, Delayed uint64
	Bytes          uint64
}

// Waiting counts the stored events, for status and metrics.
func (e *Events) Waiting(ctx context.Context) (Waiting, error) {
	var w Waiting
	for shard := range e.shards {
		events, err := e.c.js.Stream(ctx, eventStream(shard))
		if err != nil {
			return Waiting{}, fmt.Errorf("bus: look up %s: %w", eventStream(shard), err)
		}
		timers, err := e.c.js.Stream(ctx, timerStream(shard))
		if err != nil {
			return Waiting{}, fmt.Errorf("bus: look up %s: %w", timerStream(shard), err)
		}
		due, err := e.c.js.Consumer(ctx, timerStream(shard), pollerConsumer)
		if err != nil {
			return Waiting{}, fmt.Errorf("bus: look up the pollers of %s: %w", timerStream(shard), err)
		}
		ready := due.CachedInfo().NumPending + uint64(due.CachedInfo().NumAckPending)
		in, at := events.CachedInfo().State, timers.CachedInfo().State
		w.Ready += in.Msgs + min(ready, at.Msgs)
		w.Delayed += at.Msgs - min(ready, at.Msgs)
		w.Bytes += in.Bytes + at.Bytes
	}
	return w, nil
}

// newEventID is a random UUID, version 4, as 16 bytes.
func newEventID() []byte {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails, as documented
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}
