package quorum

import (
	"context"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// rpcTimeout bounds one exchange with another node; raft allows a snapshot more, by its size.
	rpcTimeout = 5 * time.Second
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
	layer := &streamLayer{Listener: cfg.Listener, advertise: cfg.Listener.Addr(), dial: cfg.Dial}
	if cfg.Advertise != "" {
		layer.advertise = address(cfg.Advertise)
	}
	if layer.dial == nil {
		layer.dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  layer,
		MaxPool: idleConnections,
		Timeout: rpcTimeout,
		Logger:  logger.Named("transport"),
	})
}

// streamLayer is raft.StreamLayer over any listener and dialer, so that TLS is the caller's matter.
type streamLayer struct {
	net.Listener
	advertise net.Addr
	dial      func(ctx context.Context, addr string) (net.Conn, error)
}

// Addr is the address that others use.
func (s *streamLayer) Addr() net.Addr { return s.advertise }

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.dial(ctx, string(addr))
}

// address is a net.Addr as written, name or number.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }
