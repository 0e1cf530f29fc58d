package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"

	"github.com/doze-run/doze/bus/nodetls"
)

// Home is a control node as others reach its call queues.
type Home struct {
	Node string
	// Address is host:port of its call plane.
	Address string
	// Leaving: it serves what is in its queues and is given nothing new.
	Leaving bool
}

// Mesh is the call plane as one process sees it: a connection to every home. Homes are not clustered
// and do not know one another; who asks and who works is connected to each of them, so that a call
// needs one broker only and the loss of a home takes nothing but its own queues along.
type Mesh struct {
	name string
	tls  *nodetls.Node
	log  *slog.Logger
	// view is what the path of a call reads.
	view atomic.Pointer[view]

	mu       sync.Mutex
	homes    map[string]Home
	links    map[string]*Conn
	own      *Conn // the caller's, in process; nil for none
	services map[*service]struct{}
	down     []func(*Conn)
	closed   bool
}

// view is the mesh at one moment.
type view struct {
	links   []*Conn // to every home, by name
	serving []*Conn // to those that take new calls
}

// NewMesh makes a mesh that knows one home, the one own leads to, or none when own is nil. own stays
// the caller's. Homes that ask for a certificate are shown the given one; nil for none.
func NewMesh(name string, own *Conn, certificate *nodetls.Node, log *slog.Logger) *Mesh {
	m := &Mesh{name: name, tls: certificate, log: log, own: own, homes: map[string]Home{}, links: map[string]*Conn{}, services: map[*service]struct{}{}}
	if own != nil {
		m.links[own.node], m.homes[own.node] = own, Home{Node: own.node}
	}
	m.look()
	return m
}

// ConnectHome is Connect to the embedded server of the home node, as NewMesh takes it.
func ConnectHome(ctx context.Context, node string, config ConnConfig) (*Conn, error) {
	config.node = node
	return Connect(ctx, config)
}

// SetHomes tells which homes there are. Those that are new are connected to in the background; a home
// that is not named any more, or has another address, is left. The mesh's own is always there; its
// entry says whether it is leaving.
func (m *Mesh) SetHomes(homes []Home) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	named := map[string]Home{}
	for _, h := range homes {
		named[h.Node] = h
	}
	for node, link := range m.links {
		h, ok := named[node]
		if link == m.own {
			if ok {
				m.homes[node] = h
			}
			continue
		}
		if !ok || h.Address != m.homes[node].Address {
			delete(m.links, node)
			delete(m.homes, node)
			m.drop(link)
		}
	}
	for node, h := range named {
		if link := m.links[node]; link != nil {
			m.homes[node] = h
			continue
		}
		link, err := Connect(context.Background(), ConnConfig{
			Name: m.name, URLs: []string{"nats://" + h.Address}, TLS: m.tls, Logger: m.log, node: node, down: m.lost,
		})
		if err != nil {
			m.log.Warn("bus: connect to home", "node", node, "address", h.Address, "err", err)
			continue
		}
		m.links[node], m.homes[node] = link, h
		for s := range m.services {
			m.start(s, link)
		}
	}
	m.look()
}

// drop closes a link. m.mu is held; who was using it hears of it on another goroutine.
func (m *Mesh) drop(link *Conn) {
	for s := range m.services {
		delete(s.subs, link)
	}
	link.up.Store(false)
	link.nc.Close()
	go m.lost(link)
}

// look makes the view anew. m.mu is held.
func (m *Mesh) look() {
	v := &view{}
	for _, link := range m.links {
		v.links = append(v.links, link)
	}
	slices.SortFunc(v.links, func(a, b *Conn) int { return strings.Compare(a.node, b.node) })
	for _, link := range v.links {
		if !m.homes[link.node].Leaving {
			v.serving = append(v.serving, link)
		}
	}
	m.view.Store(v)
}

// lost tells those who have calls at a home that it is away.
func (m *Mesh) lost(link *Conn) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	down := slices.Clone(m.down)
	m.mu.Unlock()
	for _, f := range down {
		f(link)
	}
}

func (m *Mesh) onDown(f func(*Conn)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = append(m.down, f)
}

// Close ends the connections that SetHomes made.
func (m *Mesh) Close() error {
	m.mu.Lock()
	m.closed = true
	links := m.links
	m.links = map[string]*Conn{}
	m.mu.Unlock()
	var err error
	for _, link := range links {
		if link != m.own {
			err = errors.Join(err, link.Close())
		}
	}
	return err
}

