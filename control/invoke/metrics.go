package invoke

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// outcomes are the names of how an attempt ended, as workers number it (package instance's Outcome).
var outcomes = [...]string{"", "ok", "handler_error", "init_error", "timeout", "exit", "out_of_memory", "too_large", "killed"}

// OutcomeName is the name of an Answer's Outcome, in metrics.
func OutcomeName(outcome uint8) string {
	if outcome == 0 || int(outcome) >= len(outcomes) {
		return "unknown"
	}
	return outcomes[outcome]
}

// latencyBuckets are seconds: a warm call takes a fraction of a millisecond, the longest timeout is 15 minutes.
var latencyBuckets = []float64{.0001, .0002, .0003, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 300, 900}

// reasons are all there are in a Throttled.
var reasons = [...]string{ReasonReserved, ReasonConcurrent, ReasonRate, ReasonReservedRate, ReasonCaller}

// Metrics count calls. Their labels are of runtimes, outcomes and reasons, never of functions, so that their
// number is bounded. A call touches counters that were looked up when its function was called first.
type Metrics struct {
	calls    *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	accepted prometheus.Counter
	throttle [len(reasons)]prometheus.Counter

	mu       sync.Mutex
	runtimes map[string]*calls
}

// NewMetrics registers the metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "doze_invocations_total", Help: "Attempts, synchronous and of events, by how they ended; lost and not_run are the platform's failures.",
		}, []string{"runtime", "outcome"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "doze_invocation_seconds", Buckets: latencyBuckets, Help: "From admission of a call to its answer, by whether it waited for an instance to start (cold) or not (warm).",
		}, []string{"runtime", "start"}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{Name: "doze_events_accepted_total", Help: "Events that were answered with 202."}),
		runtimes: map[string]*calls{},
	}
	throttles := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "doze_throttles_total", Help: "Calls that were refused with 429, by AWS's reason.",
	}, []string{"reason"})
	for i, reason := range reasons {
		m.throttle[i] = throttles.WithLabelValues(reason)
	}
	registry.MustRegister(m.calls, m.latency, m.accepted, throttles)
	return m
}

// calls are the counters of one runtime.
type calls struct {
	metrics      *Metrics
	outcomes     [len(outcomes)]prometheus.Counter // [0] of what is unknown
	lost, notRun prometheus.Counter
	cold, warm   prometheus.Observer
}

// of finds the counters of a runtime.
func (m *Metrics) of(runtime string) *calls {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.runtimes[runtime]
	if c == nil {
		c = &calls{
			metrics: m, lost: m.calls.WithLabelValues(runtime, "lost"), notRun: m.calls.WithLabelValues(runtime, "not_run"),
			cold: m.latency.WithLabelValues(runtime, "cold"), warm: m.latency.WithLabelValues(runtime, "warm"),
		}
		for i := range outcomes {
			c.outcomes[i] = m.calls.WithLabelValues(runtime, OutcomeName(uint8(i)))
		}
		m.runtimes[runtime] = c
	}
	return c
}

// answered counts a call that was answered.
func (c *calls) answered(a *Answer, took time.Duration) {
	outcome := a.Outcome
	if int(outcome) >= len(c.outcomes) {
		outcome = 0
	}
	c.outcomes[outcome].Inc()
	if a.Cold {
		c.cold.Observe(took.Seconds())
		return
	}
	c.warm.Observe(took.Seconds())
}

// refused counts a call that was not.
func (c *calls) refused(err error) {
	var throttled *Throttled
	var unavailable *Unavailable
	switch {
	case errors.As(err, &throttled):
		c.metrics.throttled(throttled)
	case errors.As(err, &unavailable) && unavailable.Ran:
		c.lost.Inc()
	default:
		c.notRun.Inc()
	}
}

func (m *Metrics) throttled(t *Throttled) {
	for i, reason := range reasons {
		if reason == t.Reason {
			m.throttle[i].Inc()
		}
	}
}
