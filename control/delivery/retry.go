package delivery

import (
	"math"
	"time"

	"github.com/doze-run/doze/control/registry"
)

// Policy says how long and how often an event is tried: AWS's EventInvokeConfig.
type Policy struct {
	// MaximumRetryAttempts is how many attempts follow a first that failed, 0 to 2.
	MaximumRetryAttempts int
	// OnSuccess and OnFailure are ARNs that records of ended events go to, DeadLetter one that events go to
	// that did not succeed; "" for none.
	OnSuccess, OnFailure, DeadLetter string
	// MaximumEventAge is how long after its acceptance an event is tried, 1 minute to 6 hours.
	MaximumEventAge time.Duration
}

// PolicyOf is what holds for the events of a qualifier.
func PolicyOf(f *registry.Function, v *registry.Version, qualifier string) Policy {
	p := DefaultPolicy()
	p.DeadLetter = v.Config.DeadLetterARN
	e, ok := f.EventInvokeFor(qualifier)
	if !ok {
		return p
	}
	p.OnSuccess, p.OnFailure = e.OnSuccess, e.OnFailure
	if e.MaxRetries != nil {
		p.MaximumRetryAttempts = *e.MaxRetries
	}
	if e.MaxAge != nil {
		p.MaximumEventAge = time.Duration(*e.MaxAge) * time.Second
	}
	return p
}

// DefaultPolicy is AWS's for a function without an EventInvokeConfig.
func DefaultPolicy() Policy {
	return Policy{MaximumRetryAttempts: 2, MaximumEventAge: 21600 * time.Second}
}

const (
	// backoffBase and backoffMax bound the wait after a throttle or a system error, as on AWS.
	backoffBase = time.Second
	backoffMax  = 5 * time.Minute
	// lastChance is how long before an event's age limit it gets its last attempt.
	lastChance = time.Second
)

// defaultRetryWaits are AWS's waits between attempts that failed in the function.
var defaultRetryWaits = []time.Duration{time.Minute, 2 * time.Minute}

// retryWait is the wait after the given number of failed attempts, at least 1.
func retryWait(waits []time.Duration, failed int) time.Duration {
	return waits[min(failed, len(waits))-1]
}

// backoff is the wait after an event was put back n times (0: the first): anywhere between the base
// and a bound that doubles, so that events that were refused together do not return together.
func backoff(n uint32, jitter float64) time.Duration {
	bound := float64(backoffMax)
	if n < 32 {
		bound = math.Min(bound, float64(backoffBase)*float64(uint64(2)<<n))
	}
	return backoffBase + time.Duration(jitter*(bound-float64(backoffBase)))
}

// retryTime is when an event that has to wait is tried again: after the wait, or shortly before
// the age limit if that comes first. ok is false when there is no time left.
func retryTime(now, limit time.Time, wait time.Duration) (at time.Time, ok bool) {
	if at = now.Add(wait); at.Before(limit) {
		return at, true
	}
	at = limit.Add(-lastChance)
	return at, at.After(now.Add(lastChance))
}
