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
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/bus/gossip"
	"github.com/doze-run/doze/control/clusterkey"
	"github.com/doze-run/doze/control/collect"
	"github.com/doze-run/doze/control/delivery"
	"github.com/doze-run/doze/control/gateway"
	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/placement"
	"github.com/doze-run/doze/control/quorum"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
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
	// aloneName is the name of a node that is all there is.
	aloneName = "control-1"
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
	// Cluster is the node's place among others; nil: it is all there is.
	Cluster *Cluster
	Logger  *slog.Logger
}

// Control is a running control node.
type Control struct {
	config Config
	begun  time.Time
	// calls is the server of this node's own call plane, home the connection to it, and mesh the call
	// plane with all its homes; streams is the server of the durable plane, and conn the connection to
	// that. Alone, one server and one connection are both.
	calls, streams *bus.Server
	home, conn     *bus.Conn
	mesh           *bus.Mesh
	members        *gossip.Members // nil alone
	quorum         *quorum.Node
	quorumOpen     atomic.Pointer[quorum.Node] // quorum, for those who ask before all is open
	founding       bool                        // this start began the cluster
	placement      *placement.Placement
	asker          *bus.Asker
	pollers        *delivery.Poller
	gateway        *gateway.Gateway
	http           *http.Server
	grpc           *grpc.Server
	logs           *bus.Logs
	events         *bus.Events
	settler        *settler
	metrics        *metrics
	storage        *storage
	newRoot        RootKey
	drain          draining
	opened         atomic.Bool // all of it, for other nodes' questions
	clusterKey     *clusterkey.Key
	restoring      sync.Mutex // held while a backup is restored by way of this node

	background context.Context // ends when the node is closed
	stop       context.CancelFunc
	running    sync.WaitGroup
	failed     chan error
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
	c := &Control{
		config: config, begun: time.Now(), drain: draining{begun: make(chan struct{})}, background: background, stop: stop, failed: make(chan error, 4),
	}
	c.metrics = newMetrics(c)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.unwind(context.Background()))
		}
	}()
	var refuse *starting
	if config.Cluster != nil {
		if err := c.checkRemoved(); err != nil {
			return nil, err
		}
		refuse = answerStarting(config.HTTP, holdCallers)
		defer refuse.end()
		err = c.openCluster(ctx, background)
	} else {
		// The state opens beside the broker: each waits for its own disk and timers.
		state := make(chan error, 1)
		go func() { state <- c.openState(ctx) }()
		err = errors.Join(c.openBus(ctx), <-state)
	}
	if c.quorum != nil {
		c.onClose(func(context.Context) error { return c.quorum.Close() })
	}
	if err != nil {
		return nil, err
	}
	if c.members != nil {
		// What is decided by the state from here on is decided by all of it.
		if err := c.waitForState(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.openParts(background); err != nil {
		return nil, err
	}
	c.opened.Store(true)
	refuse.end()
	if err := c.serve(); err != nil || c.members == nil {
		return c, err
	}
	c.members.Update(func(n *gossip.Node) { n.Serving = true })
	return c, nil
}

// setQuorum is called once, when the replicated state is open.
func (c *Control) setQuorum(node *quorum.Node) {
	c.quorum = node
	c.quorumOpen.Store(node)
}

func (c *Control) quorumNow() *quorum.Node { return c.quorumOpen.Load() }

func (c *Control) onClose(f func(context.Context) error) { c.closers = append(c.closers, f) }

func (c *Control) openState(ctx context.Context) error {
	node, err := quorum.Open(quorum.Config{NodeID: aloneName, DataDir: raftDir(c.config), Bootstrap: true, Logger: c.config.Logger})
	if err != nil {
		return err
	}
	c.setQuorum(node)
	return node.WaitReady(ctx)
}

func (c *Control) openBus(ctx context.Context) error {
	dir := filepath.Join(c.config.DataDir, "streams")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("control: data folder: %w", err)
	}
	var err error
	if c.streams, err = bus.StartServer(bus.ServerConfig{
		Name: aloneName, StoreDir: dir, MemoryBytes: c.config.QueueBytes, StoreBytes: c.config.StoreBytes,
		SyncInterval: c.config.SyncInterval, Logger: c.config.Logger,
	}); err != nil {
		return err
	}
	c.calls = c.streams
	c.onClose(c.streams.Close)
	if c.conn, err = bus.ConnectHome(ctx, aloneName, bus.ConnConfig{Name: aloneName, Server: c.streams, Logger: c.config.Logger}); err != nil {
		return err
	}
	c.home = c.conn
	c.onClose(func(context.Context) error { return c.conn.Close() })
	c.mesh = bus.NewMesh(aloneName, c.home, nil, c.config.Logger)
	if err := c.conn.EnsureCallPlane(ctx, c.config.QueueBytes); err != nil {
		return err
	}
	if err := c.conn.EnsureStreams(ctx, bus.StreamsConfig{StorageBytes: c.config.StoreBytes, Replicas: 1, EventShards: eventShards}); err != nil {
		return err
	}
	return c.openStores(eventShards)
}

