package instance

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

const (
	outputChunk = 32 << 10
	// drainBytes bounds what is read on behalf of one invocation after its response; a pipe holds
	// 64 KB unless it was made larger.
	drainBytes = 1 << 20
	// drainWait bounds how long a response waits for the reader where the reader must be waited for.
	drainWait = 50 * time.Millisecond
	// dropPause slows reading while output is dropped, so that endless output costs its writer's
	// CPU and little of the worker's.
	dropPause = time.Millisecond
	// outputGrace is how long the output may stay open once every process is gone.
	outputGrace = 2 * time.Second
)

// outputChunks are read buffers; an instance that prints nothing holds none.
var outputChunks = sync.Pool{New: func() any { b := make([]byte, outputChunk); return &b }}

// outputReader reads what the function prints, always, so that printing never blocks it for long.
//
// What was printed before the response belongs to this invocation. Where the output is a file
// descriptor that can be polled, whoever handles the response reads the rest itself (drain), under
// the same lock as the reading goroutine, so nothing can be in between. Else it asks how much is
// buffered and waits for the reader to have come that far; what the reader holds in its hands at
// that moment may then count to the next invocation.
type outputReader struct {
	source sandbox.Output
	book   *logbook
	raw    syscall.RawConn // nil: only Read and Buffered
	ended  chan struct{}   // closed when the reader is done

	mu    sync.Mutex // held from a read until the logbook has what it gave
	eof   bool
	pause bool

	drainFD func(fd uintptr)
	pollFD  func(fd uintptr) bool

	consumed atomic.Int64
	waiting  atomic.Bool
	progress chan struct{}
}

func newOutputReader(source sandbox.Output, book *logbook) *outputReader {
	o := &outputReader{source: source, book: book, ended: make(chan struct{}), progress: make(chan struct{}, 1)}
	if c, ok := source.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil && nonblocking(raw) {
			o.raw = raw
		}
	}
	o.drainFD = func(fd uintptr) { o.readFD(fd) }
	o.pollFD = func(fd uintptr) bool { return o.readFD(fd) }
	return o
}

// run reads until the end of the output.
func (o *outputReader) run() {
	defer close(o.ended)
	if o.raw == nil {
		o.runPlain()
		return
	}
	for {
		err := o.raw.Read(o.pollFD)
		o.mu.Lock()
		eof, pause := o.eof, o.pause
		o.mu.Unlock()
		if err != nil || eof {
			// Lets a source that gives its descriptor back at the end see the end.
			_, _ = o.source.Read(make([]byte, 1))
			return
		}
		if pause {
			time.Sleep(dropPause)
		}
	}
}

// readFD reads until nothing is left, a bound, or the end. It reports false when the caller should
// wait for more.
func (o *outputReader) readFD(fd uintptr) (leave bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.eof {
		return true
	}
	o.pause = false
	chunk := outputChunks.Get().(*[]byte)
	defer outputChunks.Put(chunk)
	for total := 0; total < drainBytes; {
		n, err := syscall.Read(int(fd), *chunk)
		switch {
		case n > 0:
			total += n
			if o.book.output((*chunk)[:n]) {
				o.pause = true
				return true
			}
			if n < len(*chunk) {
				// A pipe gives all it has; the poller rings again for what comes later.
				continue
			}
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return false
		default: // end of file, or an error that no retry mends
			o.eof = true
			return true
		}
	}
	return true
}

func (o *outputReader) runPlain() {
	buf := make([]byte, 8<<10)
	for {
		n, err := o.source.Read(buf)
		if n > 0 {
			dropped := o.book.output(buf[:n])
			o.consumed.Add(int64(n))
			if o.waiting.Load() {
				select {
				case o.progress <- struct{}{}:
				default:
				}
			}
			if dropped {
				time.Sleep(dropPause)
			}
		}
		if err != nil {
			return
		}
	}
}

// drain returns when what was printed before the call is in the logbook, or the bound is reached.
// Only one goroutine may drain at a time.
func (o *outputReader) drain() {
	if o.raw != nil {
		// An error says that the file is closed: then there is nothing to drain.
		_ = o.raw.Control(o.drainFD)
		return
	}
	n, err := o.source.Buffered()
	if err != nil || n <= 0 {
		return
	}
	target := o.consumed.Load() + int64(n)
	o.waiting.Store(true)
	defer o.waiting.Store(false)
	timer := time.NewTimer(drainWait)
	defer timer.Stop()
	for o.consumed.Load() < target {
		select {
		case <-o.progress:
		case <-o.ended:
			return
		case <-timer.C:
			return
		}
	}
}

// finish waits for the end of the output, which comes once every process is gone. It reports false
// when the end did not come in time; the reader is then abandoned to whoever holds the other end.
func (o *outputReader) finish() bool {
	timer := time.NewTimer(outputGrace)
	defer timer.Stop()
	closer, canClose := o.source.(io.Closer)
	select {
	case <-o.ended:
		if canClose {
			_ = closer.Close() // read to its end: nothing is lost
		}
		return true
	case <-timer.C:
	}
	if canClose {
		_ = closer.Close() // wakes the reader
		<-o.ended
	}
	return canClose
}

// nonblocking says whether reads of the descriptor return at once, as those of a pollable file do.
func nonblocking(raw syscall.RawConn) bool {
	on := false
	err := raw.Control(func(fd uintptr) {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		on = errno == 0 && flags&syscall.O_NONBLOCK != 0
	})
	return err == nil && on
}
