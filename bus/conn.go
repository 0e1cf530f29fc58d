// Package bus is how the parts of Doze reach one another: subjects and their names, the call plane
// (publish, pull, claim, settle, answer) and the durable plane (events, usage, logs, objects).
//
// It is the only importer of NATS. It must not know what a function does, what a call costs or
// where an instance runs.
package bus

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/doze-run/doze/bus/nodetls"
)

const (
	// reconnectWait is how long a client waits before it tries the next server. NATS's default is 2 s,
	// which would be the recovery time of every call.
	reconnectWait = 50 * time.Millisecond
	// pingEvery and pingsOut find a peer that is silent without having closed its connection (a stopped
	// process, a cut cable): after (pingsOut+1) intervals the connection is dropped, by either end. In
	// process neither can happen.
	pingEvery = 500 * time.Millisecond
	pingsOut  = 2
	// writeLimit bounds one write to a peer that does not read: while it waits everybody else does who
	// has something for the same peer.
	writeLimit = time.Second
)

// ConnConfig configures one connection. A process owns one to each server it speaks to.
type ConnConfig struct {
	// Name is the node's. It is in the subjects of what a worker sends.
	Name string
	// Server is the embedded server to connect to in process; nil: URLs.
	Server *Server
	// URLs are servers of one cluster, any of which will do.
	URLs []string
	// TLS is this node's certificate, where URLs ask for one; nil for none.
	TLS    *nodetls.Node
	Logger *slog.Logger

	// node is the home that the connection leads to. Such a connection over TCP keeps nothing for
	// later while its home is away, is not waited for, and tells when it goes.
	node string
	down func(*Conn)
}

// Conn is one connection to the bus. Its methods may be called from many goroutines.
type Conn struct {
	nc   *nats.Conn
	js   jetstream.JetStream
	log  *slog.Logger
	name string
	node string
	seed uint64      // of node, for rendezvous hashing
	up   atomic.Bool // it is connected, as far as is known
	// known: it has been connected.
	known atomic.Bool
	// clustered: the streams behind it have several replicas, and for moments no leader.
	clustered bool
	// guarded: it shows a certificate, and the other side holds it to that.
	guarded bool

	mu    sync.Mutex
	slots map[*Slot]struct{}
	relay *relay // of a home
}

// Connect connects, or fails with ctx.
func Connect(ctx context.Context, config ConnConfig) (*Conn, error) {
	c := &Conn{log: config.Logger, name: config.Name, node: config.node, seed: seedOf(config.node), slots: make(map[*Slot]struct{})}
	url := strings.Join(config.URLs, ",")
	options := []nats.Option{
		nats.Name(config.Name),
		nats.CustomInboxPrefix(inbox(config.Name)),
		nats.ConnectHandler(func(*nats.Conn) {
			c.up.Store(true)
			c.known.Store(true)
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			c.up.Store(true)
			c.known.Store(true)
			c.reconnected()
		}),
		nats.DisconnectErrHandler(func(*nats.Conn, error) {
			c.up.Store(false)
			if config.down != nil {
				config.down(c)
			}
		}),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait/2, reconnectWait/2),
		nats.MaxReconnects(-1),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			config.Logger.Warn("bus", "subject", subject, "err", err)
		}),
	}
	if config.Server != nil {
		// In process a write cannot hang on a network, and its deadline would cost a timer each.
		options = append(options, nats.InProcessServer(config.Server), nats.FlusherTimeout(0))
		if config.Server.config.TLS != nil {
			options = append(options, nats.Token(config.Server.password))
		}
		url, c.clustered = "", config.Server.config.Cluster != nil
	} else {
		c.clustered = config.node == ""
		if config.TLS != nil {
			c.guarded = true
			options = append(options, nats.Secure(config.TLS.Client(nodetls.Control)), nats.TLSHandshakeFirst())
		}
		options = append(options, nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(pingsOut), nats.FlusherTimeout(writeLimit),
			nats.ReconnectErrHandler((&refusals{config: config, known: &c.known}).tell))
		if config.node != "" {
			options = append(options, nats.ReconnectBufSize(-1), nats.RetryOnFailedConnect(true), nats.Timeout(2*pingEvery))
		}
	}
	if deadline, ok := ctx.Deadline(); ok && config.node == "" {
		options = append(options, nats.Timeout(time.Until(deadline)))
	}
	var err error
	if c.nc, err = nats.Connect(url, options...); err != nil {
		said, _ := explain(err, config.TLS != nil)
		return nil, fmt.Errorf("bus: connect: %w", said)
	}
	if c.nc.IsConnected() {
		c.up.Store(true)
	}
	if c.js, err = jetstream.New(c.nc); err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("bus: jetstream: %w", err)
	}
	return c, nil
}

// reconnected tells every slot that its pull here is lost, by a message from itself: so that it comes
// in turn with what else comes to it.
func (c *Conn) reconnected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.slots {
		lost := nats.NewMsg(s.inbox)
		lost.Header.Set("Status", statusGone)
		if err := c.nc.PublishMsg(lost); err != nil {
			c.log.Warn("bus: end pull", "err", err)
		}
	}
}

// Close flushes what was published, if there is still a server that takes it, and closes the connection.
// Subscriptions end.
func (c *Conn) Close() error {
	if !c.nc.IsConnected() {
		c.nc.Close()
		return nil
	}
	err := c.nc.FlushTimeout(time.Second)
	lost := !c.nc.IsConnected() // meanwhile, as when all of a cluster stops
	c.nc.Close()
	if err != nil && !lost {
		return fmt.Errorf("bus: flush: %w", err)
	}
	return nil
}
