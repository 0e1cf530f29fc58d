package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/bus/gossip"
	"github.com/doze-run/doze/bus/nodetls"
)

const (
	// clusterShards is how many streams accepted events are spread over in a cluster: a stream whose
	// leader is lost takes nothing for a few seconds, and publishers go to another.
	clusterShards = 3
	// maxReplicas is how many copies of a stream there are at most.
	maxReplicas = 3
	// streamsRetry is how often it is tried to make the streams while the durable plane's servers find
	// one another.
	streamsRetry = 250 * time.Millisecond
	streamsTry   = 5 * time.Second
	// lookAgain is how often it is looked at what gossip has no word of.
	lookAgain = 200 * time.Millisecond
)

// Cluster is a control node's place among others. Addresses are host:port; port 0 is any free one.
type Cluster struct {
	// Name is this node's for ever.
	Name string
	// Host is what others reach all of this node's addresses by.
	Host string
	// Gossip, Calls, Streams, Routes and Raft are where it listens for the other nodes.
	Gossip, Calls, Streams, Routes, Raft string
	// Join are gossip addresses of nodes of the cluster; one that is there suffices.
	Join []string
	// Expect is how many control nodes there are in all. A new cluster begins when exactly so many see
	// one another.
	Expect int
	// Bootstrap begins a new cluster with this node alone; the others join it.
	Bootstrap bool
	// GossipKey encrypts gossip, nil for none.
	GossipKey []byte
	// TLS is this node's certificate. With it only nodes with one of the same authority connect, and
	// workers may do what workers do; nil: whoever connects may do everything.
	TLS *nodetls.Node
	// Notice is for how long a node that stops goes on taking requests while it says that it is not
	// ready: what load balancers need to look elsewhere.
	Notice time.Duration
}

// replicas is how many copies of its streams a cluster keeps.
func (c *Cluster) replicas() int {
	if c.Expect >= maxReplicas {
		return maxReplicas
	}
	return 1
}

// openCluster opens what takes a node among others: its home, gossip, the replicated state and the
// durable plane. It returns when the cluster has a leader and its streams.
func (c *Control) openCluster(ctx context.Context, background context.Context) error {
	if err := c.openHome(ctx); err != nil {
		return err
	}
	raft, err := net.Listen("tcp", c.config.Cluster.Raft)
	if err != nil {
		return fmt.Errorf("control: raft: %w", err)
	}
	if certificate := c.config.Cluster.TLS; certificate != nil {
		raft = certificate.Listen(raft, c.config.Logger, nodetls.Control)
	}
	if err := c.openMembers(raft.Addr()); err != nil {
		return errors.Join(err, raft.Close())
	}
	if err := c.answerNodes(); err != nil {
		return errors.Join(err, raft.Close())
	}
	c.running.Go(func() { c.followMembers(background) })
	state := make(chan error, 1)
	go func() { state <- c.joinState(ctx, raft) }()
	err = c.openStreams(ctx)
	return errors.Join(err, <-state)
}

// openHome starts this node's own call plane, which no other node has a part in.
func (c *Control) openHome(ctx context.Context) (err error) {
	cluster := c.config.Cluster
	for _, address := range []*string{&cluster.Calls, &cluster.Streams, &cluster.Routes} {
		if *address, err = fixedPort(*address); err != nil {
			return err
		}
	}
	dir := filepath.Join(c.config.DataDir, "calls")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("control: data folder: %w", err)
	}
	if c.calls, err = bus.StartServer(bus.ServerConfig{
		Name: cluster.Name + "-calls", StoreDir: dir, MemoryBytes: c.config.QueueBytes, SyncInterval: c.config.SyncInterval,
		Listen: cluster.Calls, Advertise: advertise(cluster.Host, cluster.Calls), TLS: cluster.TLS, Logger: c.config.Logger,
	}); err != nil {
		return err
	}
	c.onClose(c.calls.Close)
	if c.home, err = bus.ConnectHome(ctx, cluster.Name, bus.ConnConfig{Name: cluster.Name, Server: c.calls, Logger: c.config.Logger}); err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return c.home.Close() })
	if err := c.home.EnsureCallPlane(ctx, c.config.QueueBytes); err != nil {
		return err
	}
	c.mesh = bus.NewMesh(cluster.Name, c.home, cluster.TLS, c.config.Logger)
	c.onClose(func(context.Context) error { return c.mesh.Close() })
	return nil
}

