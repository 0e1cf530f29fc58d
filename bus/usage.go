package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Errors of the usage stream.
var (
	// ErrUsageFull: the usage stream is at its bound; the journal keeps the records.
	ErrUsageFull = errors.New("bus: the usage stream is full")
	// ErrNoCollector: no control node collects usage at the moment.
	ErrNoCollector = errors.New("bus: nobody collects usage")
)

const (
	// MaxUsageBatchBytes bounds one batch as it is stored.
	MaxUsageBatchBytes = 1 << 20
	// usageTake and usageTakeBytes bound what ConsumeUsage hands over at once: one Raft entry.
	usageTake      = 64
	usageTakeBytes = 2 << 20
	// headerError carries the error text of a refused request.
	headerError = "Doze-Error"
)

// Usage carries usage records from the workers' journals to the ledger. Its methods may be called
// from many goroutines.
type Usage struct{ c *Conn }

// Usage returns the usage stream, which EnsureStreams has made.
func (c *Conn) Usage() *Usage { return &Usage{c} }

// PublishUsage stores a batch and returns when it is stored. The same batch may be published again:
// within half a minute the stream, and after that the ledger, counts it once.
//
// ErrUsageFull; any other error leaves open whether it is stored.
func (u *Usage) PublishUsage(ctx context.Context, batch *dozev1.UsageBatch) error {
	data, err := proto.Marshal(batch)
	if err != nil {
		return fmt.Errorf("bus: encode usage: %w", err)
	}
	if len(data) > MaxUsageBatchBytes {
		return fmt.Errorf("bus: usage batch of %d bytes is over %d", len(data), MaxUsageBatchBytes)
	}
	// The id names the whole run, not only where it begins: after a restart the journal may be cut
	// into other batches, and one that begins like an earlier one must not be taken for it.
	id := fmt.Sprintf("%s-%d-%d-%t", batch.Epoch, batch.FirstSequence, len(batch.Function), batch.Last)
	if _, err := u.c.js.Publish(ctx, subjectUsage+"."+u.c.name+"."+token(batch.Epoch), data, jetstream.WithMsgID(id)); err != nil {
		if isFull(err) {
			return ErrUsageFull
		}
		return fmt.Errorf("bus: publish usage: %w", err)
	}
	return nil
}

// UsageDelivery is one stored batch in the collector's hands.
type UsageDelivery struct {
	Batch *dozev1.UsageBatch
	// Worker is who shipped it.
	Worker string

	msg     jetstream.Msg
	settled atomic.Bool
}

// Ack removes the batch from the stream: the ledger has it.
func (d *UsageDelivery) Ack() error {
	if d.settled.Swap(true) {
		return nil
	}
	if err := d.msg.Ack(); err != nil {
		return fmt.Errorf("bus: settle usage: %w", err)
	}
	return nil
}

// Nak leaves the batch in the stream; it comes again after the delay.
func (d *UsageDelivery) Nak(delay time.Duration) error {
	if d.settled.Swap(true) {
		return nil
	}
	if err := d.msg.NakWithDelay(max(delay, 0)); err != nil {
		return fmt.Errorf("bus: give usage back: %w", err)
	}
	return nil
}

// ConsumeUsage hands stored batches to handler, all that wait at once within a bound, in the
// order in which they were stored (given-back ones first), until ctx ends. What the handler has not
// settled when it returns is given back. One node calls it at a time: the leader. Two at once
// do no harm but work.
func (u *Usage) ConsumeUsage(ctx context.Context, handler func(context.Context, []*UsageDelivery)) error {
	wait := pullRetry
	for ctx.Err() == nil {
		err := u.consume(ctx, handler, func() { wait = pullRetry })
		if err == nil || ctx.Err() != nil {
			continue
		}
		u.c.log.Warn("usage stream not reached", "err", err, "again_in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, pullRetryMax)
	}
	return ctx.Err()
}

func (u *Usage) consume(ctx context.Context, handler func(context.Context, []*UsageDelivery), alive func()) error {
	consumer, err := u.c.js.Consumer(ctx, usageStream, ledgerConsumer)
	if err != nil {
		return err
	}
	alive()
	for ctx.Err() == nil {
		// Wait for one, then take what else is there already: a pull for many would not return
		// before it is full.
		pullCtx, cancel := context.WithTimeout(ctx, pullLife)
		first, err := consumer.Fetch(1, jetstream.FetchContext(pullCtx))
		if err != nil {
			cancel()
			return err
		}
		batches, size := u.take(nil, 0, first)
		err = first.Error()
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			return err
		}
		for len(batches) > 0 && len(batches) < usageTake && size < usageTakeBytes {
			// In small steps, because a pull that does not wait has no bound in bytes.
			more, err := consumer.FetchNoWait(min(8, usageTake-len(batches)))
			if err != nil {
				break // the next pull meets the same error, with nothing in hand
			}
			before := len(batches)
			batches, size = u.take(batches, size, more)
			if len(batches) == before {
				break
			}
		}
		if len(batches) == 0 {
			continue
		}
		handler(ctx, batches)
		for _, d := range batches {
			if err := d.Nak(pullRetry); err != nil {
				u.c.log.Warn("give usage back", "err", err)
			}
		}
	}
	return nil
}

