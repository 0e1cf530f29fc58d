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
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// reconnectWait is how long a client waits before it tries the next server. NATS's default is 2 s,
// which would be the recovery time of every call.
const reconnectWait = 50 * time.Millisecond

// ConnConfig configures one connection. A control node and a worker own one each.
type ConnConfig struct {
	// Name is shown by NATS's own tools.
	Name string
	// Server is the embedded server to connect to in process.
	Server *Server
	Logger *slog.Logger
}

// Conn is one connection to the bus. Its methods may be called from many goroutines.
type Conn struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger

	mu    sync.Mutex
	slots map[*Slot]struct{}
}

// Connect connects, or fails with ctx.
func Connect(ctx context.Context, config ConnConfig) (*Conn, error) {
	c := &Conn{log: config.Logger, slots: make(map[*Slot]struct{})}
	options := []nats.Option{
		nats.Name(config.Name),
		nats.InProcessServer(config.Server),
		nats.ReconnectHandler(func(*nats.Conn) { c.reconnected() }),
		nats.ReconnectWait(reconnectWait),
		nats.MaxReconnects(-1),
		// In process a write cannot hang on a network, and its deadline would cost a timer each.
		nats.FlusherTimeout(0),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			config.Logger.Warn("bus", "subject", subject, "err", err)
		}),
	}
	if deadline, ok := ctx.Deadline(); ok {
		options = append(options, nats.Timeout(time.Until(deadline)))
	}
	var err error
	if c.nc, err = nats.Connect("", options...); err != nil {
		return nil, fmt.Errorf("bus: connect: %w", err)
	}
	if c.js, err = jetstream.New(c.nc); err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("bus: jetstream: %w", err)
	}
	return c, nil
}

// reconnected tells every slot that its pull is lost, by a message from itself: so that it comes in
// turn with what else comes to it.
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

// Close flushes what was published and closes the connection. Subscriptions end.
func (c *Conn) Close() error {
	err := c.nc.FlushTimeout(time.Second)
	c.nc.Close()
	if err != nil {
		return fmt.Errorf("bus: flush: %w", err)
	}
	return nil
}
