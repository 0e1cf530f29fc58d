package instance

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// maxConnections bounds an instance's connections to its Runtime API. A client uses one or two.
	maxConnections = 32
	// lastWords is how long connections are read on after every process of the instance is gone.
	// They normally end at once.
	lastWords = time.Second
	// acceptPause keeps a listener that fails (no file descriptors left) from spinning.
	acceptPause = 10 * time.Millisecond
)

// server accepts an instance's connections and owns their goroutines.
type server struct {
	instance *Instance
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex
	conns    map[*conn]struct{}
	finished bool
}

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
