package instance

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxConnections bounds an instance's connections to its Runtime API. A client uses one or two.
	maxConnections = 16
	// lastWords is how long connections are read on after every process of the instance is gone.
	// They normally end at once.
	lastWords = time.Second
	// freeAttempts is how many connections and refused requests an instance may make for each event that it answers, and
	// attemptPause what each further one waits, one after the other: the worker's CPU time that they take is not in the
	// instance's share. A client that connects for each request and retries needs less than ten.
	freeAttempts = 256
	attemptPause = time.Millisecond
	// maxGrownBytes bounds what the buffers of an instance's connections have together above their first size. One
	// connection at a time can have the longest head there may be.
	maxGrownBytes = 2*maxHeadBytes + 64<<10
	// acceptPause keeps a listener that fails (no file descriptors left) from spinning.
	acceptPause = 10 * time.Millisecond
)

// server accepts an instance's connections and owns their goroutines.
type server struct {
	instance *Instance
	listener net.Listener
	running  sync.WaitGroup

	attempts atomic.Int64 // since the last event was answered
	pausing  sync.Mutex
	grown    atomic.Int64 // see maxGrownBytes

	mu       sync.Mutex
	conns    map[*conn]struct{}
	finished bool
}

// attempted counts a connection, a refused request or a megabyte of one, and slows an instance that makes nothing else.
func (s *server) attempted() {
	if s.attempts.Add(1) <= freeAttempts {
		return
	}
	s.pausing.Lock()
	defer s.pausing.Unlock()
	timer := time.NewTimer(attemptPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.instance.process.Done():
	}
}

// answered lets an instance that does its work begin to count anew.
func (s *server) answered() { s.attempts.Store(0) }

func (s *server) start(i *Instance, l net.Listener) {
	s.instance, s.listener = i, l
	s.conns = make(map[*conn]struct{}, 2)
	s.running.Add(1)
	go s.accept()
}

func (s *server) accept() {
	defer s.running.Done()
	for {
		nc, err := s.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || s.instance.State() == Ended {
				return
			}
			select {
			case <-s.instance.process.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		s.attempted()
		c := newConn(s.instance, nc)
		if !s.add(c) {
			_ = nc.Close() // over the bound, or too late: the client sees the connection end
			continue
		}
		go func() {
			defer s.remove(c)
			c.serve()
		}()
	}
}

func (s *server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || len(s.conns) >= maxConnections {
		return false
	}
	s.conns[c] = struct{}{}
	s.running.Add(1)
	return true
}

// spawn makes room for one more goroutine, unless finish has begun.
func (s *server) spawn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return false
	}
	s.running.Add(1)
	return true
}

func (s *server) remove(c *conn) {
	c.leave()
	c.in.shrink()
	_ = c.nc.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.running.Done()
}

// finish reads what the ended processes left on their connections, then waits for all goroutines.
func (s *server) finish() {
	_ = s.listener.Close() // the sandbox may have closed it already
	s.mu.Lock()
	s.finished = true
	until := time.Now().Add(lastWords)
	for c := range s.conns {
		_ = c.nc.SetDeadline(until)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// rawConn returns the connection's descriptor access, nil where there is none.
func rawConn(nc net.Conn) syscall.RawConn {
	if c, ok := nc.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil && nonblocking(raw) {
			return raw
		}
	}
	return nil
}
