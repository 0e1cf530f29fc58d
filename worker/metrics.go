package worker

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/doze-run/doze/worker/pool"
)

// coldBuckets are seconds: a cold start's phases lie between half a millisecond and AWS's limit of an init.
var coldBuckets = []float64{.0005, .001, .002, .003, .005, .0075, .01, .015, .02, .03, .05, .1, .2, .5, 1, 2, 5, 10}

// metrics are a worker's figures. Labels are of runtimes, phases and states, never of functions: their number
// is bounded by what is installed. What happens is counted by listening to the pool; the rest is asked for
// at each scrape.
type metrics struct {
	registry *prometheus.Registry
	worker   *Worker

	cold    *prometheus.HistogramVec
	starts  *prometheus.CounterVec
	failed  *prometheus.CounterVec
	ended   *prometheus.CounterVec
	now     []asked
	parked  map[string]*prometheus.Desc
	states  *prometheus.Desc
	runtime *prometheus.Desc
}

// asked is a figure that somebody has when asked.
type asked struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Worker) float64
}

func newMetrics(w *Worker) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(), worker: w,
		cold: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "doze_cold_start_seconds", Buckets: coldBuckets,
			Help: "Where the time of calls went that waited for an instance to start: each phase (queue, claim, mount, init, handler), and all but the handler (wait).",
		}, []string{"runtime", "phase"}),
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "doze_instance_starts_total", Help: "Instances that came up, by whether they were made of a parked sandbox and whether their code was on the worker.",
		}, []string{"runtime", "parked", "code"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "doze_instance_start_failures_total", Help: "Instances that could not be made, for a reason that is not the function's.",
		}, []string{"runtime", "reason"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "doze_instance_ends_total", Help: "Instances that ended: asked (nobody needed them) or not (crash, timeout, failed init).",
		}, []string{"runtime", "asked"}),
		states:  prometheus.NewDesc("doze_instances", "Instances now.", []string{"state"}, nil),
		runtime: prometheus.NewDesc("doze_runtime_info", "What this worker can run.", []string{"runtime", "version"}, nil),
		parked: map[string]*prometheus.Desc{
			"now":    prometheus.NewDesc("doze_parked_sandboxes", "Sandboxes that wait for a function.", []string{"kind"}, nil),
			"target": prometheus.NewDesc("doze_parked_sandboxes_target", "How many should wait.", []string{"kind"}, nil),
			"bytes":  prometheus.NewDesc("doze_parked_memory_bytes", "Memory of those that wait.", []string{"kind"}, nil),
			"starts": prometheus.NewDesc("doze_parked_starts_total", "Starts that found a parked sandbox (hit), or not (miss).", []string{"kind", "result"}, nil),
		},
	}
	gauge := func(name, help string, value func(*Worker) float64) {
		m.now = append(m.now, asked{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value})
	}
	gauge("doze_worker_memory_bytes", "Memory for all instances together.", func(w *Worker) float64 { return float64(w.capacity.Total()) })
	gauge("doze_worker_memory_free_bytes", "What of it can be given to an instance now.", func(w *Worker) float64 { return float64(w.capacity.Free()) })
	gauge("doze_worker_hosted", "Function versions that this worker hosts.", func(w *Worker) float64 { return float64(len(w.pool.Hosted())) })
	gauge("doze_worker_takes_calls", "1 while calls are taken; 0 while draining or when usage cannot be journaled.", func(w *Worker) float64 { return number(w.takesCalls()) })
	gauge("doze_usage_lag_records", "Usage records in the journal that the ledger has not announced to have.", func(w *Worker) float64 { return float64(w.meter.Lag()) })
	gauge("doze_usage_journal_bytes", "Disk that the journal takes.", func(w *Worker) float64 { return float64(w.meter.Bytes()) })
	gauge("doze_code_packages", "Packages unpacked on this worker.", func(w *Worker) float64 { return float64(len(w.cache.List())) })
	m.registry.MustRegister(m.cold, m.starts, m.failed, m.ended, m)
	return m
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, a := range m.now {
		to <- a.desc
	}
	for _, d := range m.parked {
		to <- d
	}
	to <- m.states
	to <- m.runtime
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	tell := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	for _, a := range m.now {
		tell(a.desc, a.kind, a.value(m.worker))
	}
	counts := m.worker.pool.States()
	tell(m.states, prometheus.GaugeValue, float64(counts.Starting), "starting")
	tell(m.states, prometheus.GaugeValue, float64(counts.Idle), "idle")
	tell(m.states, prometheus.GaugeValue, float64(counts.Busy), "busy")
	for _, s := range m.worker.parking.report() {
		tell(m.parked["now"], prometheus.GaugeValue, float64(s.Parked), s.Kind)
		tell(m.parked["target"], prometheus.GaugeValue, float64(s.Target), s.Kind)
		tell(m.parked["bytes"], prometheus.GaugeValue, float64(s.MemoryBytes), s.Kind)
		tell(m.parked["starts"], prometheus.CounterValue, float64(s.Hits), s.Kind, pool.Hit)
		tell(m.parked["starts"], prometheus.CounterValue, float64(s.Misses), s.Kind, pool.Miss)
	}
	for _, r := range m.worker.found {
		tell(m.runtime, prometheus.GaugeValue, 1, r.Name, r.Version)
	}
}