// Connected says to how many homes there is a connection now, and to how many there should be one.
func (m *Mesh) Connected() (now, all int) {
	v := m.view.Load()
	for _, link := range v.links {
		if link.up.Load() {
			now++
		}
	}
	return now, len(v.links)
}

// home is where the calls of a queue go now; nil when no home can be reached. Every process that sees
// the same homes comes to the same answer: the highest of each home's and function's hash.
func (m *Mesh) home(q QueueID) *Conn {
	v := m.view.Load()
	if len(v.serving) == 1 && len(v.links) == 1 {
		return v.serving[0]
	}
	function := seedOf(q.function())
	if best := highest(v.serving, function); best != nil {
		return best
	}
	return highest(v.links, function) // better one that is leaving than none
}

// Favourite is the home that a name hashes to among those that can be reached and take calls, "" for none.
func (m *Mesh) Favourite(name string) string {
	if best := highest(m.view.Load().serving, seedOf(name)); best != nil {
		return best.node
	}
	return ""
}

func highest(links []*Conn, function uint64) *Conn {
	var best *Conn
	var most uint64
	for _, link := range links {
		if !link.up.Load() {
			continue
		}
		if score := mix(link.seed ^ function); best == nil || score > most {
			best, most = link, score
		}
	}
	return best
}

// seedOf is FNV-1a.
func seedOf(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// mix spreads the bits of a hash (the end of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// link is the connection to a home by name, nil for none.
func (m *Mesh) link(node string) *Conn {
	for _, link := range m.view.Load().links {
		if link.node == node {
			return link
		}
	}
	return nil
}

// route is the connection by which an asker is best spoken to: its own node's, where it is in process
// and which lives as long as it does, else the home's that the call came from.
func (m *Mesh) route(asker string, home *Conn) *Conn {
	if len(m.view.Load().links) == 1 {
		return home
	}
	node, _, _ := strings.Cut(asker, ".")
	if link := m.link(node); link != nil && link.up.Load() {
		return link
	}
	return home
}

// detour is a connection that is up, preferably the given one: an asker listens at every home.
func (m *Mesh) detour(preferred *Conn) *Conn {
	if preferred.up.Load() {
		return preferred
	}
	for _, link := range m.view.Load().links {
		if link.up.Load() {
			return link
		}
	}
	return preferred
}

// service is what listens at every home, also at those that come later.
type service struct {
	mesh      *Mesh
	subscribe func(*Conn) ([]*nats.Subscription, error)
	subs      map[*Conn][]*nats.Subscription
}

// serve has subscribe called for every home. Close of the Served ends it.
func (m *Mesh) serve(subscribe func(*Conn) ([]*nats.Subscription, error)) (*Served, error) {
	s := &service{mesh: m, subscribe: subscribe, subs: map[*Conn][]*nats.Subscription{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, link := range m.links {
		if err := m.start(s, link); err != nil {
			return nil, err
		}
	}
	m.services[s] = struct{}{}
	return &Served{service: s}, nil
}

// start has a service listen at one home. m.mu is held.
func (m *Mesh) start(s *service, link *Conn) error {
	subs, err := s.subscribe(link)
	s.subs[link] = subs
	if err != nil {
		err = fmt.Errorf("bus: listen at %s: %w", link.node, err)
		m.log.Error("bus", "err", err)
	}
	return err
}

// end takes the service's subscriptions out of the mesh.
func (s *service) end() []*nats.Subscription {
	s.mesh.mu.Lock()
	defer s.mesh.mu.Unlock()
	delete(s.mesh.services, s)
	var all []*nats.Subscription
	for link, subs := range s.subs {
		if link.up.Load() {
			all = append(all, subs...)
			continue
		}
		for _, sub := range subs {
			_ = sub.Unsubscribe() // nobody is there to be waited for
		}
	}
	return all
}

// tell publishes to every home.
func (m *Mesh) tell(subject string, message []byte) error {
	var failed error
	for _, link := range m.view.Load().links {
		if !link.up.Load() {
			continue
		}
		if err := link.nc.Publish(subject, message); err != nil {
			failed = err
		}
	}
	return failed
}

// atHome publishes to the home in this process.
func (m *Mesh) atHome(subject string, message []byte) error {
	return m.own.nc.Publish(subject, message)
}
