package parked

import (
	"context"
	"errors"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// own says whether an error is the function's: another sandbox would not help.
func own(err error) bool { return errors.Is(err, sandbox.ErrEntrypoint) }

// fill parks, one at a time, until ctx ends.
func (p *Pool) fill(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var rest, waiting time.Time // not before rest; put off by starts since waiting
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.wake:
		}
		p.trim()
		now := time.Now()
		k, started, next := p.next(now)
		if k == nil {
			waiting = time.Time{}
			timer.Reset(next)
			continue
		}
		if waiting.IsZero() {
			waiting = now
		}
		at := rest
		if quiet := started.Add(settle); quiet.Before(waiting.Add(patience)) && quiet.After(at) {
			at = quiet
		}
		if wait := at.Sub(now); wait > 0 {
			timer.Reset(wait)
			continue
		}
		waiting = time.Time{}
		p.park(ctx, k)
		took := time.Since(now)
		share := idleShare
		if !p.config.Spare() {
			share = busyShare
		}
		rest = time.Now().Add(time.Duration(float64(took) * (1/share - 1)))
		timer.Reset(0)
	}
}

// next is the kind that needs one most: of those with the least in stock, the one used last. Without any it
// says when to look again.
func (p *Pool) next(now time.Time) (best *kind, started time.Time, again time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	again = lookEvery
	for _, k := range p.kinds {
		if len(k.stock) >= k.target(now) {
			continue
		}
		if wait := k.retry.Sub(now); wait > 0 {
			again = min(again, wait)
			continue
		}
		if p.bytes+k.size > p.config.MaxBytes && p.victim(k) == nil {
			continue
		}
		if best == nil || len(k.stock) < len(best.stock) || len(k.stock) == len(best.stock) && k.lastUsed.After(best.lastUsed) {
			best = k
		}
	}
	return best, p.started, again
}

// victim is the kind with any in stock that was used the longest ago, and longer ago than the other: it makes room.
func (p *Pool) victim(than *kind) (victim *kind) {
	for _, k := range p.kinds {
		if k != than && len(k.stock) > 0 && k.lastUsed.Before(than.lastUsed) && (victim == nil || k.lastUsed.Before(victim.lastUsed)) {
			victim = k
		}
	}
	return victim
}

// trim gives up what has died, what nobody wants and what is more than there should be, and forgets
// kinds that are nobody's.
func (p *Pool) trim() {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, k := range p.kinds {
		for i := 0; i < len(k.stock); {
			s := k.stock[i]
			select {
			case <-s.Done():
				k.stock = append(k.stock[:i], k.stock[i+1:]...)
				p.bytes -= s.bytes
				p.discard(s)
			default:
				i++
			}
		}
		if more := len(k.stock) - k.target(now); more > 0 {
			p.drop(k, more)
		}
		if !k.wanted && now.Sub(k.lastUsed) > time.Minute && len(k.stock) == 0 {
			delete(p.kinds, name)
		}
	}
}

// park makes one of the kind and puts it into stock.
func (p *Pool) park(ctx context.Context, k *kind) {
	p.mu.Lock()
	name, config := k.Name, k.Config
	config.ID = p.id()
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, parkLimit)
	defer cancel()
	memory, err := p.config.Reserve(name, config.MemoryBytes)
	if err != nil {
		p.failed(ctx, k, err)
		return
	}
	made, err := p.config.Parker.Park(ctx, config)
	if err != nil {
		memory.Release()
		p.failed(ctx, k, err)
		return
	}
	s := &spot{Parked: made, memory: memory, bytes: made.MemoryBytes()}
	memory.Observe(s.bytes)
	p.mu.Lock()
	defer p.mu.Unlock()
	k.failures, k.size = 0, s.bytes
	if p.closed || k.target(time.Now()) == 0 {
		p.discard(s)
		return
	}
	k.stock = append(k.stock, s)
	p.bytes += s.bytes
	for p.bytes > p.config.MaxBytes {
		victim := p.victim(k)
		if victim == nil {
			break
		}
		p.drop(victim, 1)
	}
	if p.bytes > p.config.MaxBytes {
		p.drop(k, 1)
	}
}

// failed puts the kind off.
func (p *Pool) failed(ctx context.Context, k *kind, err error) {
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	p.mu.Lock()
	wait := min(lastBackoff, firstBackoff<<min(k.failures, 10))
	k.failures++
	k.retry = time.Now().Add(wait)
	name := k.Name
	p.mu.Unlock()
	if !errors.Is(err, sandbox.ErrNoMemory) {
		p.config.Logger.Warn("a sandbox cannot be parked", "kind", name, "again", wait, "err", err)
	}
}