// events counts what the pool tells.
func (m *metrics) events() pool.Events {
	return pool.Events{
		InstanceStarted: func(e pool.InstanceStarted) {
			m.starts.WithLabelValues(e.Runtime, e.Parked, codeWord(e.CodeCached)).Inc()
		},
		StartFailed: func(e pool.StartFailed) {
			reason := "error"
			if e.NoMemory {
				reason = "no_memory"
			}
			m.failed.WithLabelValues(e.Runtime, reason).Inc()
		},
		InstanceEnded: func(e pool.InstanceEnded) {
			asked := "no"
			if e.Asked {
				asked = "yes"
			}
			m.ended.WithLabelValues(e.Runtime, asked).Inc()
		},
		ColdCall: func(e pool.ColdCall) {
			observe := func(phase string, took time.Duration) {
				m.cold.WithLabelValues(e.Runtime, phase).Observe(took.Seconds())
			}
			observe("queue", e.Queue)
			observe("claim", e.Claim)
			observe("mount", e.Mount)
			observe("init", e.Init)
			observe("handler", e.Handler)
			observe("wait", e.Queue+e.Claim+e.Mount+e.Init)
		},
	}
}

func codeWord(cached bool) string {
	if cached {
		return "cached"
	}
	return "fetched"
}

// logEvents writes a line for what an operator looks for in a log: each cold call with its phases, and what
// could not be started. Starts and ends of instances are for those who debug.
func logEvents(log *slog.Logger) pool.Events {
	about := func(a pool.About) []any {
		return []any{"account", a.Account, "function", a.Function, "version", a.Version, "runtime", a.Runtime, "instance", a.Instance}
	}
	return pool.Events{
		ColdCall: func(e pool.ColdCall) {
			log.Info("cold call", append([]any{"requestId", e.RequestID}, append(about(e.About), "outcome", e.Outcome.String(),
				"parked", e.Parked, "code", codeWord(e.CodeCached),
				"queue", e.Queue, "claim", e.Claim, "mount", e.Mount, "init", e.Init, "handler", e.Handler)...)...)
		},
		StartFailed: func(e pool.StartFailed) {
			if e.NoMemory { // which happens over and over while the worker is full
				log.Debug("no memory for an instance", append(about(e.About), "requestId", e.RequestID, "err", e.Err)...)
				return
			}
			log.Error("start instance", append(about(e.About), "requestId", e.RequestID, "err", e.Err)...)
		},
		InstanceStarted: func(e pool.InstanceStarted) {
			log.Debug("instance started", append(about(e.About), "requestId", e.RequestID, "parked", e.Parked, "code", codeWord(e.CodeCached), "mount", e.Mount, "init", e.Init)...)
		},
		InstanceEnded: func(e pool.InstanceEnded) {
			log.Debug("instance ended", append(about(e.About), "calls", e.Calls, "lived", e.Lived, "asked", e.Asked)...)
		},
	}
}
