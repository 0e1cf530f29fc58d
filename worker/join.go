package worker

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/bus/gossip"
	"github.com/doze-run/doze/bus/nodetls"
)

// lookAgain is how often it is looked for control nodes that gossip has no word of.
const lookAgain = time.Second

// Home is a control node in the same process.
type Home struct {
	Node string
	// Bus is its embedded server, of both planes.
	Bus *bus.Server
}

// Cluster is how a worker finds the control nodes.
type Cluster struct {
	// Host is what others reach this worker's gossip by, Gossip where that listens (host:port; port 0
	// is any free one).
	Host, Gossip string
	// Join are gossip addresses of nodes of the cluster; one that is there suffices.
	Join []string
	// GossipKey encrypts gossip, nil for none.
	GossipKey []byte
	// TLS is this node's certificate, which control nodes ask for; nil for none.
	TLS     *nodetls.Node
	Version string
}

// openBus connects to the control nodes: to the call plane of each, and to the durable plane of any. It
// waits until there is one.
func (w *Worker) openBus(ctx context.Context) (err error) {
	if home := w.config.Home; home != nil {
		w.conn, err = bus.ConnectHome(ctx, home.Node, bus.ConnConfig{Name: w.config.Name, Server: home.Bus, Logger: w.config.Logger})
		if err != nil {
			return err
		}
		w.onClose(func(context.Context) error { return w.conn.Close() })
		w.mesh = bus.NewMesh(w.config.Name, w.conn, nil, w.config.Logger)
		return nil
	}
	cluster := w.config.Cluster
	listen, err := fixedPort(cluster.Gossip)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(listen)
	if w.members, err = gossip.Open(gossip.Config{
		Self:   gossip.Node{Name: w.config.Name, Role: gossip.Worker, Host: cluster.Host, Version: cluster.Version},
		Listen: listen, Advertise: net.JoinHostPort(cluster.Host, port), Join: cluster.Join, Key: cluster.GossipKey, Logger: w.config.Logger,
	}); err != nil {
		return err
	}
	w.onClose(func(context.Context) error { return w.members.Close() })
	if w.conn, err = w.connectStreams(ctx); err != nil {
		return err
	}
	w.onClose(func(context.Context) error { return w.conn.Close() })
	w.mesh = bus.NewMesh(w.config.Name, nil, cluster.TLS, w.config.Logger)
	w.onClose(func(context.Context) error { return w.mesh.Close() })
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var following sync.WaitGroup // while the worker drains, too
	following.Go(func() { w.followMembers(background) })
	w.onClose(func(context.Context) error {
		stop()
		following.Wait()
		return nil
	})
	return nil
}

// connectStreams connects to the durable plane, when a control node that serves is there.
func (w *Worker) connectStreams(ctx context.Context) (*bus.Conn, error) {
	told := false
	for {
		changed := w.members.Changed()
		var urls []string
		for _, n := range w.members.Controls() {
			if n.Serving {
				urls = append(urls, "nats://"+n.Addr(n.Streams))
			}
		}
		if len(urls) > 0 {
			conn, err := bus.Connect(ctx, bus.ConnConfig{Name: w.config.Name, URLs: urls, TLS: w.config.Cluster.TLS, Logger: w.config.Logger})
			if err == nil {
				return conn, nil
			}
			w.config.Logger.Warn("control nodes cannot be reached yet", "servers", urls, "err", err)
		} else if !told {
			told = true
			w.config.Logger.Info("waiting for a control node that serves", "join", w.config.Cluster.Join)
		}
		select {
		case <-changed:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return nil, fmt.Errorf("worker: no control node was found: %w", ctx.Err())
		}
	}
}

// followMembers connects to the homes that gossip names, until ctx ends.
func (w *Worker) followMembers(ctx context.Context) {
	for {
		changed := w.members.Changed()
		var homes []bus.Home
		for _, n := range w.members.Controls() {
			homes = append(homes, bus.Home{Node: n.Name, Address: n.Addr(n.Calls), Leaving: !n.Serving})
		}
		w.mesh.SetHomes(homes)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// fixedPort replaces port 0 by a free one.
func fixedPort(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != "0" {
		return address, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", fmt.Errorf("worker: find a port: %w", err)
	}
	free := l.Addr().(*net.TCPAddr).Port
	return net.JoinHostPort(host, strconv.Itoa(free)), l.Close()
}
