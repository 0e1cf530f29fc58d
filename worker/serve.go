package worker

import (
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// scrapesAtOnce and scrapeLimit bound what asking for figures can cost.
	scrapesAtOnce = 2
	scrapeLimit   = 5 * time.Second
)

// Metrics are the worker's own figures, for whoever serves them together with others'. They are without those
// of the process, which may not be the worker's alone.
func (w *Worker) Metrics() prometheus.Gatherer { return w.metrics.registry }

// serveMetrics serves them where the Config says, with the process's.
func (w *Worker) serveMetrics() {
	if w.config.Metrics == nil {
		return
	}
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{w.metrics.registry, process},
		promhttp.HandlerOpts{MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeLimit}))
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_, _ = rw.Write([]byte("{\"healthy\":true}\n"))
	})
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		if !w.takesCalls() {
			rw.WriteHeader(http.StatusServiceUnavailable)
			_, _ = rw.Write([]byte("{\"ready\":false}\n"))
			return
		}
		_, _ = rw.Write([]byte("{\"ready\":true}\n"))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 2 * scrapeLimit, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(w.config.Metrics); !errors.Is(err, http.ErrServerClosed) {
			w.config.Logger.Error("metrics are no longer served", "err", err)
		}
	}()
	w.stopMetrics = func() {
		_ = server.Close()
		<-served
	}
}

// takesCalls says whether the worker takes calls now.
func (w *Worker) takesCalls() bool { return !w.isDraining() && w.meter.Healthy() == nil }
