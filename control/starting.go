package control

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// starting answers on the API's address for a node of a cluster that cannot serve yet. Its address is taken from the
// beginning: who connects waits until it serves, as after a restart among others that are there. When that takes
// longer, because it waits for the others, callers are refused, so that they can ask another node.
type starting struct {
	net.Listener
	ended  atomic.Bool
	over   chan struct{} // closed by end
	server *http.Server
	done   chan struct{}
}

// holdCallers is how long callers wait for a node that starts before they are refused.
const holdCallers = 5 * time.Second

// refusing is what it answers.
const refusing = "This control node is starting. Try again, or another one."

// answerStarting begins to refuse after a while. A listener whose Accept cannot be ended without closing it is left alone.
func answerStarting(l net.Listener, after time.Duration) *starting {
	if _, ok := l.(interface{ SetDeadline(time.Time) error }); !ok {
		return nil
	}
	s := &starting{Listener: l, over: make(chan struct{}), done: make(chan struct{})}
	s.server = &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" { // the process is there
			_, _ = io.WriteString(w, "ok\n")
			return
		}
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Amzn-Errortype", "ServiceException")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, `{"Type":"Service","message":%q}`, refusing)
	})}
	go func() {
		defer close(s.done)
		select {
		case <-time.After(after):
			_ = s.server.Serve(s)
		case <-s.over:
		}
	}()
	return s
}

// Accept implements net.Listener; after end it says that it is closed.
func (s *starting) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil && s.ended.Load() {
		err = net.ErrClosed
	}
	return c, err
}

// Close implements net.Listener: the listener is another's.
func (s *starting) Close() error { return nil }

// end hands the listener back. It may be called on nil, and again.
func (s *starting) end() {
	if s == nil || s.ended.Swap(true) {
		return
	}
	close(s.over)
	l := s.Listener.(interface{ SetDeadline(time.Time) error })
	_ = l.SetDeadline(time.Unix(1, 0)) // ends its Accept
	<-s.done
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if s.server.Shutdown(ctx) != nil { // who has connected and says nothing is not waited for
		_ = s.server.Close()
	}
	_ = l.SetDeadline(time.Time{})
}
