package quorum

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// rpcTimeout bounds one exchange with another node; raft allows a snapshot more, by its size.
	rpcTimeout = 5 * time.Second
	// maxConnections bounds the connections of one node, both ways; five nodes need about thirty.
	maxConnections = 256
	// idleConnections is how many connections to each node are kept.
	idleConnections = 3
)

type transport interface {
	raft.Transport
	raft.WithClose
}

// newTransport is the way to the other nodes, or, without a listener, to itself only.
func newTransport(cfg Config, logger hclog.Logger) transport {
	if cfg.Listener == nil {
		addr, t := raft.NewInmemTransport(raft.ServerAddress(cfg.NodeID))
		t.Connect(addr, t)
		return t
	}
	layer := &streamLayer{Listener: cfg.Listener, advertise: cfg.Listener.Addr(), dial: cfg.Dial,
		conns: map[*trackedConn]struct{}{}}
	if cfg.Advertise != "" {
		layer.advertise = address(cfg.Advertise)
	}
	if layer.dial == nil {
		layer.dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	config := &raft.NetworkTransportConfig{
		Stream:  layer,
		MaxPool: idleConnections,
		Timeout: rpcTimeout,
		Logger:  logger.Named("transport"),
	}
	if cfg.Resolve != nil {
		config.ServerAddressProvider = resolver(cfg.Resolve)
	}
	return &network{NetworkTransport: raft.NewNetworkTransportWithConfig(config)}
}

// network is raft's transport, whose heartbeats come to an end: raft handles them on the connections'
// goroutines, also after it was shut down, and panics when it cannot store a new term any more.
type network struct {
	*raft.NetworkTransport

	mu     sync.RWMutex // held to read while a heartbeat is handled
	closed bool
}

// SetHeartbeatHandler implements raft.Transport.
func (t *network) SetHeartbeatHandler(handle func(raft.RPC)) {
	t.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		t.mu.RLock()
		defer t.mu.RUnlock()
		if t.closed {
			rpc.Respond(nil, raft.ErrRaftShutdown)
			return
		}
		handle(rpc)
	})
}

// Close implements raft.WithClose. When it returns no heartbeat is handled.
func (t *network) Close() error {
	err := t.NetworkTransport.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	return err
}

// resolver is raft.ServerAddressProvider: it finds nodes whose address is another than the log's.
type resolver func(id string) string

func (r resolver) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if addr := r(string(id)); addr != "" {
		return raft.ServerAddress(addr), nil
	}
	return "", errors.New("quorum: address not known") // raft takes the one that it has
}

// streamLayer is raft.StreamLayer over any listener and dialer, so that TLS is the caller's matter.
// It keeps track of its connections: raft's transport, when it is closed, leaves them open.
type streamLayer struct {
	net.Listener
	advertise net.Addr
	dial      func(ctx context.Context, addr string) (net.Conn, error)

	mu     sync.Mutex
	closed bool
	conns  map[*trackedConn]struct{}
}

// trackedConn is forgotten when it is closed.
type trackedConn struct {
	net.Conn
	layer *streamLayer
}

func (c *trackedConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.conns, c)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

// Addr is the address that others use.
func (s *streamLayer) Addr() net.Addr { return s.advertise }

// Accept implements net.Listener. Connections beyond maxConnections are closed at once.
func (s *streamLayer) Accept() (net.Conn, error) {
	for {
		conn, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if tracked, err := s.track(conn); err == nil {
			return tracked, nil
		}
	}
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := s.dial(ctx, string(addr))
	if err != nil {
		return nil, err
	}
	return s.track(conn)
}

// Close implements net.Listener, and ends every connection.
func (s *streamLayer) Close() error {
	err := s.Listener.Close()
	s.mu.Lock()
	conns := s.conns
	s.conns, s.closed = nil, true
	s.mu.Unlock()
	for c := range conns {
		err = errors.Join(err, c.Conn.Close())
	}
	return err
}

// track registers a connection, or closes it when there is no room for it any more.
func (s *streamLayer) track(conn net.Conn) (net.Conn, error) {
	c := &trackedConn{Conn: conn, layer: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= maxConnections {
		return nil, errors.Join(errors.New("quorum: no more connections"), conn.Close())
	}
	s.conns[c] = struct{}{}
	return c, nil
}

// address is a net.Addr as written, name or number.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
