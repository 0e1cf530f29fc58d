// Package worker assembles a worker node: the sandbox, the code cache, the pool of instances, the
// meter and the heartbeat.
//
// It only ties parts together and ends them in the right order. A worker keeps no truth but the
// usage that the ledger has not taken yet; it must not know control nodes other than through the
// bus.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/bus/gossip"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/capacity"
	"github.com/doze-run/doze/worker/code"
	"github.com/doze-run/doze/worker/instance"
	"github.com/doze-run/doze/worker/logship"
	"github.com/doze-run/doze/worker/meter"
	"github.com/doze-run/doze/worker/pool"
	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux"
	"github.com/doze-run/doze/worker/sandbox/process"
)

const (
	// heartbeat is how often a worker reports.
	heartbeat = 250 * time.Millisecond
	// measureEvery beats the worker looks at what its instances use.
	measureEvery = 2
	// codeCacheBytes bounds the unpacked packages that are kept though nobody uses them.
	codeCacheBytes = 8 << 30
	// shipLimit is how long a worker that closes waits for its last usage to be in the ledger. What is
	// not, because nothing can be stored, stays in its journal for the next start.
	shipLimit = 10 * time.Second
	// startsPerCPU is how many instances may start at once for each CPU.
	startsPerCPU = 4
)

// Config is what a worker is made of. The caller has locked DataDir.
type Config struct {
	Name    string
	DataDir string
	// Home is the control node in this process; nil: Cluster.
	Home *Home
	// Cluster is how a worker of its own finds control nodes.
	Cluster *Cluster
	// Sandbox is "linux" or "process". A sandbox that cannot be had is an error: a weaker one is never
	// chosen instead.
	Sandbox string
	// IdleTimeout is how long an instance stays warm after its last call.
	IdleTimeout time.Duration
	// NoParking starts every instance from nothing.
	NoParking bool
	// MemoryBytes is what all instances together may use; 0 takes what the machine has, less a reserve.
	MemoryBytes int64
	// Overcommit bounds the sum of the instances' limits, as a multiple of MemoryBytes; 0 does not.
	Overcommit float64
	HardCPU    bool
	Region     string
	// Metrics is where this worker serves /metrics and /healthz, for a worker in a process of its own. It is the
	// worker's from here on; nil for nowhere.
	Metrics net.Listener
	Logger  *slog.Logger
	// EgressRange is where instances that reach outside have their addresses; zero is 198.18.0.0/15. DenyEgress is
	// what they do not reach, AllowEgress what they reach although it is private.
	EgressRange             netip.Prefix
	DenyEgress, AllowEgress []netip.Prefix
}

// Worker is a running worker node.
type Worker struct {
	config   Config
	epoch    string
	conn     *bus.Conn // to the durable plane
	mesh     *bus.Mesh
	members  *gossip.Members // nil in one process with the control node
	sandbox  sandbox.Sandbox
	found    []runtimes.Runtime
	cache    *code.Cache
	capacity *capacity.Capacity
	meter    *meter.Meter
	pool     *pool.Pool
	parking  *parking
	metrics  *metrics
	options  instance.Options
	drain    draining
	failed   chan error

	stop    context.CancelFunc
	running sync.WaitGroup
	// stopMetrics comes last: a worker that drains is watched.
	stopMetrics func()
	closers     []func(context.Context) error
}

// Open starts a worker: it ends what a dead predecessor of the same folder left, then takes calls.
// On an error nothing is left running.
func Open(ctx context.Context, config Config) (_ *Worker, err error) {
	w := &Worker{config: config, drain: newDraining(), failed: make(chan error, 1), stop: func() {}, stopMetrics: func() {}}
	if config.Metrics != nil { // also when nothing comes to be served
		w.stopMetrics = func() { _ = config.Metrics.Close() }
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.unwind(context.WithoutCancel(ctx)))
		}
	}()
	// What takes time goes on at once: finding interpreters starts each of them.
	found := make(chan error, 1)
	go func() { found <- w.findRuntimes(ctx) }()
	err = w.openParts(ctx)
	if err = errors.Join(err, <-found); err != nil {
		return nil, err
	}

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop = stop
	w.metrics = newMetrics(w)
	w.pool = pool.New(pool.Config{
		Worker: config.Name, Mesh: w.mesh, Launcher: (*launcher)(w), Journal: w.meter, IdleTimeout: config.IdleTimeout,
		ConcurrentStarts: startsPerCPU * runtime.NumCPU(), Events: pool.Tee(w.metrics.events(), logEvents(config.Logger)), Logger: config.Logger,
	})
	w.openParking()
	w.onClose(w.endCalls)
	served, err := w.mesh.ServeWorker(background, config.Name, (*server)(w))
	if err != nil {
		return nil, err
	}
	w.onClose(func(context.Context) error { return served.Close() })
	if w.parking != nil {
		told, err := w.mesh.OnRuntimesInUse(w.parking.want)
		if err != nil {
			return nil, err
		}
		w.onClose(func(context.Context) error { return told.Close() })
	}
	w.running.Go(func() { w.beat(background) })
	w.serveMetrics()
	return w, nil
}

func (w *Worker) onClose(f func(context.Context) error) { w.closers = append(w.closers, f) }

