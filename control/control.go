// Package control assembles a control node: the embedded NATS server, the replicated state, the
// gateway, placement and the delivery of events.
//
// It only ties parts together and ends them in the right order; what they do is in the packages
// below it. It must not know workers other than through the bus.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/collect"
	"github.com/doze-run/doze/control/delivery"
	"github.com/doze-run/doze/control/gateway"
	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/placement"
	"github.com/doze-run/doze/control/quorum"
	"github.com/doze-run/doze/control/registry"
)

const (
	// eventShards is how many streams accepted events are spread over. One node has nothing to spread.
	eventShards = 1
	// QueueBytes is the default bound of the call queues in memory: what waits, not what runs.
	QueueBytes = 256 << 20
	// StoreBytes is the default bound of the durable plane on disk.
	StoreBytes = 8 << 30
	// SyncInterval is the default of how much a power loss may take of what streams accepted. A
	// process that is killed loses nothing.
	SyncInterval = time.Second
	// DevAccount is the account of every caller where callers are not told apart.
	DevAccount = gateway.DevAccount
)

// Config is what a control node is made of. The caller has locked DataDir.
type Config struct {
	DataDir string
	// HTTP and GRPC are the node's from here on.
	HTTP, GRPC net.Listener
	Region     string
	Version    string
	Prices     ledger.PriceBook
	// AsyncRetryWaits are the waits before the second and the third attempt of an event.
	AsyncRetryWaits []time.Duration
	// Egress is whether functions reach outside of which nothing was said.
	Egress bool
	// QueueBytes, StoreBytes and SyncInterval: zero takes the default above.
	QueueBytes, StoreBytes int64
	SyncInterval           time.Duration
	// Auth verifies clients' signatures with the access keys of the state. Without it whoever reaches
	// the node may do everything, in DevAccount.
	Auth bool
	// RootKey is the operator's access key, in DevAccount. Left empty, one is made if there is none:
	// see NewRootKey.
	RootKey RootKey
	// ClusterKeyFile is where the key is that seals secrets in the state; "" is cluster.key in
	// DataDir. It is made if it is not there.
	ClusterKeyFile string
	Logger         *slog.Logger
}

// Control is a running control node.
type Control struct {
	config    Config
	begun     time.Time
	server    *bus.Server
	conn      *bus.Conn
	quorum    *quorum.Node
	placement *placement.Placement
	asker     *bus.Asker
	pollers   *delivery.Poller
	gateway   *gateway.Gateway
	http      *http.Server
	grpc      *grpc.Server
	logs      *bus.Logs
	events    *bus.Events
	settler   *settler
	metrics   *metrics
	storage   *storage
	newRoot   RootKey

	stop    context.CancelFunc
	running sync.WaitGroup
	failed  chan error
	// closers end what Open made, last first.
	closers []func(context.Context) error
}

// Open starts a control node. When it returns the node serves; it takes calls as soon as a worker
// has reported (see WaitWorker). On an error nothing is left running.
func Open(ctx context.Context, config Config) (_ *Control, err error) {
	if config.QueueBytes == 0 {
		config.QueueBytes = QueueBytes
	}
	if config.StoreBytes == 0 {
		config.StoreBytes = StoreBytes
	}
	if config.SyncInterval == 0 {
		config.SyncInterval = SyncInterval
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	c := &Control{config: config, begun: time.Now(), stop: stop, failed: make(chan error, 4)}
	c.metrics = newMetrics(c)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.unwind(context.Background()))
		}
	}()
	// The state opens beside the broker: each waits for its own disk and timers.
	state := make(chan error, 1)
	go func() { state <- c.openState(ctx) }()
	err = c.openBus(ctx)
	if err = errors.Join(err, <-state); err != nil {
		return nil, err
	}
	if c.quorum != nil {
		c.onClose(func(context.Context) error { return c.quorum.Close() })
	}
	if err := c.openParts(background); err != nil {
		return nil, err
	}
	return c, c.serve()
}

func (c *Control) onClose(f func(context.Context) error) { c.closers = append(c.closers, f) }

func (c *Control) openState(ctx context.Context) error {
	dir := filepath.Join(c.config.DataDir, "raft")
	node, err := quorum.Open(quorum.Config{NodeID: "control-1", DataDir: dir, Bootstrap: true, Logger: c.config.Logger})
	if err != nil {
		return err
	}
	c.quorum = node
	return node.WaitReady(ctx)
}

