package nodetls

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// handshakeLimit bounds how long one who connects may take to show its certificate.
	handshakeLimit = 5 * time.Second
	// maxHandshakes bounds how many may be at it at once: those beyond are closed at once, so that
	// strangers cost neither memory nor the places of nodes.
	maxHandshakes = 128
	// tellEvery is how often, at most, the log is told of those who were refused.
	tellEvery = time.Second
)

// Listen takes a listener over: what it accepts from now on has shown a certificate of one of these
// roles. Others never come out of it; the log says who they were and why. Close ends it and waits for
// the handshakes under way.
func (n *Node) Listen(inner net.Listener, log *slog.Logger, accept ...Role) net.Listener {
	ctx, stop := context.WithCancel(context.Background())
	l := &listener{Listener: inner, config: n.Server(accept...), log: log, stop: stop, known: make(chan net.Conn)}
	l.running.Go(func() { l.accept(ctx) })
	return l
}

type listener struct {
	net.Listener
	config  *tls.Config
	log     *slog.Logger
	stop    context.CancelFunc
	known   chan net.Conn // closed when the inner listener ends
	err     error         // why it ended; written before known is closed
	running sync.WaitGroup

	mu   sync.Mutex
	told time.Time
}

func (l *listener) accept(ctx context.Context) {
	room := make(chan struct{}, maxHandshakes)
	var greeting sync.WaitGroup
	defer func() {
		greeting.Wait()
		close(l.known)
	}()
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			l.err = err
			l.stop()
			return
		}
		select {
		case room <- struct{}{}:
		default:
			_ = conn.Close() // nobody who is known takes so long
			continue
		}
		greeting.Go(func() {
			defer func() { <-room }()
			l.greet(ctx, conn)
		})
	}
}

// greet hands out a connection whose other side is known, and closes any other.
func (l *listener) greet(ctx context.Context, raw net.Conn) {
	limit, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	conn := tls.Server(raw, l.config)
	if err := conn.HandshakeContext(limit); err != nil {
		_ = raw.Close()
		l.refused(raw.RemoteAddr(), err)
		return
	}
	select {
	case l.known <- conn:
	case <-ctx.Done():
		_ = conn.Close()
	}
}

func (l *listener) refused(who net.Addr, err error) {
	l.mu.Lock()
	now := time.Now()
	tell := now.Sub(l.told) >= tellEvery
	if tell {
		l.told = now
	}
	l.mu.Unlock()
	if tell {
		l.log.Warn("a connection was refused: it showed no certificate that may connect here", "from", who.String(), "to", l.Addr().String(), "err", err)
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	conn, ok := <-l.known
	if !ok {
		return nil, l.err
	}
	return conn, nil
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.stop()
	err := l.Listener.Close()
	l.running.Wait()
	return err
}
