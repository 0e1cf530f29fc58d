// Package placement knows the workers and finds one for an incarnation whose calls nobody takes.
//
// It keeps no durable state: what it knows comes from the workers' reports, and what it decides
// are requests to host, which a worker may refuse. It must not know HTTP, Raft or what a function
// does.
package placement

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/doze-run/doze/bus"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// askAgain is how long after a request to host the same queue is not asked for again.
	askAgain = 25 * time.Millisecond
	// addHost is how long calls may wait although a worker hosts their queue before another worker
	// is asked too.
	addHost = 200 * time.Millisecond
	// askLimit bounds one request to host.
	askLimit = 2 * time.Second
	// silence is after what time without a report a worker is not asked any more.
	silence = time.Second
	// forgetQueue is after what time without a wake a queue's record is dropped.
	forgetQueue = time.Minute
)

// Hoster asks a worker to host; package bus implements it.
type Hoster interface {
	AskHost(ctx context.Context, worker string, request *dozev1.HostRequest) (*dozev1.HostReply, error)
}

// Specer is the tag of a wake: it tells what to host.
type Specer interface {
	Spec() *dozev1.FunctionSpec
}

// Placement is one control node's view of the workers. Its methods may be called from many
// goroutines.
type Placement struct {
	hoster Hoster
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu      sync.Mutex
	workers map[string]*worker
	queues  map[bus.QueueID]*queue
	swept   time.Time
	changed chan struct{} // closed and replaced at each report
}

type worker struct {
	report *dozev1.WorkerReport
	seen   time.Time
	full   time.Time // when it last refused for lack of memory
}

// queue is what is known of one incarnation that was woken of late.
type queue struct {
	hosts  []string
	asked  time.Time
	first  time.Time // of the wakes since the queue was last quiet
	asking bool
}

// New returns a placement that knows no worker yet. Close ends it.
func New(hoster Hoster, log *slog.Logger) *Placement {
	ctx, cancel := context.WithCancel(context.Background())
	return &Placement{
		hoster: hoster, log: log, ctx: ctx, cancel: cancel,
		workers: map[string]*worker{}, queues: map[bus.QueueID]*queue{}, changed: make(chan struct{}),
	}
}

// Close ends the requests that are under way.
func (p *Placement) Close() {
	p.cancel()
	p.asking.Wait()
}

// Report takes in a worker's heartbeat.
func (p *Placement) Report(report *dozev1.WorkerReport) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.workers[report.Worker]
	if w == nil {
		w = &worker{}
		p.workers[report.Worker] = w
	}
	w.report, w.seen = report, now
	close(p.changed)
	p.changed = make(chan struct{})
	if now.Sub(p.swept) > forgetQueue {
		p.swept = now
		maps.DeleteFunc(p.queues, func(_ bus.QueueID, q *queue) bool { return now.Sub(q.asked) > forgetQueue })
		maps.DeleteFunc(p.workers, func(_ string, w *worker) bool { return now.Sub(w.seen) > forgetQueue })
	}
}

// Wake asks a worker to host the queue unless one was asked just now. It does not wait. The tag is
// a Specer.
func (p *Placement) Wake(id bus.QueueID, tag any) {
	specer, ok := tag.(Specer)
	if !ok {
		return
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.queues[id]
	if q == nil {
		q = &queue{}
		p.queues[id] = q
	}
	if q.asking || now.Sub(q.asked) < askAgain || p.ctx.Err() != nil {
		return
	}
	if now.Sub(q.asked) > 4*askAgain {
		q.first = now
	}
	q.asked, q.asking = now, true
	p.asking.Go(func() {
		p.find(q, specer.Spec(), now)
		p.mu.Lock()
		q.asking = false
		p.mu.Unlock()
	})
}

// find asks workers in turn until one hosts the incarnation: those that hosted it before first,
// then, if there are none or they do not keep up, the better of two by free memory, and so on.
func (p *Placement) find(q *queue, spec *dozev1.FunctionSpec, now time.Time) {
	p.mu.Lock()
	hosts := slices.Clone(q.hosts)
	more := now.Sub(q.first) >= addHost
	p.mu.Unlock()
	hosting := 0
	for _, name := range hosts {
		if p.live(name) && p.ask(name, spec) {
			hosting++
			continue
		}
		p.mu.Lock()
		q.hosts = slices.DeleteFunc(q.hosts, func(other string) bool { return other == name })
		p.mu.Unlock()
	}
	if hosting > 0 && !more {
		return
	}
	for _, name := range p.candidates(spec.Runtime, hosts) {
		if p.ask(name, spec) {
			p.mu.Lock()
			q.hosts = append(q.hosts, name)
			p.mu.Unlock()
			return
		}
	}
}

func (p *Placement) ask(name string, spec *dozev1.FunctionSpec) bool {
	ctx, cancel := context.WithTimeout(p.ctx, askLimit)
	defer cancel()
	reply, err := p.hoster.AskHost(ctx, name, &dozev1.HostRequest{Spec: spec})
	if err != nil {
		if p.ctx.Err() == nil {
			p.log.Warn("ask worker to host", "worker", name, "function", spec.Function, "err", err)
		}
		return false
	}
	switch reply.Verdict {
	case dozev1.HostReply_HOSTING:
		return true
	case dozev1.HostReply_FULL:
		p.mu.Lock()
		if w := p.workers[name]; w != nil {
			w.full = time.Now()
		}
		p.mu.Unlock()
	}
	p.log.Debug("worker does not host", "worker", name, "function", spec.Function, "verdict", reply.Verdict, "reason", reply.Reason)
	return false
}

// candidates are the live workers that have the runtime and are not excluded, in the order to ask
// them: always the better of two drawn at random, by memory to spare.
func (p *Placement) candidates(runtime string, except []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for name, w := range p.workers {
		if !slices.Contains(except, name) && w.takes() && w.has(runtime) {
			names = append(names, name)
		}
	}
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for i := 0; i+1 < len(names); i++ {
		if p.workers[names[i+1]].spare() > p.workers[names[i]].spare() {
			names[i], names[i+1] = names[i+1], names[i]
		}
	}
	return names
}

func (p *Placement) live(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.workers[name]
	return w != nil && w.takes()
}

func (w *worker) alive() bool { return time.Since(w.seen) < silence }

func (w *worker) takes() bool {
	return w.alive() && !w.report.Draining && w.report.Unavailable == ""
}

func (w *worker) has(runtime string) bool {
	return slices.ContainsFunc(w.report.Runtimes, func(r *dozev1.Runtime) bool { return r.Name == runtime })
}

// spare is the memory to spare, none for a while after the worker was full.
func (w *worker) spare() int64 {
	if time.Since(w.full) < silence {
		return 0
	}
	return w.report.MemoryFreeBytes
}
