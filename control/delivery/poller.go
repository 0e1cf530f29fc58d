package delivery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Poller takes events from the store and runs each to its end. A node has one; the pollers of
// several nodes share the store.
type Poller struct {
	config Config
	sink   Sink
	counts counters

	// consuming ends with the first half of Stop, working with the second.
	consuming, working         context.Context
	stopConsuming, stopWorking context.CancelFunc
	consumer, attempts         sync.WaitGroup

	mu       sync.Mutex
	stopping bool
	lanes    map[laneKey]*lane
	held     map[*held]struct{}
	bytes    int64
}

// held is one event in memory.
type held struct {
	Delivery
	lane    *lane
	size    int64
	claimed atomic.Bool // somebody settles it, or has; nobody else may
}

// Start returns a Poller at work. Stop it.
func Start(config Config) *Poller {
	if len(config.RetryWaits) == 0 {
		config.RetryWaits = defaultRetryWaits
	}
	if config.MaxHeld <= 0 {
		config.MaxHeld = DefaultMaxHeld
	}
	if config.MaxHeldBytes <= 0 {
		config.MaxHeldBytes = DefaultMaxHeldBytes
	}
	if config.MaxRunning <= 0 {
		config.MaxRunning = DefaultMaxRunning
	}
	if config.Jitter == nil {
		config.Jitter = rand.Float64 // #nosec: spreads retries, nothing more
	}
	p := &Poller{config: config, sink: config.Sink, lanes: make(map[laneKey]*lane), held: make(map[*held]struct{})}
	if p.sink == nil {
		p.sink = LogSink{config.Logger}
	}
	p.consuming, p.stopConsuming = context.WithCancel(context.Background())
	p.working, p.stopWorking = context.WithCancel(context.Background())
	p.consumer.Go(func() {
		if err := config.Source.Consume(p.consuming, p.offer); err != nil && !errors.Is(err, context.Canceled) {
			config.Logger.Error("event poller ended", "err", err)
		}
	})
	return p
}

// Stop takes nothing new, gives back what has not begun, and lets running attempts come to their
// end. When ctx ends before they do, they are given back, too, and Stop returns an error: they run
// on, but what comes of them is not looked at, and another poller runs their events again.
func (p *Poller) Stop(ctx context.Context) error {
	p.stopConsuming()
	p.mu.Lock()
	p.stopping = true
	for _, l := range p.lanes {
		if l.resting != nil {
			l.resting.Stop()
		}
		for _, h := range l.queue {
			p.release(h)
			h.claim()
			p.giveBack(h, 0)
		}
		l.queue = nil
	}
	p.mu.Unlock()

	ended := make(chan struct{})
	go func() { // ends with the attempts, whose end the call path bounds
		p.attempts.Wait()
		close(ended)
	}()
	var err error
	select {
	case <-ended:
	case <-ctx.Done():
		p.mu.Lock()
		if len(p.held) > 0 {
			err = fmt.Errorf("delivery: %d attempts were still running: %w", len(p.held), ctx.Err())
		}
		for h := range p.held {
			if h.claim() { // else it is being settled this moment
				p.giveBack(h, 0)
			}
		}
		p.mu.Unlock()
	}
	p.stopWorking()
	p.consumer.Wait()
	return err
}

// Stats counts what has been done so far.
func (p *Poller) Stats() Stats {
	s := p.counts.stats()
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Held = len(p.held)
	for _, l := range p.lanes {
		s.Running += l.running
	}
	return s
}

// offer takes an event into its function's lane, or gives it back when that is full. It does not
// block.
func (p *Poller) offer(d Delivery) {
	h := &held{Delivery: d, size: int64(len(d.Event.Payload) + len(d.Event.ClientContext))}
	key := laneKey{d.Event.Account, d.Event.Function}
	p.mu.Lock()
	if p.stopping {
		p.mu.Unlock()
		p.giveBack(h, 0)
		return
	}
	l := p.lanes[key]
	if l == nil {
		l = newLane(key, p.config.MaxRunning)
		p.lanes[key] = l
	}
	if !p.fits(l, h) {
		wait := l.putOff(time.Now(), d.Deliveries, p.config.Jitter())
		p.forget(l)
		p.mu.Unlock()
		p.counts.putOff.Add(1)
		p.giveBack(h, wait)
		return
	}
	h.lane = l
	l.queue = append(l.queue, h)
	l.bytes += h.size
	p.held[h] = struct{}{}
	p.bytes += h.size
	p.dispatch(l)
	p.mu.Unlock()
}

// fits tells whether a lane may hold one more: as much as is free, and one event in any case as
// long as there is room at all. p.mu is held.
func (p *Poller) fits(l *lane, h *held) bool {
	free, freeBytes := p.config.MaxHeld-len(p.held), p.config.MaxHeldBytes-p.bytes
	if free <= 0 || freeBytes < h.size && len(p.held) > 0 {
		return false
	}
	if l.held() == 0 {
		return true
	}
	return l.held() < free && l.bytes+h.size <= freeBytes
}

// dispatch begins what may run. p.mu is held.
func (p *Poller) dispatch(l *lane) {
	for h := l.next(); h != nil; h = l.next() {
		p.attempts.Go(func() { p.run(h) })
	}
}

// run makes one attempt and lets the lane learn from it.
func (p *Poller) run(h *held) {
	begun := time.Now()
	verdict := p.attempt(p.working, h)
	took := time.Since(begun)
	p.mu.Lock()
	defer p.mu.Unlock()
	l := h.lane
	switch verdict {
	case attemptRan:
		l.ran(took)
	case attemptRefused:
		if rest := l.refused(); rest > 0 && !p.stopping {
			l.resting = time.AfterFunc(rest, func() { p.rested(l) })
		}
	}
	l.running--
	p.release(h)
	if !p.stopping {
		p.dispatch(l)
	}
	p.forget(l)
}

// rested ends a lane's pause.
func (p *Poller) rested(l *lane) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.resting = nil
	if !p.stopping {
		p.dispatch(l)
	}
	p.forget(l)
}

// release takes an event out of the accounts. p.mu is held.
func (p *Poller) release(h *held) {
	delete(p.held, h)
	h.lane.bytes -= h.size
	p.bytes -= h.size
}

// forget drops a lane that holds nothing. p.mu is held.
func (p *Poller) forget(l *lane) {
	if l.held() == 0 && l.resting == nil && p.lanes[l.key] == l {
		delete(p.lanes, l.key)
	}
}

// claim takes the right to settle the event; only one gets it.
func (h *held) claim() bool { return !h.claimed.Swap(true) }

// giveBack returns a claimed event to the store unchanged.
func (p *Poller) giveBack(h *held, wait time.Duration) {
	if err := h.Nak(wait); err != nil {
		p.config.Logger.Warn("give event back", "request_id", idText(h.Event.Id), "err", err)
	}
}

// settle ends a claimed event for good.
func (p *Poller) settle(h *held) {
	if err := h.Ack(); err != nil {
		p.config.Logger.Warn("settle event; it will come again", "request_id", idText(h.Event.Id), "err", err)
	}
}
