package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// bareLoop is baseline (b), the least that can be between a function and its next event: it serves
// the Runtime API to one process, answers `next` at once with the same event, and counts the
// responses. No gateway, queue, sandbox or bill. A response and a `next` that arrive together are
// answered in one write.
type bareLoop struct {
	listener net.Listener
	event    []byte // the whole HTTP answer to `next`
	closing  chan struct{}
	serving  sync.WaitGroup

	mu      sync.Mutex
	tokens  int64         // events that may still be handed out; below 0: no bound
	changed chan struct{} // closed when tokens is set
	calls   int64
	last    time.Time // of the last response since tokens was set
	rounds  *hdrhistogram.Histogram
	failure error
	answer  []byte // the first response
	conns   map[net.Conn]struct{}

	news chan struct{} // has an element when a response or a failure came
}

var (
	runtimeAccepted = []byte("HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"status\":\"OK\"}\n")
	errRuntimeAPI   = errors.New("bare Runtime API loop")
)

func newBareLoop(payload []byte) (*bareLoop, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRuntimeAPI, err)
	}
	b := &bareLoop{listener: listener, closing: make(chan struct{}), changed: make(chan struct{}),
		rounds: newHistogram(), conns: make(map[net.Conn]struct{}), news: make(chan struct{}, 1)}
	b.event = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"+
		"Lambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\r\n"+
		"Lambda-Runtime-Deadline-Ms: %d\r\n"+
		"Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:000000000000:function:floor\r\n"+
		"Lambda-Runtime-Trace-Id: Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0\r\n"+
		"Content-Length: %d\r\n\r\n%s", time.Now().Add(time.Hour).UnixMilli(), len(payload), payload)
	b.serving.Go(b.accept)
	return b, nil
}

func (b *bareLoop) addr() string { return b.listener.Addr().String() }

// close ends the loop and waits for its goroutines.
func (b *bareLoop) close() {
	close(b.closing)
	_ = b.listener.Close()
	b.mu.Lock()
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	b.serving.Wait()
}

// allow lets the function have n more events; below 0 any number, 0 none.
func (b *bareLoop) allow(n int64) {
	b.mu.Lock()
	b.tokens, b.last = n, time.Time{}
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
}

// count is the number of responses so far, and what went wrong if anything did.
func (b *bareLoop) count() (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls, b.failure
}

// firstAnswer is a copy of the first response.
func (b *bareLoop) firstAnswer() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.answer)
}

// takeRounds merges the times between responses into h and forgets them.
func (b *bareLoop) takeRounds(h *hdrhistogram.Histogram) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.Merge(b.rounds)
	b.rounds.Reset()
}

func (b *bareLoop) accept() {
	for {
		c, err := b.listener.Accept()
		if err != nil {
			return // closed
		}
		b.mu.Lock()
		full := len(b.conns) >= 16 // a function needs one or two
		if !full {
			b.conns[c] = struct{}{}
		}
		b.mu.Unlock()
		if full {
			_ = c.Close()
			continue
		}
		b.serving.Go(func() {
			if err := b.serve(c); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				b.fail(err)
			}
			_ = c.Close()
			b.mu.Lock()
			delete(b.conns, c)
			b.mu.Unlock()
		})
	}
}

func (b *bareLoop) fail(err error) {
	select {
	case <-b.closing: // connections break then
		return
	default:
	}
	b.mu.Lock()
	if b.failure == nil {
		b.failure = fmt.Errorf("%w: %w", errRuntimeAPI, err)
	}
	b.mu.Unlock()
	b.tell()
}

func (b *bareLoop) tell() {
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// serve answers the requests of one connection.
func (b *bareLoop) serve(c net.Conn) error {
	in, out := bufio.NewReaderSize(c, maxRuntimeHead), bufio.NewWriterSize(c, maxRuntimeHead)
	for {
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		r, err := readRuntimeRequest(in)
		if err != nil {
			return err
		}
		switch r.kind {
		case runtimeNext:
			if !b.take(out) {
				return nil
			}
			_, err = out.Write(b.event)
		case runtimeResponse:
			b.responded(r.body)
			_, err = out.Write(runtimeAccepted)
		case runtimeError:
			b.fail(fmt.Errorf("the function reported an error: %.300q", r.body))
			_, err = out.Write(runtimeAccepted)
		}
		if err != nil {
			return err
		}
	}
}

// take waits for a token, after sending what is buffered if it has to wait. False: the loop ends.
func (b *bareLoop) take(out *bufio.Writer) bool {
	b.mu.Lock()
	for b.tokens == 0 {
		changed := b.changed
		b.mu.Unlock()
		if err := out.Flush(); err != nil {
			return false
		}
		select {
		case <-changed:
		case <-b.closing:
			return false
		}
		b.mu.Lock()
	}
	if b.tokens > 0 {
		b.tokens--
	}
	b.mu.Unlock()
	return true
}

func (b *bareLoop) responded(body []byte) {
	now := time.Now()
	b.mu.Lock()
	b.calls++
	if !b.last.IsZero() {
		record(b.rounds, int64(now.Sub(b.last)))
	}
	b.last = now
	if b.answer == nil {
		b.answer = bytes.Clone(body)
	}
	b.mu.Unlock()
	b.tell()
}
