package control

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/doze-run/doze/bus"
)

const (
	// scrapesAtOnce and scrapeLimit bound what asking for figures can cost; askLimit bounds asking the
	// streams, within it.
	scrapesAtOnce = 4
	scrapeLimit   = 5 * time.Second
	askLimit      = 2 * time.Second
)

// metrics are the figures of this node, and of a worker in the same process. No label names a function or an
// account: their number is bounded, and who may see them learns nothing of anybody's functions.
type metrics struct {
	control  *Control
	registry *prometheus.Registry
	handler  http.Handler

	mu     sync.Mutex
	beside []prometheus.Gatherer

	byName map[string]*prometheus.Desc
}

// described are the figures that are asked for at each scrape: name, help, labels.
var described = []struct {
	name, help string
	labels     []string
}{
	{"doze_build_info", "The version that runs.", []string{"version"}},
	{"doze_ready", "1 while this node can serve calls.", nil},
	{"doze_functions", "Functions in the replicated state.", nil},
	{"doze_calls", "Synchronous calls and attempts of events now: queued for a worker, or running on one.", []string{"state"}},
	{"doze_queue_bytes", "Bytes of calls in the queues.", nil},
	{"doze_events", "Accepted events that have not come to their end: ready to run or running, and delayed until a retry.", []string{"state"}},
	{"doze_events_bytes", "Bytes of those events.", nil},
	{"doze_event_attempts_total", "Attempts of events at their functions.", nil},
	{"doze_event_retries_total", "Attempts that failed and were stored for another one.", nil},
	{"doze_event_backoffs_total", "Events stored for later because their function was throttled or the platform failed.", nil},
	{"doze_events_ended_total", "Events that came to their end, by AWS's condition; all but Success were dropped.", []string{"condition"}},
	{"doze_usage_lag_batches", "Batches of usage records in the stream that the ledger has not taken.", nil},
	{"doze_stream_messages", "Messages in a stream.", []string{"stream"}},
	{"doze_stream_bytes", "Bytes in a stream.", []string{"stream"}},
	{"doze_stream_consumers", "Consumers of a stream; of a call stream: function versions that are awake.", []string{"stream"}},
	{"doze_storage_healthy", "1 while streams and the Raft log can be written.", nil},
	{"doze_raft_applied_index", "Index of the last log entry that the state has.", nil},
	{"doze_raft_commit_index", "Index of the last committed log entry that this node knows.", nil},
	{"doze_raft_last_index", "Index of the last log entry.", nil},
	{"doze_raft_term", "Raft's term.", nil},
	{"doze_raft_leads", "1 on the node that leads.", nil},
	{"doze_raft_leader_known", "1 while this node knows who leads.", nil},
	{"doze_raft_log_healthy", "1 while the log can be written and understood.", nil},
	{"doze_raft_voters", "Voters of the cluster.", nil},
	{"doze_workers", "Live workers: taking calls, draining, or unavailable.", []string{"state"}},
}

func newMetrics(c *Control) *metrics {
	m := &metrics{control: c, registry: prometheus.NewRegistry(), byName: map[string]*prometheus.Desc{}}
	for _, d := range described {
		m.byName[d.name] = prometheus.NewDesc(d.name, d.help, d.labels, nil)
	}
	m.handler = promhttp.HandlerFor(m, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeLimit})
	return m
}

// open registers what needs the node's parts.
func (m *metrics) open() {
	m.registry.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// Gather implements prometheus.Gatherer.
func (m *metrics) Gather() ([]*dto.MetricFamily, error) {
	m.mu.Lock()
	all := append(prometheus.Gatherers{m.registry}, m.beside...)
	m.mu.Unlock()
	return all.Gather()
}

// ServeMetricsOf lets /metrics have the figures of a worker in the same process, too.
func (c *Control) ServeMetricsOf(worker prometheus.Gatherer) {
	c.metrics.mu.Lock()
	defer c.metrics.mu.Unlock()
	c.metrics.beside = append(c.metrics.beside, worker)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range m.byName {
		to <- d
	}
}

// Collect implements prometheus.Collector. What cannot be asked for now is left out: a scrape is most wanted
// when something does not work.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	c := m.control
	tell := func(kind prometheus.ValueType, name string, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(m.byName[name], kind, value, labels...)
	}
	gauge := func(name string, value float64, labels ...string) {
		tell(prometheus.GaugeValue, name, value, labels...)
	}
	count := func(name string, value uint64, labels ...string) {
		tell(prometheus.CounterValue, name, float64(value), labels...)
	}

	gauge("doze_build_info", 1, c.config.Version)
	gauge("doze_ready", number(c.Ready() == nil))
	gauge("doze_functions", float64(c.quorum.Registry().Snapshot().Len()))
	load := c.asker.Load()
	gauge("doze_calls", float64(load.Waiting), "queued")
	gauge("doze_calls", float64(load.Running), "running")
	gauge("doze_queue_bytes", float64(load.QueuedBytes))

	events := c.pollers.Stats()
	count("doze_event_attempts_total", events.Attempts)
	count("doze_event_retries_total", events.Retried)
	count("doze_event_backoffs_total", events.Backoffs)
	for condition, n := range events.Ended {
		count("doze_events_ended_total", n, string(condition))
	}

	raft := c.quorum.Stats()
	gauge("doze_raft_applied_index", float64(raft.AppliedIndex))
	gauge("doze_raft_commit_index", float64(raft.CommitIndex))
	gauge("doze_raft_last_index", float64(raft.LastIndex))
	gauge("doze_raft_term", float64(raft.Term))
	gauge("doze_raft_leads", number(raft.Leads))
	gauge("doze_raft_leader_known", number(raft.LeaderKnown))
	gauge("doze_raft_log_healthy", number(raft.LogHealthy))
	gauge("doze_raft_voters", float64(raft.Voters))

	takes, draining, unavailable := 0, 0, 0
	for _, w := range c.placement.Workers() {
		switch {
		case w.Unavailable != "":
			unavailable++
		case w.Draining:
			draining++
		default:
			takes++
		}
	}
	gauge("doze_workers", float64(takes), "taking_calls")
	gauge("doze_workers", float64(draining), "draining")
	gauge("doze_workers", float64(unavailable), "unavailable")

	gauge("doze_storage_healthy", number(c.storage.Err() == nil))
	m.streams(gauge)
}

// streams asks the broker.
func (m *metrics) streams(gauge func(name string, value float64, labels ...string)) {
	c := m.control
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	waiting, err := c.events.Waiting(ctx)
	if err == nil {
		gauge("doze_events", float64(waiting.Ready), "ready")
		gauge("doze_events", float64(waiting.Delayed), "delayed")
		gauge("doze_events_bytes", float64(waiting.Bytes))
	}
	streams, listErr := c.conn.StreamStats(ctx)
	for _, s := range streams {
		gauge("doze_stream_messages", float64(s.Messages), s.Name)
		gauge("doze_stream_bytes", float64(s.Bytes), s.Name)
		gauge("doze_stream_consumers", float64(s.Consumers), s.Name)
		if s.Name == bus.UsageStream {
			gauge("doze_usage_lag_batches", float64(s.Messages))
		}
	}
	for _, err := range []error{err, listErr} {
		if err != nil {
			c.config.Logger.Warn("metrics lack the streams", "err", err)
		}
	}
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
