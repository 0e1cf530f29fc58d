package instance

import (
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// inlinePayload is up to which size an event's payload is copied behind its head, so that both
	// leave in one write. Larger ones are written from where they are, in the background.
	inlinePayload = 16 << 10
	// writerGrace is how long an answer waits for the writer of its own event, which a client that
	// read the event has already let finish.
	writerGrace = 100 * time.Millisecond
)

// conn is one connection to the Runtime API. Its goroutine reads requests and writes their
// answers; the answer to `next` is written by whoever calls Invoke.
type conn struct {
	i   *Instance
	nc  net.Conn
	raw syscall.RawConn // nil: no write without waiting
	in  input
	req request
	bod body
	// out is what is owed to the client and not written yet. While the connection is parked it
	// belongs to whoever takes it out of i.parked: a 202 leaves together with the next event.
	out []byte
	// waiting is set from `next` until more was read, look sets late. Only the connection's goroutine uses them.
	waiting bool
	look    func(fd uintptr)
	late    time.Duration

	// sending guards what follows: the client may answer, and get its next event, before the one
	// who wrote the last is back from the kernel. It is never held while waiting for the client.
	sending sync.Mutex
	head    []byte // the event's head, and its payload when small
	try     func(fd uintptr) bool
	tried   int
	trouble error

	// Guarded by i.mu.
	parked  bool
	closing bool
	writing bool
}

func newConn(i *Instance, nc net.Conn) *conn {
	c := &conn{i: i, nc: nc, raw: rawConn(nc)}
	c.in.nc, c.in.grown = nc, &i.server.grown
	c.try = func(fd uintptr) bool {
		for {
			n, err := syscall.Write(int(fd), c.head)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			c.tried, c.trouble = max(n, 0), err
			return true // never waits
		}
	}
	c.look = func(fd uintptr) { c.late = sinceReceived(fd) }
	return c
}

// serve reads requests until the connection ends.
func (c *conn) serve() {
	for {
		n, err := c.req.parse(c.in.pending())
		if err != nil {
			c.refuse(err)
			return
		}
		if n > 0 {
			if c.waiting { // something behind `next`, which has no answer yet
				return
			}
			c.in.skip(n)
			if !c.handle() {
				return
			}
			continue
		}
		// Nothing whole is there: what is owed leaves before waiting, but not while parked.
		if !c.waiting && !c.flush() {
			return
		}
		if err := c.in.fill(); err != nil {
			if errors.Is(err, errHeadTooBig) {
				c.refuse(err)
			}
			return
		}
		if c.waiting {
			c.i.mu.Lock()
			parked := c.parked
			c.i.mu.Unlock()
			if parked {
				return
			}
			c.waiting = false
		}
	}
}

// leave takes the connection out of those that wait for an event.
func (c *conn) leave() {
	c.i.mu.Lock()
	defer c.i.mu.Unlock()
	if c.parked {
		c.parked = false
		c.i.parked = slices.DeleteFunc(c.i.parked, func(o *conn) bool { return o == c })
	}
}

func (c *conn) flush() bool {
	if len(c.out) == 0 {
		return true
	}
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return err == nil
}

// refuse answers a request that cannot be read, and ends the connection.
func (c *conn) refuse(err error) {
	if c.waiting {
		return
	}
	status := statusBadRequest
	switch {
	case errors.Is(err, errHeadTooBig):
		status = statusHeadTooBig
	case errors.Is(err, errUnsupported):
		status = statusUnimplemented
	case errors.Is(err, errVersion):
		status = statusVersion
	}
	c.out = appendError(c.out, status, "InvalidRequest", err.Error(), true)
	c.flush()
	c.closeWrite()
}

// unread is how long what has just been read lay in the socket.
func (c *conn) unread() time.Duration {
	if c.raw == nil || c.raw.Control(c.look) != nil {
		return 0
	}
	return c.late
}

// closeWrite ends our side, so that the client reads what was written before the end.
func (c *conn) closeWrite() {
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = c.nc.Close()
}

// render makes the answer to `next`, behind what is still owed. i.mu and c.sending are held and c
// just left i.parked.
func (c *conn) render(e *Event, deadline time.Time) {
	payload := eventPayload(e)
	c.head = append(c.head[:0], c.out...)
	c.out = c.out[:0]
	c.head = appendEvent(c.head, e, deadline, len(payload), c.closing)
	if len(payload) <= inlinePayload {
		c.head = append(c.head, payload...)
	}
}

// eventPayload is the event as the handler gets it: AWS takes no body for an empty object.
func eventPayload(e *Event) []byte {
	if len(e.Payload) == 0 {
		return []byte("{}")
	}
	return e.Payload
}

// send writes what render made, and gives c.sending back. It reports false when the client cannot
// have got the event. It does not wait: what does not go at once goes in the background.
func (c *conn) send(e *Event, closing bool) bool {
	payload := eventPayload(e)
	inline := len(payload) <= inlinePayload
	sent := 0
	if c.raw != nil && inline {
		err := c.raw.Write(c.try)
		if err == nil && !errors.Is(c.trouble, syscall.EAGAIN) {
			err = c.trouble
		}
		sent = c.tried
		if err != nil || sent == len(c.head) {
			c.sending.Unlock()
			if err == nil && closing {
				c.closeWrite()
			}
			return err == nil
		}
	}
	rest := net.Buffers{slices.Clone(c.head[sent:])}
	c.sending.Unlock()
	if !inline {
		rest = append(rest, payload)
	}
	w := &eventWriter{conn: c, closing: closing, done: make(chan struct{})}
	c.i.mu.Lock()
	// It came to its end meanwhile, or is about to: every process is gone.
	if c.i.event != e || !c.i.server.spawn() {
		c.i.mu.Unlock()
		_ = c.nc.Close()
		return true
	}
	c.writing = true
	c.i.writer = w
	c.i.mu.Unlock()
	go w.run(e, rest)
	return true
}

// eventWriter writes an event that did not leave at once.
type eventWriter struct {
	conn    *conn
	closing bool
	done    chan struct{}
}

func (w *eventWriter) run(e *Event, rest net.Buffers) {
	c, i := w.conn, w.conn.i
	defer i.server.running.Done()
	_, err := rest.WriteTo(c.nc)
	i.mu.Lock()
	c.writing = false
	if i.writer == w {
		i.writer = nil
	}
	i.mu.Unlock()
	close(w.done)
	switch {
	case err != nil:
		_ = c.nc.Close()
		i.deliver(e) // the client has not seen the whole event; does nothing if it came to its end
	case w.closing:
		c.closeWrite()
	}
}

// quiesce returns when nobody reads the event's payload any more. The event has been taken out.
func (i *Instance) quiesce() {
	i.mu.Lock()
	w := i.writer
	i.mu.Unlock()
	if w == nil {
		return
	}
	timer := time.NewTimer(writerGrace)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		_ = w.conn.nc.Close() // answered without having been read
		<-w.done
	}
}