func (w *Worker) dir(name string) string { return filepath.Join(w.config.DataDir, name) }

func (w *Worker) findRuntimes(ctx context.Context) error {
	found, err := runtimes.Discover(ctx)
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	w.found = found
	if err := runtimes.Install(ctx, w.dir("runtime"), found); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	return nil
}

func (w *Worker) openParts(ctx context.Context) error {
	var err error
	if err := os.MkdirAll(w.config.DataDir, 0o711); err != nil {
		return fmt.Errorf("worker: data folder: %w", err)
	}
	if w.sandbox, err = openSandbox(w.config, w.dir("sandbox")); err != nil {
		return err
	}
	w.onClose(func(context.Context) error { return w.sandbox.Close() })
	for _, line := range w.sandbox.Missing() {
		w.config.Logger.Warn("the sandbox lacks a wall", "missing", line)
	}
	if err := w.openBus(ctx); err != nil {
		return err
	}
	if w.cache, err = code.Open(code.Config{
		Dir: w.dir("code"), MaxBytes: codeCacheBytes, Store: objects{w.conn.Code()}, Logger: w.config.Logger,
	}); err != nil {
		return err
	}
	w.onClose(func(context.Context) error { return w.cache.Close() })
	if w.meter, err = meter.Open(meter.Config{Dir: w.dir("journal"), Stream: w.conn.Usage(), Logger: w.config.Logger}); err != nil {
		return err
	}
	w.onClose(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, shipLimit)
		defer cancel()
		return w.meter.Close(ctx)
	})
	if most := capacity.Default(); w.config.MemoryBytes > most {
		w.config.Logger.Warn("--memory is more than this machine can give to instances: what it really has left counts, too",
			"memory", w.config.MemoryBytes, "machine", most)
	}
	w.capacity = capacity.New(capacity.Config{TotalBytes: w.config.MemoryBytes, Overcommit: w.config.Overcommit})
	return w.openLogs()
}

func (w *Worker) openLogs() error {
	logs, err := w.conn.Logs()
	if err != nil {
		return err
	}
	w.onClose(logs.Close)
	shipper := logship.Open(logship.Config{Publisher: logs, Logger: w.config.Logger})
	w.onClose(shipper.Close)
	w.options = instance.Options{
		Sandbox: w.sandbox, Logs: shipper, Logger: w.config.Logger, RuntimeDir: w.dir("runtime"), Region: w.config.Region,
		HardCPU: w.config.HardCPU, FreezeAfter: instance.DefaultFreezeAfter,
	}
	return nil
}

func openSandbox(config Config, dir string) (sandbox.Sandbox, error) {
	switch config.Sandbox {
	case "linux":
		s, err := linux.New(linux.Options{DataDir: dir, Logger: config.Logger, EgressRange: config.EgressRange,
			DenyEgress: config.DenyEgress, AllowEgress: config.AllowEgress})
		if err != nil {
			return nil, fmt.Errorf("worker: the linux sandbox cannot be had here: %w. "+
				"`doze doctor` says what is missing and how to get it; run as root, or, for functions that you trust as yourself, with --sandbox process", err)
		}
		return s, nil
	case "process":
		s, err := process.New(process.Options{DataDir: dir, Logger: config.Logger})
		if err != nil {
			return nil, fmt.Errorf("worker: %w", err)
		}
		return s, nil
	}
	return nil, fmt.Errorf("worker: no sandbox is called %q (linux, process)", config.Sandbox)
}

// beat reports until ctx ends, and takes note of what the instances use.
func (w *Worker) beat(ctx context.Context) {
	ticker := time.NewTicker(heartbeat)
	defer ticker.Stop()
	for beats := 1; ; beats++ {
		if beats%measureEvery == 0 {
			w.pool.Measure()
		}
		w.tell()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (w *Worker) tell() {
	if err := w.mesh.Report(w.report()); err != nil {
		w.config.Logger.Warn("heartbeat", "err", err)
	}
}

func (w *Worker) report() *dozev1.WorkerReport {
	report := &dozev1.WorkerReport{
		Worker: w.config.Name, Epoch: w.meter.Epoch(), Draining: w.isDraining(), Drained: w.isDrained(),
		MemoryTotalBytes: w.capacity.Total(), MemoryFreeBytes: w.capacity.Free(),
		Hosted: w.pool.Hosted(), Sandbox: w.sandbox.Name(), Missing: w.sandbox.Missing(),
		Parked: w.parking.report(),
	}
	if err := w.meter.Healthy(); err != nil {
		report.Unavailable = err.Error()
	}
	for _, r := range w.found {
		report.Runtimes = append(report.Runtimes, &dozev1.Runtime{Name: r.Name, Path: r.Path, Version: r.Version})
	}
	return report
}

// Close drains the worker: it takes nothing new, lets running calls end until ctx does, ends the
// instances and ships what they used. While calls run it answers as before.
func (w *Worker) Close(ctx context.Context) error {
	return errors.Join(w.endCalls(ctx), w.unwind(ctx))
}

func (w *Worker) unwind(ctx context.Context) error {
	w.stop()
	w.running.Wait()
	var failures []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		failures = append(failures, w.closers[i](ctx))
	}
	w.closers = nil
	w.stopMetrics()
	return errors.Join(failures...)
}