func (c *Control) openMembers(raft net.Addr) error {
	cluster := c.config.Cluster
	listen, err := fixedPort(cluster.Gossip)
	if err != nil {
		return err
	}
	state := gossip.StateNew
	if has, err := hasState(c.config); err != nil {
		return err
	} else if has {
		state = gossip.StateMember
	}
	c.members, err = gossip.Open(gossip.Config{
		Self: gossip.Node{
			Name: cluster.Name, Role: gossip.Control, Host: cluster.Host, Calls: port(cluster.Calls), Streams: port(cluster.Streams),
			Routes: port(cluster.Routes), Raft: port(raft.String()), HTTP: port(c.config.HTTP.Addr().String()),
			Expect: cluster.Expect, State: state, Version: c.config.Version,
		},
		Listen: listen, Advertise: advertise(cluster.Host, listen), Join: append(c.knownPeers().gossip(), cluster.Join...),
		Key: cluster.GossipKey, Logger: c.config.Logger,
	})
	if err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return c.members.Close() })
	return nil
}

// followMembers connects to the homes that gossip names, until ctx ends.
func (c *Control) followMembers(ctx context.Context) {
	for {
		changed := c.members.Changed()
		c.mesh.SetHomes(homes(c.members.Controls()))
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func homes(nodes []gossip.Node) []bus.Home {
	var all []bus.Home
	for _, n := range nodes {
		all = append(all, bus.Home{Node: n.Name, Address: n.Addr(n.Calls), Leaving: !n.Serving})
	}
	return all
}

// openStreams starts this node's part of the durable plane, once all of its servers are known: fewer
// would make a cluster of their own. It returns when the streams are there; on a node that had them before
// at once, since a cluster that starts anew takes ten seconds to find a leader for each of them, and calls need
// none.
func (c *Control) openStreams(ctx context.Context) (err error) {
	cluster := c.config.Cluster
	hadThem := len(c.knownPeers()) > 0
	peers, err := c.waitPeers(ctx)
	if err != nil {
		return err
	}
	dir := filepath.Join(c.config.DataDir, "streams")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("control: data folder: %w", err)
	}
	config := bus.ServerConfig{
		Name: cluster.Name, StoreDir: dir, StoreBytes: c.config.StoreBytes, SyncInterval: c.config.SyncInterval,
		Listen: cluster.Streams, Advertise: advertise(cluster.Host, cluster.Streams), TLS: cluster.TLS, Streams: true, Logger: c.config.Logger,
	}
	if len(peers) > 1 {
		config.Cluster = &bus.ServerCluster{
			Name: "doze", Listen: cluster.Routes, Advertise: advertise(cluster.Host, cluster.Routes), Routes: peers.routes(),
		}
	}
	if c.streams, err = bus.StartServer(config); err != nil {
		return err
	}
	c.onClose(c.streams.Close)
	if c.conn, err = bus.Connect(ctx, bus.ConnConfig{Name: cluster.Name, Server: c.streams, Logger: c.config.Logger}); err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return c.conn.Close() })
	replicas := 1
	if len(peers) > 1 {
		replicas = min(len(peers), cluster.replicas())
	}
	streams := bus.StreamsConfig{StorageBytes: c.config.StoreBytes, Replicas: replicas, EventShards: clusterShards}
	if hadThem {
		c.running.Go(func() {
			if err := c.haveStreams(c.background, streams); err != nil && c.background.Err() == nil {
				c.config.Logger.Error("the durable plane", "err", err)
			}
		})
	} else if err := c.haveStreams(ctx, streams); err != nil {
		return err
	}
	return c.openStores(clusterShards)
}

// haveStreams returns when the streams are there, as this node is told to have them.
func (c *Control) haveStreams(ctx context.Context, streams bus.StreamsConfig) error {
	for begun := time.Now(); ; {
		try, cancel := context.WithTimeout(ctx, streamsTry)
		// The leader makes them: several at once would only slow one another.
		err := c.conn.HaveStreams(try, streams)
		if node := c.quorumNow(); node != nil && node.IsLeader() {
			err = c.conn.EnsureStreams(try, streams)
		}
		cancel()
		if err == nil {
			c.config.Logger.Info("the streams are there", "after", time.Since(begun).Round(time.Millisecond))
			return nil
		}
		c.config.Logger.Debug("the durable plane is not there yet", "err", err)
		select {
		case <-time.After(streamsRetry):
		case <-ctx.Done():
			return fmt.Errorf("control: the durable plane does not come up: %w", err)
		}
	}
}

// openStores opens what is kept on the streams.
func (c *Control) openStores(shards int) (err error) {
	c.events = c.conn.Events(shards)
	if c.logs, err = c.conn.Logs(); err != nil {
		return err
	}
	c.onClose(c.logs.Close)
	stop, err := c.conn.ServeCode()
	if err != nil {
		return err
	}
	c.onClose(func(context.Context) error { return stop() })
	return nil
}

// fixedPort replaces port 0 by a free one.
func fixedPort(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != "0" {
		return address, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", fmt.Errorf("control: find a port: %w", err)
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return net.JoinHostPort(host, port), l.Close()
}

// advertise is a listening address as others reach it.
func advertise(host, listen string) string { return net.JoinHostPort(host, strconv.Itoa(port(listen))) }

func port(address string) int {
	_, text, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(text)
	return n
}
