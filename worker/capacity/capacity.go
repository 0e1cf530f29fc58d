// Package capacity admits instances by the memory they really use: a worker's total is not the sum
// of the limits, which nearly no function reaches, but what runs uses, plus a reserve for what
// starts.
//
// It is arithmetic over what it is told (and one file of the kernel's, as a last guard). It must
// not know instances, queues or functions.
package capacity

import (
	"errors"
	"fmt"
	"sync"
)

// ErrFull says that there is no memory for one more instance now.
var ErrFull = errors.New("capacity: no memory to spare")

const (
	mib = int64(1) << 20
	// floor is what an instance counts for at least: the kernel's share of its namespaces, cgroups
	// and page tables is not in what is measured of it.
	floor = 4 * mib
	// firstReserve is set aside for the first instance of a kind, of which nothing is known yet.
	firstReserve = 48 * mib
	// kindsKept bounds how many kinds' peaks are remembered.
	kindsKept = 10_000
	// guard is how much memory the machine must have left besides: below it nothing is started,
	// whatever the accounts say.
	guard = 256 * mib
)

// Config says what there is.
type Config struct {
	// TotalBytes is what all instances together may use; 0 takes Default.
	TotalBytes int64
	// Overcommit bounds the sum of the limits of all instances, as a multiple of TotalBytes; 0 does
	// not bound it.
	Overcommit float64
	// Available tells how much memory the machine has left; nil asks the kernel.
	Available func() (int64, bool)
}

// Request is one instance that wants to start.
type Request struct {
	// Kind is what instances have in common from whose use the next one's is foreseen.
	Kind string
	// LimitBytes is the most it can use.
	LimitBytes int64
}

// Capacity is a worker's memory. Its methods may be called from many goroutines.
type Capacity struct {
	config Config

	mu     sync.Mutex
	used   int64            // sum of what the tokens count for
	limits int64            // sum of their limits
	peaks  map[string]int64 // most that an instance of a kind used
}

// Token is one admitted instance. Release gives its memory back, once.
type Token struct {
	capacity *Capacity
	request  Request
	counts   int64
	released bool
}

// New returns a Capacity in which nothing runs.
func New(config Config) *Capacity {
	if config.TotalBytes == 0 {
		config.TotalBytes = Default()
	}
	if config.Available == nil {
		config.Available = newAvailable().bytes
	}
	return &Capacity{config: config, peaks: map[string]int64{}}
}

// Total is what all instances together may use, in bytes.
func (c *Capacity) Total() int64 { return c.config.TotalBytes }

// Free is what of it is not spoken for.
func (c *Capacity) Free() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, c.config.TotalBytes-c.used)
}

// Take admits an instance, or answers ErrFull with what is missing.
func (c *Capacity) Take(r Request) (*Token, error) {
	available, known := c.config.Available()
	c.mu.Lock()
	defer c.mu.Unlock()
	reserve := c.reserve(r)
	switch {
	case c.used+reserve > c.config.TotalBytes:
		return nil, fmt.Errorf("%w: %d MB are in use of %d, %d more are wanted", ErrFull, c.used/mib, c.config.TotalBytes/mib, reserve/mib)
	case c.config.Overcommit > 0 && float64(c.limits+r.LimitBytes) > c.config.Overcommit*float64(c.config.TotalBytes):
		return nil, fmt.Errorf("%w: the limits of all instances would add up to more than %g times %d MB", ErrFull, c.config.Overcommit, c.config.TotalBytes/mib)
	case known && available < reserve+guard:
		return nil, fmt.Errorf("%w: the machine has only %d MB left", ErrFull, available/mib)
	}
	c.used += reserve
	c.limits += r.LimitBytes
	return &Token{capacity: c, request: r, counts: reserve}, nil
}

// reserve is what a new instance counts for until it has been measured.
func (c *Capacity) reserve(r Request) int64 {
	peak, known := c.peaks[r.Kind]
	if !known {
		peak = firstReserve
	}
	return min(r.LimitBytes, max(floor, peak))
}

// Observe tells what the instance uses now. From the first time on it counts for that, and for at
// least a floor.
func (t *Token) Observe(bytes int64) {
	if bytes <= 0 {
		return // it cannot be told
	}
	c := t.capacity
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.released {
		return
	}
	counts := max(floor, bytes)
	c.used += counts - t.counts
	t.counts = counts
	if peak, known := c.peaks[t.request.Kind]; !known || counts > peak {
		if len(c.peaks) >= kindsKept {
			clear(c.peaks)
		}
		c.peaks[t.request.Kind] = counts
	}
}

// Release gives the memory back. It may be called again.
func (t *Token) Release() {
	c := t.capacity
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.released {
		return
	}
	t.released = true
	c.used -= t.counts
	c.limits -= t.request.LimitBytes
}
