package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// Limits of request bodies in bytes, as AWS's messages name them.
	maxCodeRequest  = 70167211
	maxInvoke       = 6291456
	maxInvokeEvent  = 1 << 20
	maxOtherRequest = 1 << 20

	// freeBody is how large a body may be without taking from the gateway's body memory.
	freeBody = 256 << 10
	// memoryWait is how long a large body waits for memory before it is refused.
	memoryWait = 5 * time.Second

	// stallTimeout is how long a client may send nothing in the middle of a body.
	stallTimeout = 20 * time.Second
	// graceTimeout is how long a body may take however slow it comes; beyond it, minRate counts.
	graceTimeout = 30 * time.Second
	// minRate is the least average of bytes a second: the largest upload may take 72 minutes.
	minRate = 16 << 10

	// A refused body is read on for a while, so that a client that sends all before it reads
	// (most do) sees the answer and not a reset connection.
	drainBytes   = 128 << 20
	drainTimeout = 10 * time.Second
)

// bodyMemory bounds the bytes of large bodies that are held at once.
type bodyMemory struct {
	total int64
	free  *semaphore.Weighted
}

func newBodyMemory(total int64) *bodyMemory {
	// One body of the largest kind must always fit, or none could ever be taken.
	total = max(total, maxCodeRequest)
	return &bodyMemory{total: total, free: semaphore.NewWeighted(total)}
}

// take reserves n bytes, waiting for others to give back.
func (m *bodyMemory) take(ctx context.Context, n int64) error {
	if m.free.TryAcquire(n) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, memoryWait)
	defer cancel()
	if err := m.free.Acquire(ctx, n); err != nil {
		return &Fault{Code: codeTooMany, Message: messageRate, Reason: "CallerRateLimitExceeded", RetryAfter: time.Second}
	}
	return nil
}

// body is a request's body, bounded in size, memory and time. It is for one goroutine.
type body struct {
	r         *http.Request
	control   *http.ResponseController
	memory    *bodyMemory
	limit     int64
	operation string
	held      int64
	// whole is the body once prove has read it; read tells that it has.
	whole []byte
	read  bool
	// err is why decoding failed, for the error handler.
	err error
}

// bytes reads the whole body. Its error is a Fault when the client is to blame.
func (b *body) bytes() ([]byte, error) {
	if b.read {
		return b.whole, nil
	}
	if b.r.ContentLength > b.limit {
		return nil, b.tooLarge()
	}
	if b.r.ContentLength == 0 || b.r.Body == nil || b.r.Body == http.NoBody {
		return nil, nil
	}
	defer func() { _ = b.control.SetReadDeadline(time.Time{}) }()
	start := time.Now()
	size := b.r.ContentLength
	if size < 0 {
		return b.chunked(start)
	}
	if err := b.hold(size); err != nil {
		return nil, err
	}
	data := make([]byte, size)
	for n := 0; n < len(data); {
		b.pace(start, n)
		m, err := b.r.Body.Read(data[n:])
		n += m
		if err != nil && n < len(data) {
			return nil, readFault(err)
		}
	}
	return data, nil
}

// prove reads the body ahead where who calls is only known with it.
func (b *body) prove(x *exchange) error {
	if x.proof == nil {
		return nil
	}
	data, err := b.bytes()
	if err != nil {
		return err
	}
	b.whole, b.read = data, true
	return x.prove(data)
}

// chunked reads a body of unknown size.
func (b *body) chunked(start time.Time) ([]byte, error) {
	data := make([]byte, 0, 4096)
	for {
		if len(data) == cap(data) {
			grown := min(2*int64(cap(data)), b.limit+1)
			if err := b.hold(grown); err != nil {
				return nil, err
			}
			data = append(make([]byte, 0, grown), data...)
		}
		b.pace(start, len(data))
		n, err := b.r.Body.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if int64(len(data)) > b.limit {
			return nil, b.tooLarge()
		}
		switch {
		case err == io.EOF:
			return data, nil
		case err != nil:
			return nil, readFault(err)
		}
	}
}

// hold makes sure that memory for n bytes is reserved.
func (b *body) hold(n int64) error {
	if n <= freeBody || n <= b.held {
		return nil
	}
	// A body that grows takes all it may come to at once: two that wait for each other's rest
	// would both starve.
	want := n
	if b.r.ContentLength < 0 {
		want = b.limit + 1
	}
	want = min(want, b.memory.total)
	if err := b.memory.take(b.r.Context(), want-b.held); err != nil {
		return err
	}
	b.held = want
	return nil
}

// release gives the reserved memory back; the bytes must not be used after it.
func (b *body) release() {
	if b.held > 0 {
		b.memory.free.Release(b.held)
		b.held = 0
	}
}

// pace says until when the next bytes must have come.
func (b *body) pace(start time.Time, got int) {
	stall := time.Now().Add(stallTimeout)
	whole := start.Add(graceTimeout + time.Duration(got)*time.Second/minRate)
	if whole.Before(stall) {
		stall = whole
	}
	// Not every ResponseWriter can (a test's recorder): then the caller's server sets the limits.
	_ = b.control.SetReadDeadline(stall)
}

func (b *body) tooLarge() error {
	return faultf(codeTooLarge, "Request must be smaller than %d bytes for the %s operation", b.limit, b.operation)
}

// refuse answers with a fault although the body was not, or not wholly, read.
func (b *body) refuse(w http.ResponseWriter, f *Fault) {
	duplex := b.control.EnableFullDuplex() == nil
	w.Header().Set("Connection", "close")
	f.write(w)
	if !duplex || b.r.Body == nil || b.control.Flush() != nil {
		return
	}
	_ = b.control.SetReadDeadline(time.Now().Add(drainTimeout))
	_, _ = io.CopyN(io.Discard, b.r.Body, drainBytes)
}

// Read implements io.Reader for grpc-gateway, which empties bodies that an operation has no use for;
// net/http does that too, with a bound.
func (b *body) Read([]byte) (int, error) { return 0, io.EOF }

// Close implements io.Closer.
func (b *body) Close() error { return nil }

func readFault(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Fault{Code: codeRequestTimeout, Message: "The request's body came too slowly."}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &Fault{Code: codeSerialization, Message: "The request's body ended before its Content-Length."}
	default:
		return &Fault{Code: codeSerialization, Message: "The request's body could not be read: " + err.Error()}
	}
}
