package parked

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// yard is a Parker whose sandboxes are only counted, and the memory they are counted in.
type yard struct {
	mu       sync.Mutex
	takes    time.Duration // one parking
	bytes    int64         // of one
	fail     error         // of Park
	failing  error         // of Start
	full     bool
	busy     bool
	parked   []time.Time // when each was begun
	ids      map[string]bool
	alive    int
	reserved int
	atOnce   int
	most     int
}

func (y *yard) set(f func()) {
	y.mu.Lock()
	defer y.mu.Unlock()
	f()
}

type car struct {
	yard *yard
	once sync.Once
	done chan struct{}
	mu   sync.Mutex
	used int
}

func (y *yard) Park(ctx context.Context, config sandbox.ParkConfig) (sandbox.Parked, error) {
	y.mu.Lock()
	if y.ids[config.ID] {
		panic("an id was used twice")
	}
	y.ids[config.ID] = true
	y.parked = append(y.parked, time.Now())
	y.atOnce++
	y.most = max(y.most, y.atOnce)
	takes, fail := y.takes, y.fail
	y.mu.Unlock()
	defer y.set(func() { y.atOnce-- })
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if fail != nil {
		return nil, fail
	}
	y.set(func() { y.alive++ })
	return &car{yard: y, done: make(chan struct{})}, nil
}

func (c *car) Start(context.Context, sandbox.Config) (sandbox.Process, error) {
	c.mu.Lock()
	c.used++
	if c.used > 1 {
		panic("used twice")
	}
	c.mu.Unlock()
	c.end()
	c.yard.mu.Lock()
	defer c.yard.mu.Unlock()
	return nil, c.yard.failing
}

func (c *car) end() {
	c.once.Do(func() {
		c.yard.set(func() { c.yard.alive-- })
		close(c.done)
	})
}

func (c *car) Discard()              { c.end() }
func (c *car) Done() <-chan struct{} { return c.done }
func (c *car) MemoryBytes() int64    { return c.yard.bytes }

type space struct {
	yard *yard
	once sync.Once
}

func (s *space) Observe(int64) {}
func (s *space) Release() {
	s.once.Do(func() { s.yard.set(func() { s.yard.reserved-- }) })
}

func (y *yard) reserve(string, int64) (Reservation, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.full {
		return nil, sandbox.ErrNoMemory
	}
	y.reserved++
	return &space{yard: y}, nil
}

// in runs f with a pool in a bubble of time, and checks that nothing is left.
func in(t *testing.T, f func(t *testing.T, y *yard, p *Pool)) {
	synctest.Test(t, func(t *testing.T) {
		y := &yard{takes: 20 * time.Millisecond, bytes: 5 << 20, ids: map[string]bool{}}
		p := New(Config{Parker: y, Reserve: y.reserve, MaxBytes: 200 << 20, Logger: slog.New(slog.DiscardHandler), Spare: func() bool {
			y.mu.Lock()
			defer y.mu.Unlock()
			return !y.busy
		}})
		f(t, y, p)
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		y.mu.Lock()
		defer y.mu.Unlock()
		if y.alive != 0 || y.reserved != 0 {
			t.Errorf("%d parked sandboxes and %d reservations are left", y.alive, y.reserved)
		}
		if y.most > 1 {
			t.Errorf("%d were parked at once", y.most)
		}
	})
}

var python, node = Kind{Name: "python"}, Kind{Name: "node"}

func (p *Pool) stat(name string) Stat {
	for _, s := range p.Stats() {
		if s.Kind == name {
			return s
		}
	}
	return Stat{}
}

func cold(context.Context, sandbox.Config) (sandbox.Process, error) { return nil, nil }

// starts starts n of a kind at once and counts those that were parked.
func (p *Pool) starts(t *testing.T, k Kind, n int) (hits int) {
	t.Helper()
	for range n {
		_, hit, err := p.Start(t.Context(), k, sandbox.Config{}, cold)
		if err != nil {
			t.Fatal(err)
		}
		if hit {
			hits++
		}
	}
	return hits
}

// count is how many parkings were begun, and how many of what was parked is alive.
func (y *yard) count() (begun, alive int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return len(y.parked), y.alive
}
