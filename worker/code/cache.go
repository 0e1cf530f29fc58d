// Package code keeps function packages on the worker: fetched by hash, verified, unpacked once,
// shared by all instances, pinned while used, collected when unused and room is wanted.
//
// It knows hashes, zips and folders. It must not know functions, instances or where packages are
// stored, and it trusts neither the store's bytes nor the zip's entries.
package code

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// MaxZipBytes bounds a package before it is unpacked. AWS takes 50 MB in a request and, from a
	// bucket, whatever unpacks to MaxUnzippedBytes.
	MaxZipBytes = 262144000
	// fetchLimit bounds one fetch, unpacking included; fetchesAtOnce bounds how many there are.
	fetchLimit    = 2 * time.Minute
	fetchesAtOnce = 4
)

var (
	// ErrPackage says that the package itself is at fault: not a zip, too large, or with an entry
	// that must not be unpacked. Fetching it again will not help.
	ErrPackage = errors.New("code: package cannot be unpacked")
	// ErrCorrupt says that the store gave other bytes than the hash and size name.
	ErrCorrupt = errors.New("code: package is not what its hash says")
	// ErrClosed says that the cache has been closed.
	ErrClosed = errors.New("code: cache is closed")
)

// Store is where packages are kept.
type Store interface {
	// GetCode opens a package by the lower-case hex SHA-256 of its zip, and tells its size in bytes.
	// ctx bounds the reading too.
	GetCode(ctx context.Context, sha256 string) (io.ReadCloser, int64, error)
}

// Config is what a Cache needs.
type Config struct {
	// Dir is the cache's own folder, and no other process's. It is made, and searchable for all: the
	// functions' uids read what is in it.
	Dir string
	// MaxBytes bounds what is kept though no instance uses it, in bytes on the disk.
	MaxBytes int64
	Store    Store
	Logger   *slog.Logger
}

// Cache is the packages of one worker. Its methods may be called from many goroutines.
type Cache struct {
	config Config
	boot   string
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	turns  chan struct{} // one for each fetch
	work   sync.WaitGroup

	mu      sync.Mutex
	entries map[string]*entry
	bytes   int64  // of all entries that are there
	clock   uint64 // counts uses
	closed  bool
}

// entry is one package: being fetched until ready is closed, then there, or gone with err.
type entry struct {
	sha256 string
	dir    string
	ready  chan struct{}
	err    error
	there  bool
	bytes  int64
	pins   int
	used   uint64
}

// Handle is a pinned package.
type Handle struct {
	// Dir is the unpacked package: an absolute path, the same for everybody, not to be written to.
	Dir string
	// Cached says that it was unpacked here before it was asked for.
	Cached bool

	cache    *Cache
	entry    *entry
	released bool // guarded by cache.mu
}

// Open makes the folder ready and takes in what an earlier process left whole.
func Open(config Config) (*Cache, error) {
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("code: %w", err)
	}
	config.Dir = dir
	c := &Cache{config: config, boot: bootID(), turns: make(chan struct{}, fetchesAtOnce), entries: make(map[string]*entry)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	waste, err := c.load()
	if err != nil {
		c.cancel()
		return nil, fmt.Errorf("code: %w", err)
	}
	c.mu.Lock()
	waste = append(waste, c.collect()...)
	c.mu.Unlock()
	c.work.Go(func() { c.remove(waste) })
	return c, nil
}

