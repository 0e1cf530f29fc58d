// Package collect brings usage from the usage stream into the ledger: it runs on the leader, takes
// the batches that the workers shipped, has the quorum count them, tells the workers how far the
// ledger has come, and only then settles the batches.
//
// It knows batches and what the ledger answers to them. It must not know prices, or how the stream
// or the quorum keep what they are given.
package collect

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/ledger"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// gapWait is for how long a batch is given back whose forerunner the ledger does not have. That
	// one is given out again within the stream's AckWait, or shipped again by its worker.
	gapWait = 500 * time.Millisecond
	// proposeWait is the pause after the quorum could not be asked, doubled up to proposeWaitMax.
	proposeWait    = 100 * time.Millisecond
	proposeWaitMax = 2 * time.Second
	// proposeLimit bounds one proposal; it stays below the stream's AckWait.
	proposeLimit = 4 * time.Second
)

// Ledger counts usage in the replicated ledger; package quorum implements it.
type Ledger interface {
	// ProposeUsage counts the batches, as one change, and answers for each, in order, what came of it.
	// With an error it may or may not have counted them; counting them again does no harm.
	ProposeUsage(ctx context.Context, batches []*dozev1.UsageBatch) ([]ledger.Applied, error)
}

// Stream is the usage stream; *bus.Usage is one.
type Stream interface {
	ConsumeUsage(ctx context.Context, handler func(context.Context, []*bus.UsageDelivery)) error
	AnnounceApplied(worker string, applied *dozev1.UsageApplied) error
	AnswerApplied(mark func(epoch string) (uint64, error)) (stop func() error, err error)
}

// Collector moves usage from the stream into the ledger.
type Collector struct {
	stream Stream
	ledger Ledger
	mark   func(epoch string) (uint64, error)
	log    *slog.Logger

	batches, gaps, dropped atomic.Uint64
}

// New returns a Collector. mark answers a worker's question for the highest applied sequence of an
// epoch (0 for one that is not known); it must answer for everything that was acknowledged as
// applied, as the leader's own copy of the ledger does.
func New(stream Stream, ledger Ledger, mark func(epoch string) (uint64, error), log *slog.Logger) *Collector {
	return &Collector{stream: stream, ledger: ledger, mark: mark, log: log}
}

// Stats counts what the collector has done since it was made.
type Stats struct {
	// Batches are in the ledger by now; Gaps came before their forerunner and were given back;
	// Dropped can never be counted.
	Batches, Gaps, Dropped uint64
}

// Stats counts what has been done so far.
func (c *Collector) Stats() Stats {
	return Stats{c.batches.Load(), c.gaps.Load(), c.dropped.Load()}
}

// Run collects until ctx ends: for as long as this node leads.
func (c *Collector) Run(ctx context.Context) error {
	stop, err := c.stream.AnswerApplied(c.mark)
	if err != nil {
		return err
	}
	wait := proposeWait
	err = c.stream.ConsumeUsage(ctx, func(ctx context.Context, deliveries []*bus.UsageDelivery) {
		if c.collect(ctx, deliveries) {
			wait = proposeWait
			return
		}
		// What is not settled goes back when this returns: not before the quorum may be there again.
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, proposeWaitMax)
	})
	if stopErr := stop(); stopErr != nil {
		c.log.Warn("stop answering marks", "err", stopErr)
	}
	return err
}

// collect has the ledger count what was delivered, and settles it. It answers false when the
// quorum did not.
func (c *Collector) collect(ctx context.Context, deliveries []*bus.UsageDelivery) bool {
	batches := make([]*dozev1.UsageBatch, len(deliveries))
	for i, d := range deliveries {
		batches[i] = d.Batch
	}
	proposal, cancel := context.WithTimeout(ctx, proposeLimit)
	defer cancel()
	applied, err := c.ledger.ProposeUsage(proposal, batches)
	if err == nil && len(applied) != len(batches) {
		err = errors.New("the ledger answered for another number of batches")
	}
	if err != nil {
		if ctx.Err() == nil {
			c.log.Warn("usage not counted yet; it stays in the stream", "batches", len(batches), "err", err)
		}
		return false
	}
	marks, workers := make(map[string]uint64), make(map[string]string)
	for i, a := range applied {
		if a.Epoch == "" {
			continue
		}
		switch {
		case a.Err == nil, errors.Is(a.Err, ledger.ErrGap):
			// A gap's answer is of use, too: a worker that shipped too far hears where to go on.
			marks[a.Epoch] = max(marks[a.Epoch], applied[i].Sequence)
			workers[a.Epoch] = deliveries[i].Worker
		}
	}
	// Announced before it is settled: a worker then trims; one that misses it asks.
	for epoch, sequence := range marks {
		if err := c.stream.AnnounceApplied(workers[epoch], &dozev1.UsageApplied{Epoch: epoch, Sequence: sequence}); err != nil {
			c.log.Warn("announce mark", "epoch", epoch, "err", err)
		}
	}
	for i, d := range deliveries {
		c.settle(d, applied[i], marks[applied[i].Epoch])
	}
	return true
}

// settle ends one delivery by what the ledger answered to it.
func (c *Collector) settle(d *bus.UsageDelivery, applied ledger.Applied, mark uint64) {
	var err error
	switch {
	case applied.Err == nil:
		c.batches.Add(1)
		err = d.Ack()
	case errors.Is(applied.Err, ledger.ErrGap):
		if end(d.Batch) <= mark {
			// Another batch of this very proposal brought the ledger past it.
			c.batches.Add(1)
			err = d.Ack()
			break
		}
		c.gaps.Add(1)
		c.log.Info("usage batch waits for its forerunner", "epoch", d.Batch.Epoch, "first", d.Batch.FirstSequence, "mark", applied.Sequence)
		err = d.Nak(gapWait)
	case errors.Is(applied.Err, ledger.ErrBatch), errors.Is(applied.Err, ledger.ErrRetired):
		// No repetition will change the answer, and in the stream it would come again for ever. The
		// worker's journal still has the records, because the mark does not pass them.
		c.dropped.Add(1)
		c.log.Error("usage batch refused by the ledger", "epoch", d.Batch.Epoch, "first", d.Batch.FirstSequence,
			"records", len(d.Batch.Function), "err", applied.Err)
		err = d.Ack()
	default:
		c.log.Warn("usage batch put off by the ledger", "epoch", d.Batch.Epoch, "first", d.Batch.FirstSequence, "err", applied.Err)
		err = d.Nak(proposeWaitMax)
	}
	if err != nil {
		c.log.Warn("settle usage; it will come again", "epoch", d.Batch.Epoch, "err", err)
	}
}

// end is the sequence of a batch's last record.
func end(b *dozev1.UsageBatch) uint64 { return b.FirstSequence + uint64(len(b.Function)) - 1 }
