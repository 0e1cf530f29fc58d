// Package bench measures Doze beside two baselines taken in the same run: a plain net/http echo
// server called the same way, and the Runtime API floor, the same function as plain processes
// polled by a bare loop. Absolute figures drift with the machine; the ratios are what counts.
//
// It knows Doze only as its users do: a process with an address that speaks the AWS Lambda API,
// and, when it started that process itself, its CPU time and memory. It must not know how Doze
// works inside.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"

	"github.com/google/uuid"
)

// Options of a run.
type Options struct {
	// Program is the doze binary, which serves as platform and as echo server.
	Program string
	// Endpoint is a running Doze to measure; "" starts one.
	Endpoint string
	// Quick takes at most a minute and a half instead of ten.
	Quick bool
	// Rows selects rows by key; nil for all. What they are held against is measured too.
	Rows *regexp.Regexp
	// GoFunction is the Go bench function that `make bench` built.
	GoFunction string
	// Interpreter finds how "python" and "node" functions of a MemorySize run on this machine, and
	// puts the runtime client they need below dir.
	Interpreter func(ctx context.Context, language, dir string, memoryMB int) (Interpreter, error)
	// Progress takes a line for each step, for people.
	Progress io.Writer

	bounds *plan // in tests
}

// plan is how much of everything a run does: its bounds.
type plan struct {
	total                time.Duration // the whole run ends by then, rows or no rows
	rounds               int
	warmup, window, open time.Duration
	floor                time.Duration
	sleepRounds          int
	sleep                time.Duration
	prewarm              time.Duration
	cold, first          int
	pace                 time.Duration // before each cold call, so that a pool may refill
	settle               time.Duration // before idle instances are weighed
	starts               int
	idle                 time.Duration // from ready to the weighing of the platform
	crowd                int           // calls at once, and plain processes
	variant              int           // cold calls of each kind but the plain one
	rate                 time.Duration // of sustained cold starts
	thaws                int           // pairs of calls
	idleCrowd            int           // idle instances at once
	dropCaches           func() error  // empties the machine's page cache
}

func (o *Options) plan() plan {
	if o.bounds != nil {
		return *o.bounds
	}
	if o.Quick {
		return plan{total: 90 * time.Second, rounds: 1, warmup: 150 * time.Millisecond, window: 400 * time.Millisecond, open: 250 * time.Millisecond,
			floor: 300 * time.Millisecond, sleepRounds: 1, sleep: 600 * time.Millisecond, prewarm: 400 * time.Millisecond, cold: 6, first: 2,
			pace: 50 * time.Millisecond, settle: 500 * time.Millisecond, starts: 1, idle: 10 * time.Second, crowd: crowd,
			variant: 3, rate: time.Second, thaws: 25, idleCrowd: 60, dropCaches: dropCaches}
	}
	return plan{total: 590 * time.Second, rounds: 4, warmup: 250 * time.Millisecond, window: 1500 * time.Millisecond, open: time.Second,
		floor: time.Second, sleepRounds: 3, sleep: 3 * time.Second, prewarm: 1500 * time.Millisecond, cold: 40, first: 10,
		pace: 100 * time.Millisecond, settle: 3 * time.Second, starts: 5, idle: 10 * time.Second, crowd: crowd,
		variant: 16, rate: 5 * time.Second, thaws: 150, idleCrowd: idleCrowd, dropCaches: dropCaches}
}

// run is the state of one run. One goroutine uses it.
type run struct {
	*Options
	plan
	*collector
	id        string // part of the names of this run's functions
	begin     time.Time
	dir       string
	launcher  *launcher
	functions map[string]*function // by language; only those that can run here
	platform  *platform            // nil when there is none
	echo      string               // its address, "" when there is none
	floors    map[string]floor     // by the key of their row
}

// Run measures. The report is valid even with an error, as far as the run came; rows it did not
// reach say so. Everything that it started or created is gone when it returns.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	rows := catalog()
	want := wanted(rows, o.Rows)
	if len(want) == 0 {
		return nil, fmt.Errorf("no row matches %q", o.Rows)
	}
	report := &Report{Version: ReportVersion, Machine: describe(time.Now()), Quick: o.Quick}
	dir, err := os.MkdirTemp("", "doze-bench-")
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	// Functions run as other users, and the plain processes read their code from here.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	r := &run{Options: &o, plan: o.plan(), collector: newCollector(rows, want), id: uuid.NewString()[:8], begin: time.Now(), dir: dir,
		launcher: newLauncher(), functions: make(map[string]*function), floors: make(map[string]floor)}
	defer func() {
		r.launcher.close()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	bounded, cancel := context.WithTimeout(ctx, r.total)
	defer cancel()
	err = r.all(bounded)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		r.say("out of time after %v: the rows not reached say so", r.total)
		err = nil
	}
	report.Rows = r.finish()
	report.Seconds = time.Since(r.begin).Seconds()
	report.Method = r.method()
	return report, err
}

// all runs the parts, and ends what they started. An error is one that ends the run; what keeps a
// row from being measured is in the row.
func (r *run) all(ctx context.Context) (err error) {
	defer func() {
		for _, f := range r.floors {
			f.stop()
		}
		if r.platform != nil {
			err = errors.Join(err, r.platform.close(ctx))
		}
	}()
	stopEcho, err := r.startEcho(ctx)
	if err != nil {
		return err
	}
	defer stopEcho()
	parts := []func(context.Context) error{r.startPlatforms, r.prepare, r.idlePlatform, r.measureRounds, r.measureCold, r.measureThaw, r.measureVariants, r.measurePlainCrowd, r.measureScale, r.measureIdleCrowd}
	if r.Quick { // the plain processes start while the platform must be left alone anyway
		parts = []func(context.Context) error{r.startPlatforms, r.prepare, r.measurePlainCrowd, r.idlePlatform, r.measureRounds, r.measureCold, r.measureThaw, r.measureVariants, r.measureScale, r.measureIdleCrowd}
	}
	for _, part := range parts {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.Progress, "[%5.1fs] %s\n", time.Since(r.begin).Seconds(), fmt.Sprintf(format, args...))
}

// method says how the figures were taken.
func (r *run) method() []string {
	return []string{
		fmt.Sprintf("load: hand-written HTTP/1.1 client on one thread (epoll), keep-alive, on the same cores as all else; \"generator\" is its part of the machine's CPU time; payload %d bytes", len(echoPayload)),
		"calls/s, p50 and p99: closed loop, each connection sends its next call when the last was answered; open p50 and p99: calls due at a constant rate (half of what the closed loop reached), latency from when a call was due, so a stall shows in every call that was due during it",
		fmt.Sprintf("rounds: %d of %v, baselines and platform rows next to one another in each; a ratio is the median of the rounds' ratios; percentiles are of all rounds together", r.plan.rounds, r.window),
		"CPU per call: CPU clocks of the processes over the closed loop at 64 connections; \"above the floor\" is the platform process less the bare Runtime API loop",
	}
}
