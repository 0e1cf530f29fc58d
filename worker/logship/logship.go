// Package logship takes the log lines of a worker's instances to the log stream, in batches: a line
// costs a copy when it is written and a share of one message later.
//
// It knows lines and batches. It must not know instances, the Runtime API or how logs are stored.
// It never makes a function wait: what it cannot keep up with it drops, and says so in the log.
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
	// flushEvery is how long a line may wait.
	flushEvery = 100 * time.Millisecond
	// functionBytes bounds what waits for one function, totalBytes for all of them: what is over
	// it is dropped, so that a function that prints without end drops its own lines first.
	functionBytes = 1 << 20
	totalBytes    = 32 << 20
	// lineOverhead is what a line counts for beside its text.
	lineOverhead = 64
)

// Publisher stores chunks; package bus implements it. It does not keep the chunk, and answers false
// when it had to drop lines.
type Publisher interface {
	PublishLogs(chunk *dozev1.LogChunk) bool
}

// Config is what a Shipper is made of.
type Config struct {
	Publisher Publisher
	Logger    *slog.Logger
}

// Shipper is a worker's log sink. Its methods may be called from many goroutines.
type Shipper struct {
	config Config

	mu      sync.Mutex
	buffers map[key]*buffer
	waiting int
	closed  bool

	stop chan struct{}
	done chan struct{}
}

type key struct{ account, function string }

// buffer is what waits for one function: the texts one after the other in one block.
type buffer struct {
	text    []byte
	lines   []line
	bytes   int
	dropped int
	at      int64
	stream  string
}

type line struct {
	at     int64
	stream string
	end    int // of its text in the block
}

// Open starts a shipper. Close ends it.
func Open(config Config) *Shipper {
	s := &Shipper{config: config, buffers: map[key]*buffer{}, stop: make(chan struct{}), done: make(chan struct{})}
	go s.run()
	return s
}

// Lines takes whole lines of one instance, without newline, in order. It keeps none of the slices.
func (s *Shipper) Lines(spec *dozev1.FunctionSpec, stream string, atMs int64, lines [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	k := key{spec.Account, spec.Function}
	b := s.buffers[k]
	if b == nil {
		b = &buffer{}
		s.buffers[k] = b
	}
	for _, text := range lines {
		size := len(text) + lineOverhead
		if b.bytes+size > functionBytes || s.waiting+size > totalBytes {
			b.dropped++
			b.at, b.stream = atMs, stream
			continue
		}
		b.text = append(b.text, text...)
		b.lines = append(b.lines, line{atMs, stream, len(b.text)})
		b.bytes += size
		s.waiting += size
	}
}

func (s *Shipper) run() {
	defer close(s.done)
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.flush()
		case <-s.stop:
			s.flush()
			return
		}
	}
}

// flush publishes everything that waits.
func (s *Shipper) flush() {
	s.mu.Lock()
	buffers := s.buffers
	s.buffers, s.waiting = make(map[key]*buffer, len(buffers)), 0
	s.mu.Unlock()
	for k, b := range buffers {
		if !s.config.Publisher.PublishLogs(b.chunk(k)) {
			s.config.Logger.Warn("log lines dropped: the log stream does not keep up", "function", k.function)
		}
	}
}

func (b *buffer) chunk(k key) *dozev1.LogChunk {
	chunk := &dozev1.LogChunk{Account: k.account, Function: k.function, Lines: make([]*dozev1.LogLine, 0, len(b.lines)+1)}
	from := 0
	for _, l := range b.lines {
		chunk.Lines = append(chunk.Lines, &dozev1.LogLine{AtMs: l.at, Stream: l.stream, Text: b.text[from:l.end:l.end]})
		from = l.end
	}
	if b.dropped > 0 {
		text := fmt.Appendf(nil, "[doze] %d log lines were dropped: this function logs more than %d KB in %v", b.dropped, functionBytes>>10, flushEvery)
		chunk.Lines = append(chunk.Lines, &dozev1.LogLine{AtMs: b.at, Stream: b.stream, Text: text})
	}
	return chunk
}

// Close publishes what waits and ends the shipper; lines that come later are dropped.
func (s *Shipper) Close(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first {
		close(s.stop)
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("logship: %w", ctx.Err())
	}
}
