package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/doze-run/doze/control/invoke"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// storeLimit bounds storing a retry or recording an end, which a stop does not interrupt. It is longer than the bus
	// insists on a store without a leader: what is not stored runs again.
	storeLimit = 20 * time.Second
	// storeWait is for how long an event is given back whose retry or end could not be stored.
	storeWait = 30 * time.Second
)

// verdict is what an attempt tells its lane.
type verdict int

const (
	attemptVoid    verdict = iota // says nothing about the function's capacity
	attemptRan                    // the function had the event
	attemptRefused                // the call path had no room for it
)

// attempt tries one event once, and settles it: it has ended, or its next attempt is stored, or it
// goes back as it was.
func (p *Poller) attempt(ctx context.Context, h *held) verdict {
	event := h.Event
	var call invoke.Call
	if copy(call.RequestID[:], event.Id) != len(call.RequestID) || len(event.Id) != len(call.RequestID) {
		p.end(ctx, h, &Outcome{Condition: Malformed})
		return attemptVoid
	}
	target, err := p.config.Resolver.Resolve(ctx, event.Account, event.Function, event.Qualifier)
	switch {
	case errors.Is(err, ErrGone):
		p.end(ctx, h, &Outcome{Condition: FunctionGone})
		return attemptVoid
	case err != nil:
		p.backOff(ctx, h, Target{Policy: DefaultPolicy()}, err)
		return attemptVoid
	}
	outcome := &Outcome{Target: target}
	if !time.Now().Before(ageLimit(event, target.Policy)) {
		outcome.Condition = EventAgeExceeded
		p.end(ctx, h, outcome)
		return attemptVoid
	}
	if target.Function.Reserved != nil && *target.Function.Reserved == 0 {
		outcome.Condition = ZeroReservedConcurrency
		p.end(ctx, h, outcome)
		return attemptVoid
	}
	call.Function, call.Version = target.Function, target.Version
	call.InvokedARN, call.Qualifier = target.InvokedARN, event.Qualifier
	call.Payload, call.ClientContext, call.TraceID = event.Payload, event.ClientContext, event.TraceId
	if len(call.Payload) == 0 {
		call.Payload = []byte("{}")
	}
	answer, err := p.config.Invoker.Invoke(ctx, &call)
	if err != nil {
		p.backOff(ctx, h, target, err)
		var throttled *invoke.Throttled
		if errors.As(err, &throttled) {
			return attemptRefused
		}
		return attemptVoid
	}
	p.counts.attempts.Add(1)
	p.judge(ctx, h, outcome, answer)
	return attemptRan
}

// judge decides on an event whose function had it.
func (p *Poller) judge(ctx context.Context, h *held, outcome *Outcome, answer *invoke.Answer) {
	event, policy := h.Event, outcome.Target.Policy
	outcome.Attempts = int(event.Attempt) + 1
	outcome.ExecutedVersion, outcome.FunctionError, outcome.Payload = answer.ExecutedVersion, answer.FunctionError, answer.Payload
	switch {
	case answer.FunctionError == "":
		outcome.Condition = Success
	case outcome.Attempts > policy.MaximumRetryAttempts:
		outcome.Condition = RetriesExhausted
	default:
		at, ok := retryTime(time.Now(), ageLimit(event, policy), retryWait(p.config.RetryWaits, outcome.Attempts))
		if ok {
			event.Attempt++
			event.Throttled = 0
			if p.store(ctx, h, at) {
				p.counts.retried.Add(1)
			}
			return
		}
		outcome.Condition = EventAgeExceeded
	}
	p.end(ctx, h, outcome)
}

// backOff puts an event back that did not come to its function, or not for sure. That is not
// counted as an attempt and goes on until the event is too old.
func (p *Poller) backOff(ctx context.Context, h *held, target Target, cause error) {
	if ctx.Err() != nil {
		if h.claim() { // stopped: the next poller makes of it what it can
			p.giveBack(h, 0)
		}
		return
	}
	event := h.Event
	wait := backoff(event.Throttled, p.config.Jitter())
	var throttled *invoke.Throttled
	if errors.As(cause, &throttled) {
		wait = max(wait, min(throttled.RetryAfter, backoffMax))
	} else if event.Throttled == 0 { // once, not with every further wait
		p.config.Logger.Warn("asynchronous event put back", "request_id", idText(event.Id), "account", event.Account,
			"function", event.Function, "again_in", wait, "err", cause)
	}
	at, ok := retryTime(time.Now(), ageLimit(event, target.Policy), wait)
	if !ok {
		p.end(ctx, h, &Outcome{Condition: EventAgeExceeded, Target: target, Err: cause})
		return
	}
	event.Throttled++
	if p.store(ctx, h, at) {
		p.counts.backoffs.Add(1)
	}
}

// ageLimit is when an event is given up.
func ageLimit(event *dozev1.Event, policy Policy) time.Time {
	return time.UnixMilli(event.AcceptedAtMs).Add(policy.MaximumEventAge)
}

// store keeps the next attempt, which h.Event describes by now, and only then settles this one.
// When it cannot be kept, the store still has the event as it was and gives that out again: an
// attempt that ran will run again, rather than be the last.
func (p *Poller) store(ctx context.Context, h *held, at time.Time) bool {
	if !h.claim() {
		return false // given back meanwhile: a retry beside that would make two of one event
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeLimit)
	defer cancel()
	if err := p.config.Source.RetryAt(ctx, h.Event, at); err != nil {
		p.config.Logger.Warn("store retry; the event goes back as it was", "request_id", idText(h.Event.Id), "again_in", storeWait, "err", err)
		p.giveBack(h, storeWait)
		return false
	}
	p.settle(h)
	return true
}

// end records how an event ended and only then settles it.
func (p *Poller) end(ctx context.Context, h *held, outcome *Outcome) {
	if !h.claim() {
		return
	}
	outcome.Event = h.Event
	if outcome.Attempts == 0 {
		outcome.Attempts = int(h.Event.Attempt)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeLimit)
	defer cancel()
	if err := p.sink.Record(ctx, outcome); err != nil {
		p.config.Logger.Warn("record the end of an event; it goes back as it was", "request_id", idText(h.Event.Id),
			"condition", string(outcome.Condition), "again_in", storeWait, "err", err)
		p.giveBack(h, storeWait)
		return
	}
	p.counts.end(outcome.Condition)
	p.settle(h)
}
