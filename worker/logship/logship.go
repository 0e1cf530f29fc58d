// Package logship brings functions' log lines to the log stream: it collects them for a moment,
// by function, and publishes them in chunks.
//
// Logs are worth less than calls: memory is bounded, nobody waits for the stream, and what does not
// fit is dropped with a line that says how much. It knows lines and chunks. It must not know what
// writes them or where they are stored.
package logship

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// flushAfter is how long a line waits for others.
	flushAfter = 100 * time.Millisecond
	// chunkBytes is what a chunk holds at most, unless one line alone is longer; a function that has
	// as much is flushed at once.
	chunkBytes = 60 << 10
	// maxLineBytes bounds a line; what is longer is cut off.
	maxLineBytes = 256 << 10
	// DefaultMaxBytes bounds the lines of all functions; functionBytes what one may write in
	// flushAfter, so that no function floods the stream. A function may also have waiting at most as
	// much as is free for all, so that when some flood, the others still have room.
	DefaultMaxBytes = 32 << 20
	functionBytes   = 1 << 20
	// lineBytes is what a line takes besides its text.
	lineBytes = 48
	// retryAfter is the first wait after the stream did not take a chunk; it doubles up to
	// retryAtMost.
	retryAfter  = 100 * time.Millisecond
	retryAtMost = 2 * time.Second
)

// Publisher is the log stream.
type Publisher interface {
	// PublishLogs stores a chunk, or returns false when it has not stored it (or not all of it). It
	// does not block for long and does not keep the chunk.
	PublishLogs(*dozev1.LogChunk) bool
}

// Config is what a Shipper needs.
type Config struct {
	Publisher Publisher
	Logger    *slog.Logger
	// MaxBytes bounds the memory for lines; 0 is DefaultMaxBytes.
	MaxBytes int
}

// Shipper collects and publishes lines. Its methods may be called from many goroutines.
type Shipper struct {
	config Config
	wake   chan struct{} // there is a first line, or enough for a chunk
	stop   chan struct{} // Close was called
	abort  chan struct{} // and its ctx has ended
	done   chan struct{} // nothing runs any more
	once   sync.Once
	left   int // lines that were not published; read after done

	mu      sync.Mutex
	closed  bool
	full    bool // a function has a chunk or more waiting
	bytes   int  // of all lines held, those being published too
	waiting map[key]*buffer
	free    []*buffer // emptied, for the next function
}

type key struct{ account, function string }

// Open starts a Shipper. Close it.
func Open(config Config) *Shipper {
	if config.MaxBytes == 0 {
		config.MaxBytes = DefaultMaxBytes
	}
	s := &Shipper{
		config: config, waiting: make(map[key]*buffer),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), abort: make(chan struct{}), done: make(chan struct{}),
	}
	go s.run()
	return s
}

// Lines takes whole lines of one instance, without newline, in order; it copies them. It never
// waits for the stream. A function that has too much waiting loses lines until what it has is gone,
// and its log then says how many. After Close lines are dropped.
func (s *Shipper) Lines(spec *dozev1.FunctionSpec, stream string, atMs int64, lines [][]byte) {
	if len(lines) == 0 {
		return
	}
	k := key{spec.Account, spec.Function}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	b := s.waiting[k]
	if b == nil {
		b = s.newBuffer()
		s.waiting[k] = b
		if len(s.waiting) == 1 {
			s.wakeUp()
		}
	}
	before := b.bytes()
	for _, line := range lines {
		line = line[:min(len(line), maxLineBytes)]
		// Once it drops, it goes on until the flush, so that the line about it stands where they were.
		size := len(line) + lineBytes
		if b.dropped > 0 || b.spent+size > functionBytes || b.bytes()+size > s.config.MaxBytes-s.bytes {
			b.drop(stream, atMs, len(line))
			continue
		}
		b.add(stream, atMs, line)
		b.spent += size
		s.bytes += size
	}
	if before < chunkBytes && b.bytes() >= chunkBytes {
		s.full = true
		s.wakeUp()
	}
}

// wakeUp wakes the goroutine that publishes.
func (s *Shipper) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// newBuffer takes an emptied buffer or makes one. The lock is held.
func (s *Shipper) newBuffer() *buffer {
	if n := len(s.free); n > 0 {
		b := s.free[n-1]
		s.free = s.free[:n-1]
		return b
	}
	return &buffer{}
}

// Close publishes what is held, until ctx ends, and stops. It returns when nothing of the shipper
// runs, with an error when lines were left.
func (s *Shipper) Close(ctx context.Context) error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		close(s.stop)
		select {
		case <-s.done:
		case <-ctx.Done():
			close(s.abort)
			<-s.done
		}
	})
	if s.left > 0 {
		return fmt.Errorf("logship: %d log lines were not stored", s.left)
	}
	return nil
}