func (c *Control) openBus(ctx context.Context) error {
	dir := filepath.Join(c.config.DataDir, "streams")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("control: data folder: %w", err)
	}
	var err error
	if c.server, err = bus.StartServer(bus.ServerConfig{
		Name: "control-1", StoreDir: dir, MemoryBytes: c.config.QueueBytes, StoreBytes: c.config.StoreBytes,
		SyncInterval: c.config.SyncInterval, Logger: c.config.Logger,
	}); err != nil {
		return err
	}
	c.onClose(c.server.Close)
	if c.conn, err = bus.Connect(ctx, bus.ConnConfig{Name: "control-1", Server: c.server, Logger: c.config.Logger}); err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return c.conn.Close() })
	if err := c.conn.EnsureCallPlane(ctx, c.config.QueueBytes); err != nil {
		return err
	}
	if err := c.conn.EnsureStreams(ctx, bus.StreamsConfig{StorageBytes: c.config.StoreBytes, Replicas: 1, EventShards: eventShards}); err != nil {
		return err
	}
	c.events = c.conn.Events(eventShards)
	if c.logs, err = c.conn.Logs(); err != nil {
		return err
	}
	c.onClose(c.logs.Close)
	return nil
}

// openParts makes what stands on the bus and the state. Its order is the reverse of how they end.
func (c *Control) openParts(ctx context.Context) error {
	log, state := c.config.Logger, c.quorum.Registry()
	c.storage = &storage{dir: c.config.DataDir, server: c.server, quorum: c.quorum, revive: c.revive, log: log}

	c.placement = placement.New(c.conn, log)
	c.onClose(func(context.Context) error { c.placement.Close(); return nil })
	reports, err := c.conn.OnReport(c.placement.Report)
	if err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return reports.Close() })

	collector := collect.New(c.conn.Usage(), c.quorum, func(epoch string) (uint64, error) { return c.quorum.Ledger().Mark(epoch), nil }, log)
	c.running.Go(func() {
		c.quorum.Lead(ctx, func(ctx context.Context) {
			if err := collector.Run(ctx); err != nil && ctx.Err() == nil {
				c.fail(err)
			}
		})
	})
	c.running.Go(func() {
		select {
		case <-c.quorum.Failed():
			c.fail(c.quorum.Err())
		case <-ctx.Done():
		}
	})
	c.running.Go(func() { c.tellInUse(ctx) })
	c.settler = newSettler(c.quorum, c.conn.Objects(), c.conn, log)
	c.running.Go(func() { c.quorum.Lead(ctx, c.settler.run) })

	if c.asker, err = c.conn.NewAsker(c.placement, c.config.QueueBytes); err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return c.asker.Close() })
	arn := func(account, name string) string { return registry.ARN(c.config.Region, account, name, "") }
	invoker := invoke.New(invoke.Config{
		Asker: c.asker, Workers: c.placement, Acceptor: storedEvents{delivery.NewAcceptor(c.events), c.storage}, Unreserved: state.UnreservedConcurrency, ARN: arn,
		Metrics: invoke.NewMetrics(c.metrics.registry),
		Egress:  c.config.Egress,
	})
	c.pollers = delivery.Start(delivery.Config{
		Source: delivery.FromBus(c.events, 0, 0), Invoker: invoker, Resolver: &resolver{c.quorum, c.config.Region},
		Sink:       delivery.Destinations{Publisher: c.events, Drops: delivery.LogSink{Logger: log}, Logger: log},
		RetryWaits: c.config.AsyncRetryWaits, Logger: log,
	})
	c.onClose(c.pollers.Stop)

	clusterKey, err := c.openClusterKey()
	if err != nil {
		return err
	}
	authenticator, err := c.authenticator(ctx, clusterKey)
	if err != nil {
		return err
	}
	c.gateway, err = gateway.Open(gateway.Config{
		Registry: state, Proposer: storedState{c.settler, c.storage}, Code: storedCode{codeStore{c.conn.Objects()}, c.storage},
		Invoker: storedCalls{invoker, c.storage}, Platform: (*platform)(c),
		Authenticator: authenticator, Cipher: clusterKey, Region: c.config.Region,
		BaseURL: "http://" + c.config.HTTP.Addr().String(), Ready: c.Ready, Metrics: c.metrics.handler, Logger: log,
	})
	c.metrics.open()
	c.running.Go(func() { c.storage.run(ctx) })
	return err
}

// revive brings back what was in the memory of a broker that was restarted: the call queues and the
// calls in them.
func (c *Control) revive(ctx context.Context) error {
	if err := c.conn.EnsureCallPlane(ctx, c.config.QueueBytes); err != nil {
		return err
	}
	c.asker.Republish()
	return nil
}