// take reads a pulled batch of messages to its end.
func (u *Usage) take(taken []*UsageDelivery, size int, pulled jetstream.MessageBatch) ([]*UsageDelivery, int) {
	for msg := range pulled.Messages() {
		batch := &dozev1.UsageBatch{}
		worker, epoch, _ := strings.Cut(strings.TrimPrefix(msg.Subject(), subjectUsage+"."), ".")
		err := proto.Unmarshal(msg.Data(), batch)
		if err == nil && token(batch.Epoch) != epoch {
			err = errors.New("it is of another epoch than its subject says")
		}
		if err != nil {
			// The worker still has it in its journal, and ships it again when the mark does not come.
			u.c.log.Error("unreadable usage batch dropped", "subject", msg.Subject(), "bytes", len(msg.Data()), "err", err)
			if err := msg.Term(); err != nil {
				u.c.log.Warn("drop unreadable usage batch", "err", err)
			}
			continue
		}
		taken = append(taken, &UsageDelivery{Batch: batch, Worker: worker, msg: msg})
		size += len(msg.Data())
	}
	return taken, size
}

// AnnounceApplied tells the worker that shipped an epoch how far the ledger has come. It is not stored: a
// worker that misses it hears the next one, or asks.
func (u *Usage) AnnounceApplied(worker string, applied *dozev1.UsageApplied) error {
	data, err := proto.Marshal(applied)
	if err != nil {
		return fmt.Errorf("bus: encode mark: %w", err)
	}
	if err := u.c.nc.Publish(subjectApplied+"."+token(worker)+"."+token(applied.Epoch), data); err != nil {
		return fmt.Errorf("bus: announce mark: %w", err)
	}
	return nil
}

// OnApplied calls f, one call at a time, with every mark that is announced to this worker, for whichever
// epoch: it may still have journals of its earlier ones. No call begins after stop has returned; f
// must neither block nor call stop.
func (u *Usage) OnApplied(f func(*dozev1.UsageApplied)) (stop func(), err error) {
	var mu sync.Mutex
	stopped := false
	sub, err := u.c.nc.Subscribe(subjectApplied+"."+u.c.name+".*", func(msg *nats.Msg) {
		applied := &dozev1.UsageApplied{}
		if err := proto.Unmarshal(msg.Data, applied); err != nil {
			u.c.log.Warn("unreadable mark", "err", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			f(applied)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("bus: hear marks: %w", err)
	}
	return func() {
		_ = sub.Unsubscribe() // fails only when the connection is closed, which ends it too
		mu.Lock()
		defer mu.Unlock()
		stopped = true
	}, nil
}

// AppliedMark asks the collector for the mark of an epoch, 0 for one the ledger does not know.
// ErrNoCollector when there is none at the moment: ask again later.
func (u *Usage) AppliedMark(ctx context.Context, epoch string) (uint64, error) {
	data, err := proto.Marshal(&dozev1.UsageApplied{Epoch: epoch})
	if err != nil {
		return 0, fmt.Errorf("bus: encode mark: %w", err)
	}
	msg, err := u.c.nc.RequestWithContext(ctx, subjectMark+"."+u.c.name, data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return 0, ErrNoCollector
	case err != nil:
		return 0, fmt.Errorf("bus: ask for mark: %w", err)
	}
	if text := msg.Header.Get(headerError); text != "" {
		return 0, fmt.Errorf("bus: ask for mark: %s", text)
	}
	applied := &dozev1.UsageApplied{}
	if err := proto.Unmarshal(msg.Data, applied); err != nil {
		return 0, fmt.Errorf("bus: decode mark: %w", err)
	}
	return applied.Sequence, nil
}

// AnswerApplied answers AppliedMark with mark, one call at a time, until stop. The collector does.
func (u *Usage) AnswerApplied(mark func(epoch string) (uint64, error)) (stop func() error, err error) {
	sub, err := u.c.nc.Subscribe(subjectMark+".*", func(msg *nats.Msg) {
		reply := nats.NewMsg(msg.Reply)
		applied := &dozev1.UsageApplied{}
		err := proto.Unmarshal(msg.Data, applied)
		if err == nil {
			applied.Sequence, err = mark(applied.Epoch)
		}
		if err == nil {
			reply.Data, err = proto.Marshal(applied)
		}
		if err != nil {
			reply.Header.Set(headerError, err.Error())
		}
		if err := msg.RespondMsg(reply); err != nil {
			u.c.log.Warn("answer mark", "err", err)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("bus: answer marks: %w", err)
	}
	return sub.Unsubscribe, nil
}
