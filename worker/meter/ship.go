package meter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

const (
	// flushAfter is how long a record waits for others to fill its batch.
	flushAfter = 200 * time.Millisecond
	// windowRecords bounds what is published and not yet applied, of one epoch.
	windowRecords = 64 * batchRecords
	// publishTimeout bounds one publish, markTimeout one question for the ledger's mark.
	publishTimeout = 5 * time.Second
	markTimeout    = 5 * time.Second
	// askAfter and askAfterClosing are what askWait chooses from.
	askAfter        = time.Second
	askAfterClosing = 100 * time.Millisecond
	// resendAfter is how long the ledger may make no progress before the unapplied records are sent
	// again; it doubles up to resendAtMost while that does not help.
	resendAfter  = 5 * time.Second
	resendAtMost = time.Minute
	// retryAfter is the first wait after an error; it doubles up to retryAtMost.
	retryAfter  = 100 * time.Millisecond
	retryAtMost = 5 * time.Second
)

// askWait is how long the shipper waits for an announcement before it asks for the mark.
func askWait(closing bool) time.Duration {
	if closing {
		return askAfterClosing
	}
	return askAfter
}

// shipper sends the lanes' records and trims what the ledger has applied.
type shipper struct {
	disk    disk
	stream  Stream
	log     *slog.Logger
	marks   *marks
	journal *journal
	lanes   []*lane // earlier epochs first, this process's own last
	closing <-chan struct{}
}

