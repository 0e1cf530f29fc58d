package instance

import (
	"time"
)

// Invoke gives the instance an event. It may be called once after each Ready and Idle, also from
// within them. When it returns nil, Done will tell what came of the event; on an error (ErrNotIdle,
// ErrEnded, ErrRequestID) the handler did not get it and will not. It does not wait for the
// runtime: an event that does not fit into the socket's buffer is written in the background.
// e must stay unchanged until Done.
func (i *Instance) Invoke(e *Event) error {
	if !validRequestID(e.RequestID) {
		return ErrRequestID
	}
	now := time.Now()
	deadline := now.Add(e.Timeout)
	i.mu.Lock()
	if i.state != Idle || !i.step(Busy) {
		state := i.state
		i.mu.Unlock()
		if state == Ending || state == Ended {
			return ErrEnded
		}
		return ErrNotIdle
	}
	i.event, i.lastID, i.pending = e, e.RequestID, false
	i.began, i.since, i.deadline = now, now, deadline
	i.mu.Unlock()

	i.calls.Add(1)
	i.deadlineAlarm.by(deadline)
	i.book.start(now, e, i.launch.Spec.Version)
	if err := i.freezer.thaw(); err != nil {
		// Nothing in there runs any more: the event ends with the instance.
		i.options.Logger.Error("instance does not thaw", "instance", i.launch.ID, "error", err)
		i.Stop()
		return nil
	}
	i.deliver(e)
	return nil
}

// deliver writes the event to a connection whose `next` waits. Without one it is left for the next
// that comes: the client may be between two connections.
func (i *Instance) deliver(e *Event) {
	for {
		i.mu.Lock()
		if i.event != e {
			i.mu.Unlock()
			return
		}
		n := len(i.parked)
		if n == 0 {
			i.pending = true
			i.mu.Unlock()
			return
		}
		c := i.parked[n-1]
		i.parked[n-1] = nil
		i.parked = i.parked[:n-1]
		c.parked = false
		closing := c.closing
		c.sending.Lock()
		c.render(e, i.deadline)
		i.mu.Unlock()
		if c.send(e, closing) {
			return
		}
		// The client went away while it waited: it has not seen the whole event and cannot have run
		// it. Its goroutine finds the connection closed.
		_ = c.nc.Close()
	}
}

// park notes that c asked for the next event, which is what Ready and Idle are made of. It reports
// false when the connection should be closed instead.
func (i *Instance) park(c *conn, closing bool) bool {
	i.turn.Lock()
	defer i.turn.Unlock()
	now := time.Now()
	i.mu.Lock()
	if i.stopping || i.state == Ending || i.state == Ended || c.writing {
		// c.writing: it asks for an event without having read the one before.
		i.mu.Unlock()
		return false
	}
	c.parked, c.closing = true, closing
	i.parked = append(i.parked, c)
	switch {
	case i.state == Starting && i.step(Idle):
		i.init, i.since = now.Sub(i.began), now
		init := i.init
		i.mu.Unlock()
		i.idle(now)
		i.handler.Ready(i, init)
	case i.state == Settled && i.step(Idle):
		i.since = now
		i.mu.Unlock()
		i.idle(now)
		i.handler.Idle(i)
	case i.state == Busy && i.pending:
		e := i.event
		i.pending = false
		i.mu.Unlock()
		i.deliver(e)
	default: // one more connection of a client that polls on several
		i.mu.Unlock()
	}
	return true
}

func (i *Instance) idle(now time.Time) {
	if i.freezer.process != nil {
		i.freezeAlarm.by(now.Add(i.freezer.after))
	}
}
