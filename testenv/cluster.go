package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Cluster is control nodes and workers as real processes on the loopback, each with ports and a folder of
// its own. A test ends, stops and starts them one by one; what runs at its end is ended in order.
type Cluster struct {
	Controls, Workers []*Member

	t    testing.TB
	join string // gossip address of the first control node
	ca   string // folder of its authority, "" for none
}

// Member is one process of a cluster. A control node's methods are those of a Dev.
type Member struct {
	*Dev
	Name   string
	Gossip string
	// Raft, Calls, Streams and Routes are where a control node listens for other nodes.
	Raft, Calls, Streams, Routes string
	// TLSDir is the folder with its certificate, "" for none.
	TLSDir string
}

// StartCluster starts a cluster and waits until every node is ready. The flags are the workers'.
func StartCluster(t testing.TB, controls, workers int, flags ...string) *Cluster {
	t.Helper()
	return startCluster(&Cluster{t: t}, controls, workers, flags)
}

// StartSecureCluster is StartCluster with certificates, made as an operator would.
func StartSecureCluster(t testing.TB, controls, workers int, flags ...string) *Cluster {
	t.Helper()
	return startCluster(&Cluster{t: t, ca: Authority(t)}, controls, workers, flags)
}

// Authority makes a cluster's authority and is its folder.
func Authority(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if out, err := exec.Command(Binary(t), "ca", "init", "--dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// Issue makes a node's folder with its certificate.
func Issue(t testing.TB, authority, role, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command(Binary(t), "ca", "issue", name, "--role", role, "--dir", authority, "--out", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// secure gives a node its certificate, in a cluster that has an authority.
func (c *Cluster) secure(n *Member, role string) *Member {
	if c.ca != "" {
		n.TLSDir = Issue(c.t, c.ca, role, n.Name)
		n.places = append(n.places, "--tls-dir", n.TLSDir)
	}
	return n
}

func startCluster(c *Cluster, controls, workers int, flags []string) *Cluster {
	c.t.Helper()
	t := c.t
	for i := range controls {
		c.Controls = append(c.Controls, c.control(fmt.Sprintf("c%d", i+1), controls))
	}
	for range workers {
		c.AddWorker(flags...)
	}
	t.Cleanup(c.stop)
	c.StartAll(c.Nodes()...)
	return c
}

// control makes a control node that is one of several; it does not start it.
func (c *Cluster) control(name string, expect int) *Member {
	ports := freePorts(c.t, 7)
	gossip := "127.0.0.1:" + ports[0]
	if c.join == "" {
		c.join = gossip
	}
	dir := c.t.TempDir()
	at := func(port string) string { return "127.0.0.1:" + port }
	return c.secure(&Member{Name: name, Gossip: gossip, Raft: at(ports[1]), Calls: at(ports[2]), Streams: at(ports[3]), Routes: at(ports[4]), Dev: &Dev{
		t: c.t, binary: Binary(c.t), DataDir: dir, KeyID: "AKIDTEST", Secret: "secret", verb: "control", command: exec.Command,
		places: []string{
			"--data-dir", dir, "--name", name, "--join", c.join, "--gossip-port", ports[0], "--raft-port", ports[1], "--calls-port", ports[2],
			"--streams-port", ports[3], "--routes-port", ports[4], "--listen", "127.0.0.1:" + ports[5], "--grpc-listen", "127.0.0.1:" + ports[6],
			"--bootstrap-expect", strconv.Itoa(expect),
		},
	}}, "control")
}

// AddWorker adds a worker that is not started yet.
func (c *Cluster) AddWorker(flags ...string) *Member {
	name := fmt.Sprintf("w%d", len(c.Workers)+1)
	dir := c.t.TempDir()
	w := c.secure(&Member{Name: name, Dev: &Dev{
		t: c.t, binary: Binary(c.t), DataDir: dir, KeyID: "AKIDTEST", Secret: "secret", verb: "worker", command: exec.Command, args: flags,
		places: []string{"--data-dir", dir, "--name", name, "--join", c.join, "--gossip-port", "0"},
	}}, "worker")
	c.Workers = append(c.Workers, w)
	return w
}

// Nodes are all of them, control nodes first.
func (c *Cluster) Nodes() []*Member { return append(append([]*Member{}, c.Controls...), c.Workers...) }

// StartAll starts nodes at once and waits until each is ready.
func (c *Cluster) StartAll(nodes ...*Member) {
	c.t.Helper()
	failures := make([]error, len(nodes))
	var group sync.WaitGroup
	for i, n := range nodes {
		group.Go(func() { failures[i] = n.start() })
	}
	group.Wait()
	if err := errors.Join(failures...); err != nil {
		c.t.Fatal(err)
	}
	c.Eventually(readyLimit, "the control nodes that run see one another and all workers that run", c.whole)
}

// whole tells whether every living control node sees every living node.
func (c *Cluster) whole() bool {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	workers := 0
	for _, w := range c.Workers {
		if w.cmd != nil {
			workers++
		}
	}
	for _, n := range c.Others() {
		s := n.Status(ctx)
		serving := 0
		for _, other := range s.Nodes {
			if other.Alive && other.Serving {
				serving++
			}
		}
		if serving < len(c.Others()) || len(s.Workers) < workers {
			return false
		}
	}
	return true
}

// stop ends what runs, workers first: what they used is to be counted.
func (c *Cluster) stop() {
	for _, nodes := range [][]*Member{c.Workers, c.Controls} {
		var group sync.WaitGroup
		for _, n := range nodes {
			group.Go(func() {
				if n.cmd == nil {
					return
				}
				_ = n.Signal(syscall.SIGCONT) // it may have been stopped
				if err := n.Stop(); err != nil {
					c.t.Errorf("%s: %v", n.Name, err)
				}
			})
		}
		group.Wait()
	}
	if !c.t.Failed() {
		return
	}
	for _, n := range c.Nodes() {
		c.t.Logf("last lines of %s:\n%s", n.Name, n.Stderr())
	}
}

// Status is `doze status --json`, as one control node sees things.
type Status struct {
	Ready      bool
	Node       string
	Leader     string
	StateIndex int64
	StateHash  string
	// PendingEvents are accepted ones that have not come to their end.
	PendingEvents int64
	Nodes         []struct {
		Name                  string
		Alive, Serving, Voter bool
	}
	Workers []struct{ ID string }
}

// Status asks a control node.
func (n *Member) Status(ctx context.Context) Status {
	n.t.Helper()
	var s Status
	n.Get(ctx, "/doze/v1/status?stateHash=true", &s)
	return s
}

// Leader is the control node that leads, as a living one says.
func (c *Cluster) Leader(ctx context.Context) *Member {
	c.t.Helper()
	var leader *Member
	c.Eventually(20*time.Second, "there is a leader that lives", func() bool {
		for _, asked := range c.Controls {
			if asked.cmd == nil {
				continue
			}
			name := asked.Status(ctx).Leader
			for _, n := range c.Controls {
				if n.Name == name && n.cmd != nil {
					leader = n
					return true
				}
			}
		}
		return false
	})
	return leader
}

// Others are the living control nodes but for some.
func (c *Cluster) Others(but ...*Member) (others []*Member) {
next:
	for _, n := range c.Controls {
		for _, b := range but {
			if n == b {
				continue next
			}
		}
		if n.cmd != nil {
			others = append(others, n)
		}
	}
	return others
}

// Eventually asks until the condition holds, for at most limit.
func (c *Cluster) Eventually(limit time.Duration, what string, holds func() bool) {
	c.t.Helper()
	c.Controls[0].Eventually(limit, what, holds)
}

// SameState waits until the living control nodes have applied the same, and holds that it made the same
// state of all of them.
func (c *Cluster) SameState(ctx context.Context) {
	c.t.Helper()
	var seen []Status
	c.Eventually(20*time.Second, "all control nodes have applied the same index", func() bool {
		seen = nil
		for _, n := range c.Others() {
			seen = append(seen, n.Status(ctx))
		}
		for _, s := range seen {
			if s.StateIndex != seen[0].StateIndex {
				return false
			}
		}
		return true
	})
	for _, s := range seen {
		if s.StateHash == "" || s.StateHash != seen[0].StateHash {
			c.t.Errorf("at index %d the state of %s is %s, that of %s is %s", s.StateIndex, s.Node, s.StateHash, seen[0].Node, seen[0].StateHash)
		}
	}
}

// givenPorts are those of the clusters of this process.
var givenPorts sync.Map

// freePorts are ports that nobody listens on now, for TCP and UDP. They are below those that the kernel gives
// to whoever asks for any, which some other connection may have by the time a node wants them, and again when it
// is started anew.
func freePorts(t testing.TB, n int) []string {
	t.Helper()
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var first, last int
	if _, err := fmt.Sscan(string(raw), &first, &last); err != nil || first < 2000 {
		t.Fatalf("no ports below those of ip_local_port_range, %s: %v", raw, err)
	}
	var ports []string
	for range 10_000 {
		address := fmt.Sprint("127.0.0.1:", 1024+rand.IntN(first-1024))
		if _, other := givenPorts.LoadOrStore(address, t.Name()); other {
			continue
		}
		tcp, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		defer tcp.Close() // not before: each is another
		udp, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		defer udp.Close()
		_, port, _ := net.SplitHostPort(address)
		if ports = append(ports, port); len(ports) == n {
			return ports
		}
	}
	t.Fatal("no free ports")
	return nil
}