// ship runs until every lane is retired, which the own one is only after the journal was sealed,
// or until ctx ends.
func (s *shipper) ship(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer func() {
		for _, l := range s.lanes {
			l.close()
		}
	}()
	closing := s.closing
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.journal.cut:
		case <-s.marks.news:
		case <-closing:
			closing = nil
			for _, l := range s.lanes {
				l.hurry()
			}
		}
		next, left := time.Time{}, false
		for _, l := range s.lanes {
			if l.retired {
				continue
			}
			at := s.serve(ctx, l, closing == nil)
			if l.retired {
				continue
			}
			left = true
			if !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		if !left {
			return
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// serve does what the lane has to do now and returns when it has to be served again at the latest;
// zero for when something happens.
func (s *shipper) serve(ctx context.Context, l *lane, closing bool) time.Time {
	if now := time.Now(); now.Before(l.retryAt) {
		return l.retryAt
	}
	err := s.step(ctx, l, closing)
	if ctx.Err() != nil {
		return time.Time{}
	}
	if err != nil {
		l.backoff = min(max(retryAfter, 2*l.backoff), retryAtMost)
		l.retryAt = time.Now().Add(l.backoff)
		s.log.Warn("cannot ship usage; will try again",
			"epoch", l.epoch.String(), "in", l.backoff, "error", err)
		return l.retryAt
	}
	l.backoff, l.retryAt = 0, time.Time{}
	at := l.dueAt
	for _, t := range [...]time.Time{l.askAt, l.resendAt} {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

// step is serve without its waits.
func (s *shipper) step(ctx context.Context, l *lane, closing bool) error {
	if err := s.prepare(ctx, l); err != nil {
		return err
	}
	if err := s.heed(ctx, l, closing); err != nil {
		return err
	}
	if err := s.publish(ctx, l, closing); err != nil {
		return err
	}
	if l.run.ended() && l.applied >= l.run.end()-1 {
		return s.retire(ctx, l)
	}
	return nil
}

// prepare loads a leftover and asks the ledger how much of it has been applied already.
func (s *shipper) prepare(ctx context.Context, l *lane) error {
	if l.run == nil {
		r, err := l.leftover.load(s.disk, s.log)
		if err != nil {
			return err
		}
		for _, seg := range l.leftover.segments {
			s.journal.used.Add(-seg.size)
		}
		for _, seg := range r.segments {
			s.journal.used.Add(seg.size)
		}
		l.run = r
		l.cursor = &cursor{disk: s.disk, run: r, sequence: 1}
	}
	if l.asked || l.run.end() == 1 {
		return nil
	}
	if l.leftover.retired != "" && len(l.run.segments) == 0 {
		// All was applied before the files went; the ledger may have forgotten the epoch since.
		l.asked, l.applied, l.sent = true, l.run.end()-1, l.run.end()-1
		return nil
	}
	if err := s.ask(ctx, l); err != nil {
		return err
	}
	l.asked = true
	return s.heed(ctx, l, false)
}

// ask asks for the ledger's mark.
func (s *shipper) ask(ctx context.Context, l *lane) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	mark, err := s.stream.AppliedMark(ctx, l.epoch.String())
	if err != nil {
		return fmt.Errorf("meter: ask for the ledger's mark: %w", err)
	}
	s.marks.announce(l.epoch.String(), mark)
	return nil
}

// mark is how far the ledger is known to have come, never beyond what it can have been sent.
func (s *shipper) mark(l *lane) uint64 {
	most := l.run.end() - 1
	if !l.run.ended() {
		most = l.run.batched()
	}
	return min(s.marks.get(l.epoch.String()), most)
}

// heed takes note of what the ledger has applied, asks when it has said nothing for long, and
// rewinds when it makes no progress.
func (s *shipper) heed(ctx context.Context, l *lane, closing bool) error {
	now := time.Now()
	past := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	overdue := past(l.resendAt)
	if s.mark(l) <= l.applied && (past(l.askAt) || overdue) {
		l.askAt = now.Add(askWait(closing))
		// Nothing is sent again while the ledger cannot be asked: who cannot answer cannot apply
		// either, and it would only fill the stream.
		if err := s.ask(ctx, l); err != nil {
			return err
		}
		now = time.Now()
	}
	if mark := s.mark(l); mark > l.applied {
		l.applied = mark
		l.patience = resendAfter
		l.askAt, l.resendAt = now.Add(askWait(closing)), now.Add(l.patience)
		overdue = false
		if l.sent < l.applied {
			l.sent = l.applied
			l.cursor.seek(l.applied + 1)
		}
		if err := s.trim(l, false); err != nil {
			return err
		}
	}
	if l.sent <= l.applied {
		l.askAt, l.resendAt = time.Time{}, time.Time{}
		return nil
	}
	if overdue {
		s.log.Warn("the ledger does not apply usage; sending it again",
			"epoch", l.epoch.String(), "applied", l.applied, "sent", l.sent)
		l.sent = l.applied
		l.cursor.seek(l.applied + 1)
		l.patience = min(2*l.patience, resendAtMost)
		l.askAt, l.resendAt = time.Time{}, time.Time{}
	}
	return nil
}

// publish sends what is due, in order: a batch goes only when the one before it is stored, for the
// ledger takes a higher sequence as proof that it has seen the lower ones.
func (s *shipper) publish(ctx context.Context, l *lane, closing bool) error {
	due := closing || l.run.ended() || l.sent < l.cursor.run.batched() || !l.dueAt.IsZero() && !time.Now().Before(l.dueAt)
	for l.sent-l.applied < windowRecords {
		if !due && l.run.pending() < batchRecords {
			break
		}
		if l.cursor.sequence != l.sent+1 {
			l.cursor.seek(l.sent + 1) // the publish after the last batch failed
		}
		b, err := l.cursor.batch()
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
		pctx, cancel := context.WithTimeout(ctx, publishTimeout)
		err = s.stream.PublishUsage(pctx, b)
		cancel()
		if err != nil {
			return fmt.Errorf("meter: publish usage: %w", err)
		}
		if b.FirstSequence != l.sent+1 {
			s.log.Error("the ledger lacks usage that it had applied; was it restored from an old backup?",
				"epoch", l.epoch.String(), "from", l.sent+1, "to", b.FirstSequence-1)
		}
		now := time.Now()
		l.dueAt = time.Time{}
		l.sent = b.FirstSequence + uint64(len(b.Function)) - 1
		l.resendAt = now.Add(l.patience)
		if l.askAt.IsZero() {
			l.askAt = now.Add(askWait(closing))
		}
	}
	switch {
	case l.run.pending() == 0 || l.sent-l.applied >= windowRecords:
		// Nothing to wait for but a record or an announcement.
		l.dueAt = time.Time{}
	case l.dueAt.IsZero():
		l.dueAt = time.Now().Add(flushAfter)
	}
	return nil
}

// trim removes the segments that are wholly applied; the last one only when all may go, since while
// it is there the next start knows that the epoch is to be retired.
func (s *shipper) trim(l *lane, all bool) error {
	for _, old := range l.run.spent(l.applied, all) {
		if l.cursor.open && l.cursor.index == old.index {
			l.cursor.close()
		}
		if err := s.disk.remove(old.name); err != nil {
			return fmt.Errorf("meter: trim journal: %w", err)
		}
		l.run.drop(old.index)
		s.journal.used.Add(-old.size)
		wake(s.journal.keep)
	}
	return nil
}

// retire ends an epoch whose records are all applied. The files go first, so that no start of a
// worker finds records of an epoch that the ledger may have forgotten; an empty file remembers that
// the ledger is to be told, and goes when the stream has it.
func (s *shipper) retire(ctx context.Context, l *lane) error {
	next := l.run.end()
	told := next == 1 // the ledger knows nothing of an epoch without records
	if !told && (l.leftover == nil || l.leftover.retired == "") {
		name := retireName(l.epoch, next)
		f, err := s.disk.create(name, 0)
		if err != nil {
			return fmt.Errorf("meter: retire epoch: %w", err)
		}
		f.Close()
		l.leftover = &leftover{epoch: l.epoch, retired: name, next: next}
	}
	if err := s.trim(l, true); err != nil {
		return err
	}
	if !told {
		ctx, cancel := context.WithTimeout(ctx, publishTimeout)
		defer cancel()
		if err := s.stream.PublishUsage(ctx, lastBatch(l.epoch, next)); err != nil {
			return fmt.Errorf("meter: retire epoch: %w", err)
		}
		if err := s.disk.remove(l.leftover.retired); err != nil {
			return fmt.Errorf("meter: retire epoch: %w", err)
		}
	}
	l.retired = true
	l.close()
	s.marks.forget(l.epoch.String())
	return nil
}

// errUnapplied is what Close says when it leaves records for the next start.
var errUnapplied = errors.New("meter: closed with usage that the ledger has not applied; the next start ships it")