// Acquire pins a package and returns where it is unpacked, fetching it when it is not there. size is
// that of its zip in bytes. Calls for the same hash share one fetch, which goes on when a caller's
// ctx ends, for the next one. ErrPackage, ErrCorrupt, ErrClosed, ctx's error, or what the store or
// the disk said; no failure is remembered.
func (c *Cache) Acquire(ctx context.Context, sha256 string, size int64) (*Handle, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	e := c.entries[sha256]
	if e == nil {
		if !validHash(sha256) || size <= 0 || size > MaxZipBytes {
			c.mu.Unlock()
			return nil, fmt.Errorf("%w: hash %.80q, %d bytes", ErrPackage, sha256, size)
		}
		e = &entry{sha256: sha256, dir: c.taskDir(sha256), ready: make(chan struct{})}
		c.entries[sha256] = e
		c.work.Go(func() { c.bring(e, size) })
	}
	e.pins++
	there := e.there
	c.mu.Unlock()

	if !there {
		select {
		case <-e.ready:
		case <-ctx.Done():
			c.unpin(e)
			return nil, fmt.Errorf("code: %s: %w", sha256, ctx.Err())
		}
		if e.err != nil {
			return nil, e.err
		}
	}
	return &Handle{Dir: e.dir, Cached: there, cache: c, entry: e}, nil
}

// Release lets go of the package. It may be called again.
func (h *Handle) Release() {
	h.cache.mu.Lock()
	done := h.released
	h.released = true
	h.cache.mu.Unlock()
	if !done {
		h.cache.unpin(h.entry)
	}
}

func (c *Cache) unpin(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.pins--
	c.clock++
	e.used = c.clock
	if c.closed {
		return
	}
	if waste := c.collect(); len(waste) > 0 {
		c.work.Go(func() { c.remove(waste) })
	}
}

// Have reports whether the package is unpacked here.
func (c *Cache) Have(sha256 string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[sha256]
	return e != nil && e.there
}

// List returns the hashes of what is unpacked here, in no order.
func (c *Cache) List() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]string, 0, len(c.entries))
	for _, e := range c.entries {
		if e.there {
			all = append(all, e.sha256)
		}
	}
	return all
}

// Close ends running fetches, whose callers get an error, and waits for what goes on. What is
// unpacked stays, for handles that are still held and for the next Open.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	return nil
}

// bring fetches an entry and tells those who wait for it.
func (c *Cache) bring(e *entry, size int64) {
	start := time.Now()
	bytes, err := c.fetch(e.sha256, size)

	c.mu.Lock()
	var waste []string
	if err == nil {
		e.there, e.bytes = true, bytes
		c.clock++
		e.used = c.clock
		c.bytes += bytes
		waste = c.collect()
	} else {
		e.err = fmt.Errorf("code: %s: %w", e.sha256, err)
		delete(c.entries, e.sha256)
	}
	c.mu.Unlock()
	close(e.ready)

	if err == nil {
		c.config.Logger.Debug("code fetched", "sha256", e.sha256, "zip", size, "unpacked", bytes, "took", time.Since(start))
	}
	c.remove(waste)
}

// collect takes the least recently used packages out, unless they are pinned, until the rest is
// within bounds. The lock is held. It returns the folders to remove; they have been moved aside, so
// that the same package can come again at once.
func (c *Cache) collect() []string {
	var waste []string
	for c.bytes > c.config.MaxBytes {
		var oldest *entry
		for _, e := range c.entries {
			if e.there && e.pins == 0 && (oldest == nil || e.used < oldest.used) {
				oldest = e
			}
		}
		if oldest == nil {
			break // all of it is in use
		}
		aside, err := c.setAside(oldest.sha256)
		if err != nil {
			c.config.Logger.Error("cannot collect code", "sha256", oldest.sha256, "error", err)
			break
		}
		delete(c.entries, oldest.sha256)
		c.bytes -= oldest.bytes
		waste = append(waste, aside)
	}
	return waste
}

// remove deletes folders that have been set aside.
func (c *Cache) remove(waste []string) {
	for _, path := range waste {
		if err := os.RemoveAll(path); err != nil {
			c.config.Logger.Warn("cannot remove code; the next start will try again", "error", err)
		}
	}
}

// validHash reports whether s is a lower-case hex SHA-256, and so can be a folder's name.
func validHash(s string) bool {
	if len(s) != 64 {
		return false
	}
	b, err := hex.DecodeString(s)
	return err == nil && hex.EncodeToString(b) == s
}