// openParts makes what stands on the bus and the state. Its order is the reverse of how they end.
func (c *Control) openParts(ctx context.Context) error {
	log, state := c.config.Logger, c.quorum.Registry()
	c.storage = &storage{dir: c.config.DataDir, server: c.streams, quorum: c.quorum, revive: c.revive, fail: c.fail, log: log}

	c.placement = placement.New(c.mesh, log)
	c.onClose(func(context.Context) error { c.placement.Close(); return nil })
	reports, err := c.mesh.OnReport(c.placement.Report)
	if err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return reports.Close() })
	hints, err := c.mesh.OnHint(func(queue bus.QueueID, spec *dozev1.FunctionSpec) { c.placement.Wake(queue, hinted{spec}) })
	if err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return hints.Close() })

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
	c.settler = newSettler(c.quorum, c.conn.Objects(), c.mesh, c.waitAppliedEverywhere, log)
	c.running.Go(func() { c.settler.run(ctx) })
	c.running.Go(func() { c.quorum.Lead(ctx, c.settler.lookAfter) })
	if c.members != nil {
		c.running.Go(func() { c.quorum.Lead(ctx, c.reconcile) })
	}

	if c.asker, err = c.mesh.NewAsker(c.placement, c.config.QueueBytes); err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return c.asker.Close() })
	reserved, err := c.openSlots()
	if err != nil {
		return err
	}
	arn := func(account, name string) string { return registry.ARN(c.config.Region, account, name, "") }
	invoker := invoke.New(invoke.Config{
		Asker: c.asker, Workers: workers{c.placement, c.asker}, Acceptor: storedEvents{delivery.NewAcceptor(c.events), c.storage},
		Slots: reserved, Unreserved: state.UnreservedConcurrency, ARN: arn,
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
	c.clusterKey = clusterKey
	authenticator, err := c.authenticator(ctx, clusterKey)
	if err != nil {
		return err
	}
	c.gateway, err = gateway.Open(gateway.Config{
		Registry: state, Proposer: storedState{c.settler, c.storage}, Code: storedCode{codeStore{c.conn.Objects()}, c.storage},
		Invoker: storedCalls{invoker, c.storage}, Platform: (*platform)(c), Archive: (*archive)(c),
		Authenticator: authenticator, Cipher: clusterKey, Region: c.config.Region,
		BaseURL: "http://" + c.config.HTTP.Addr().String(), Ready: c.Ready, Confirm: c.confirm, Metrics: c.metrics.handler, Logger: log,
	})
	c.metrics.open()
	c.running.Go(func() { c.storage.run(ctx) })
	return err
}

// revive brings back what was in the memory of a broker that was restarted: the call queues and the
// calls in them.
func (c *Control) revive(ctx context.Context) error {
	if c.members != nil {
		return nil // the call plane has a server of its own
	}
	if err := c.home.EnsureCallPlane(ctx, c.config.QueueBytes); err != nil {
		return err
	}
	c.asker.Republish()
	return nil
}

// hinted is the tag of a wake that another node asked for.
type hinted struct{ spec *dozev1.FunctionSpec }

// Spec implements placement.Specer.
func (h hinted) Spec() *dozev1.FunctionSpec { return h.spec }

// workers are the workers as the invoker sees them: what wakes a queue goes to the queue's home.
type workers struct {
	*placement.Placement
	asker *bus.Asker
}

// Wake implements bus.Waker.
func (w workers) Wake(queue bus.QueueID, tag any) { w.asker.Wake(queue, tag) }

// confirmLimit bounds how long an operation waits for the leader's word.
const confirmLimit = 5 * time.Second

// confirm returns when this node knows of every change that was acknowledged before.
func (c *Control) confirm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	if err := c.quorum.Read(ctx); err != nil {
		return &gateway.Outage{Message: "The control plane has no leader that this node can reach. Try again.", Err: err}
	}
	return nil
}

// waitForState is confirm for a node that starts: the others may start, too, or choose a leader, and a node that
// gave up would make that harder for them.
func (c *Control) waitForState(ctx context.Context) error {
	for {
		err := c.confirm(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		c.config.Logger.Info("waiting for a leader of the control nodes", "err", err)
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
		}
	}
}
