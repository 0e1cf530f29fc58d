// Package gossip is who is in the cluster: every node, control node or worker, knows every other one, its
// addresses and whether it is there, from one address to join by.
//
// It knows names, roles and addresses. What it says is a few seconds late at worst and never the same
// everywhere at once: it must not be asked for anything that two nodes have to agree on.
package gossip

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// The roles of a node.
const (
	Control = "control"
	Worker  = "worker"
)

// Of a control node's replicated state.
const (
	StateNew    = "new"    // there is none: the node waits to be taken in, or to begin a cluster
	StateMember = "member" // it has some
)

const (
	// Timers for a LAN: a dead node is known in about two seconds.
	probeInterval  = 500 * time.Millisecond
	probeTimeout   = 250 * time.Millisecond
	suspicionMult  = 3
	gossipInterval = 100 * time.Millisecond
	pushPull       = 5 * time.Second
	// joinEvery is how often nodes are looked for that ought to be there, joinSoon while none is: nodes that
	// start at once miss one another at first.
	joinEvery = time.Second
	joinSoon  = 100 * time.Millisecond
	dialLimit = 2 * time.Second
	// aloneTell is how often the log is told that nobody is there, from when nobody was for so long.
	aloneTell = 5 * time.Second
	// reclaim is after what time a dead node's name may come back with another address.
	reclaim = time.Second
	// leaveLimit bounds telling the others that one leaves, tellLimit waiting until a change is on its way.
	leaveLimit, tellLimit = time.Second, time.Second
)

// Node is one member as it says of itself.
type Node struct {
	Name string `json:"-"`
	// Gossip is host:port of the node's gossip.
	Gossip string `json:"-"`
	Role   string `json:"r"`
	// Host is how others reach all its ports.
	Host string `json:"h"`
	// Ports of a control node: the call plane, the durable plane for clients and among its servers,
	// Raft, and the API.
	Calls   int `json:"c,omitempty"`
	Streams int `json:"s,omitempty"`
	Routes  int `json:"t,omitempty"`
	Raft    int `json:"q,omitempty"`
	HTTP    int `json:"w,omitempty"`
	// Expect is how many control nodes it was told to begin a cluster with, State what it has.
	Expect int    `json:"e,omitempty"`
	State  string `json:"z,omitempty"`
	// Serving: its call queues take calls. Leaving: it is stopping in order, the last that it says.
	// Removed: it is never to come back.
	Serving bool   `json:"v,omitempty"`
	Leaving bool   `json:"l,omitempty"`
	Removed bool   `json:"x,omitempty"`
	Version string `json:"n,omitempty"`
}

// Addr is a port of the node with its host.
func (n *Node) Addr(port int) string { return net.JoinHostPort(n.Host, strconv.Itoa(port)) }

// Config says how to take part.
type Config struct {
	// Self is this node; its Name is unique in the cluster.
	Self Node
	// Listen is host:port, for UDP and TCP; Advertise the same as others reach it, "" for Listen.
	Listen, Advertise string
	// Join are host:port of nodes that may be there; one that is suffices.
	Join []string
	// Key encrypts what is said (16, 24 or 32 bytes), nil for none; all nodes have the same.
	Key    []byte
	Logger *slog.Logger
}

// Members is a running member. Its methods may be called from many goroutines.
type Members struct {
	log   *slog.Logger
	name  string
	list  *memberlist.Memberlist
	seeds []string
	// encrypted: what is said is.
	encrypted bool

	mu    sync.Mutex
	self  Node
	known map[string]string // gossip address of every control node that was ever seen, by name
	gone  map[string]Gone
	// forgotten are nodes that were removed, and when.
	forgotten map[string]time.Time
	changed   chan struct{} // closed and replaced at each change
	stop      context.CancelFunc
	running   sync.WaitGroup
}

// Open takes part. It does not wait for others: who is not there yet is looked for in the background.
func Open(config Config) (*Members, error) {
	host, port, err := splitAddress(config.Listen)
	if err != nil {
		return nil, fmt.Errorf("gossip: listen: %w", err)
	}
	m := &Members{
		log: config.Logger, name: config.Self.Name, self: config.Self, seeds: config.Join, encrypted: config.Key != nil,
		known: map[string]string{}, gone: map[string]Gone{}, forgotten: map[string]time.Time{}, changed: make(chan struct{}),
	}
	c := memberlist.DefaultLANConfig()
	c.Name = config.Self.Name
	c.BindAddr, c.BindPort = host, port
	c.AdvertiseAddr, c.AdvertisePort = "", port
	if config.Advertise != "" {
		host, port, err := splitAddress(config.Advertise)
		if err != nil {
			return nil, fmt.Errorf("gossip: advertise: %w", err)
		}
		ip, err := net.ResolveIPAddr("ip", host)
		if err != nil {
			return nil, fmt.Errorf("gossip: advertise: %w", err)
		}
		c.AdvertiseAddr, c.AdvertisePort = ip.String(), port
	}
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = probeInterval, probeTimeout, suspicionMult
	c.GossipInterval, c.PushPullInterval, c.TCPTimeout = gossipInterval, pushPull, dialLimit
	c.DeadNodeReclaimTime = reclaim
	c.SecretKey = config.Key
	c.Delegate, c.Events = (*delegate)(m), (*events)(m)
	c.Logger = log.New(writer{config.Logger}, "", 0)
	if m.list, err = memberlist.Create(c); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.running.Go(func() { m.seek(ctx) })
	return m, nil
}

