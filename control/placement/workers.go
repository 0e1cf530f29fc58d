package placement

import (
	"context"
	"slices"
	"strings"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Workers are the last reports of the workers that are alive, by name.
func (p *Placement) Workers() []*dozev1.WorkerReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*dozev1.WorkerReport
	for _, w := range p.workers {
		if w.alive() {
			all = append(all, w.report)
		}
	}
	slices.SortFunc(all, func(a, b *dozev1.WorkerReport) int { return strings.Compare(a.Worker, b.Worker) })
	return all
}

// Runtimes are the runtimes that any live worker has, by name, each once.
func (p *Placement) Runtimes() []*dozev1.Runtime {
	byName := map[string]*dozev1.Runtime{}
	for _, w := range p.Workers() {
		for _, r := range w.Runtimes {
			byName[r.Name] = r
		}
	}
	all := make([]*dozev1.Runtime, 0, len(byName))
	for _, r := range byName {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *dozev1.Runtime) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Runs says whether any live worker has the runtime. While no worker is known it says yes: the
// call waits for one.
func (p *Placement) Runs(runtime string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	alive := false
	for _, w := range p.workers {
		if w.alive() {
			if w.has(runtime) {
				return true
			}
			alive = true
		}
	}
	return !alive
}

// WaitWorker returns when a live worker takes calls, or with ctx's error.
func (p *Placement) WaitWorker(ctx context.Context) error {
	for {
		p.mu.Lock()
		changed, ready := p.changed, false
		for _, w := range p.workers {
			ready = ready || w.takes()
		}
		p.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
