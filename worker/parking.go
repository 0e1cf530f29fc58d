package worker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/capacity"
	"github.com/doze-run/doze/worker/parked"
	"github.com/doze-run/doze/worker/pool"
	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
)

// parking is what the launcher asks of sandboxes that wait: it knows which function can have which. A nil
// parking has none.
type parking struct {
	worker *Worker
	pool   *parked.Pool

	mu sync.Mutex
	// shadows remembers what was found in packages, by runtime and folder.
	shadows map[[2]string]bool
}

const (
	// parkedShare of the worker's memory is what waiting sandboxes may use together.
	parkedShare = 1.0 / 32
	// shadowsKept bounds how many packages are remembered.
	shadowsKept = 10_000
)

// openParking starts the pool, where the sandbox can park and is to.
func (w *Worker) openParking() {
	parker, ok := w.sandbox.(sandbox.Parker)
	if !ok || w.config.NoParking {
		return
	}
	w.parking = &parking{worker: w, shadows: map[[2]string]bool{}, pool: parked.New(parked.Config{
		Parker: parker,
		Reserve: func(kind string, limit int64) (parked.Reservation, error) {
			token, err := w.capacity.Take(capacity.Request{Kind: "parked/" + kind, LimitBytes: limit})
			if err != nil { // not a nil token in an interface
				return nil, fmt.Errorf("%w: %w", sandbox.ErrNoMemory, err)
			}
			return token, nil
		},
		Spare:    w.pool.Spare,
		MaxBytes: int64(float64(w.capacity.Total()) * parkedShare),
		Logger:   w.config.Logger,
	})}
	w.onClose(w.parking.pool.Close)
}

// kind is what functions of a runtime, a size of memory and a network are started from: the native runtimes from the
// same empty sandbox, Node.js from one that knows how much memory it may use, those that reach outside from one that
// does already.
func (p *parking) kind(r runtimes.Runtime, memoryMB, ephemeralMB uint32, egress bool) parked.Kind {
	k := parked.Kind{Name: r.Name, Config: p.worker.options.ParkConfig(r, memoryMB, ephemeralMB, egress)}
	switch {
	case r.Native():
		k.Name = "provided"
	case !slices.Equal(r.Argv(memoryMB), r.Argv(memoryMB+1024)):
		k.Name += "/" + strconv.FormatUint(uint64(memoryMB), 10)
	}
	if egress {
		k.Name += "+egress"
	}
	return k
}

// want takes in which runtimes functions have.
func (p *parking) want(uses *dozev1.RuntimesInUse) {
	var kinds []parked.Kind
	for _, use := range uses.Uses {
		if r, ok := p.worker.runtime(use.Runtime); ok && use.MemoryMb > 0 {
			kinds = append(kinds, p.kind(r, use.MemoryMb, 0, use.Egress))
		}
	}
	p.pool.Want(kinds)
}

// use takes note of a function that will be called.
func (p *parking) use(spec *dozev1.FunctionSpec) {
	if p == nil {
		return
	}
	if r, ok := p.worker.runtime(spec.Runtime); ok {
		p.pool.Use(p.kind(r, spec.MemoryMb, spec.EphemeralStorageMb, spec.Egress))
	}
}

// shrink gives up all waiting sandboxes; it says whether there were any.
func (p *parking) shrink() bool { return p != nil && p.pool.Shrink() }

// starter is how an instance of the function is started from a waiting sandbox if there is one; nil where
// there are none. It notes in found whether there was.
func (p *parking) starter(r runtimes.Runtime, spec *dozev1.FunctionSpec, codeDir string, found *string) func(context.Context, sandbox.Config) (sandbox.Process, error) {
	*found = pool.Off
	if p == nil {
		return nil
	}
	*found = pool.Miss
	k := p.kind(r, spec.MemoryMb, spec.EphemeralStorageMb, spec.Egress)
	start := p.worker.sandbox.Start
	if !r.Adopts(spec.Environment) || p.shadowed(r, codeDir) {
		p.pool.Missed(k)
		return nil
	}
	return func(ctx context.Context, config sandbox.Config) (sandbox.Process, error) {
		process, hit, err := p.pool.Start(ctx, k, config, start)
		if hit {
			*found = pool.Hit
		}
		return process, err
	}
}

// shadowed says whether a package has modules that a waiting interpreter has imported others in place of.
func (p *parking) shadowed(r runtimes.Runtime, codeDir string) bool {
	key := [2]string{r.Name, codeDir}
	p.mu.Lock()
	known, ok := p.shadows[key]
	p.mu.Unlock()
	if ok {
		return known
	}
	found, err := r.Shadows(codeDir)
	if err != nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.shadows) >= shadowsKept {
		clear(p.shadows)
	}
	p.shadows[key] = found
	return found
}

// report is what waits, for people.
func (p *parking) report() (stocks []*dozev1.ParkedStock) {
	if p == nil {
		return nil
	}
	for _, s := range p.pool.Stats() {
		stocks = append(stocks, &dozev1.ParkedStock{
			Kind: s.Kind, Parked: uint32(s.Parked), Target: uint32(s.Target), Hits: s.Hits, Misses: s.Misses, MemoryBytes: s.Bytes,
		})
	}
	return stocks
}