// seek joins seeds that are not among the members until ctx ends: at the start, and when a network that
// was cut is whole again.
func (m *Members) seek(ctx context.Context) {
	alone := time.Now() // since when, or when the log was told of it last
	for {
		here := map[string]bool{}
		nodes := m.Nodes()
		m.mu.Lock()
		for _, n := range nodes {
			here[n.Gossip] = true
			if n.Role == Control {
				m.known[n.Name] = n.Gossip
			}
		}
		seeds, known := m.seeds, slices.Collect(maps.Values(m.known))
		m.mu.Unlock()
		var missing []string
		for _, seed := range seeds {
			if !here[seed] && (len(here) == 1 || net.ParseIP(hostOf(seed)) != nil) {
				missing = append(missing, seed)
			}
		}
		for _, address := range known {
			if !here[address] && !slices.Contains(missing, address) {
				missing = append(missing, address)
			}
		}
		if len(missing) > 0 {
			if _, err := m.list.Join(missing); err != nil {
				m.log.Debug("gossip: join", "addresses", missing, "err", err)
				if len(here) == 1 && time.Since(alone) >= aloneTell {
					alone = time.Now()
					m.log.Warn("no node of the cluster takes this one in: are these addresses right, are nodes there, and has this one the cluster's gossip key? "+
						"(it is in the folder that `doze ca issue` makes, given with --tls-dir; a cluster without a key takes no node with one)",
						"addresses", missing, "encrypted", m.encrypted, "err", err)
				}
			}
		}
		wait := joinEvery
		if len(here) == 1 {
			wait = joinSoon
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// AddSeeds adds addresses to look for.
func (m *Members) AddSeeds(addresses ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range addresses {
		if !slices.Contains(m.seeds, a) {
			m.seeds = append(slices.Clone(m.seeds), a)
		}
	}
}

// Nodes are all members that are there, this one included, by name.
func (m *Members) Nodes() []Node {
	var nodes []Node
	for _, member := range m.list.Members() {
		var n Node
		if err := json.Unmarshal(member.Meta, &n); err != nil {
			m.log.Warn("gossip: a member says nothing that is understood of itself", "node", member.Name, "err", err)
			continue
		}
		n.Name, n.Gossip = member.Name, member.Address()
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes
}

// Controls are the members that are control nodes.
func (m *Members) Controls() []Node {
	return slices.DeleteFunc(m.Nodes(), func(n Node) bool { return n.Role != Control })
}

// Changed is closed at the next change of what Nodes says. Take it before Nodes.
func (m *Members) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Update changes what this node says of itself. The others hear of it soon after: with its next packets to them, or
// when they compare what they know.
func (m *Members) Update(change func(*Node)) {
	m.mu.Lock()
	change(&m.self)
	m.mu.Unlock()
	if err := m.list.UpdateNode(tellLimit); err != nil {
		m.log.Debug("gossip: the others do not know of a change of this node yet", "err", err)
	}
	(*events)(m).notify()
}

// Close tells the others that this node leaves, and ends.
func (m *Members) Close() error {
	m.stop()
	m.running.Wait()
	m.Update(func(n *Node) { n.Leaving, n.Serving = true, false })
	if err := m.list.Leave(leaveLimit); err != nil {
		m.log.Debug("gossip: the others will find out that this node has left", "err", err) // there may be none left
	}
	if err := m.list.Shutdown(); err != nil {
		return fmt.Errorf("gossip: end: %w", err)
	}
	return nil
}

// delegate tells memberlist what this node says of itself.
type delegate Members

func (d *delegate) NodeMeta(limit int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	raw, err := json.Marshal(&d.self)
	if err != nil || len(raw) > limit {
		d.log.Error("gossip: this node has too much to say of itself", "bytes", len(raw), "limit", limit, "err", err)
		return nil
	}
	return raw
}
func (d *delegate) NotifyMsg([]byte)                {}
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *delegate) LocalState(bool) []byte          { return nil }
func (d *delegate) MergeRemoteState([]byte, bool)   {}

// writer hands memberlist's log lines to slog. Its errors are about others that are not there, which
// the cluster's own lines say better.
type writer struct{ log *slog.Logger }

func (w writer) Write(line []byte) (int, error) {
	w.log.Debug("gossip: " + strings.TrimSpace(string(line)))
	return len(line), nil
}

func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(text)
	return host, port, err
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}
