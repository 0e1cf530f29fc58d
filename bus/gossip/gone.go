package gossip

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxGone bounds how many nodes are remembered that are not there any more; the oldest is forgotten.
	maxGone = 256
	// forgetFor is for how long a node that was forgotten is not told of, though it is not known to be gone
	// everywhere yet.
	forgetFor = 10 * time.Second
)

// Gone is a node that was a member and is not there any more.
type Gone struct {
	Node
	// Left: it stopped in order; else it is dead, as far as the others can tell.
	Left  bool
	Since time.Time
}

// Gone are the nodes that have gone since this one began, by name, until they come back or are forgotten.
func (m *Members) Gone() []Gone {
	m.mu.Lock()
	defer m.mu.Unlock()
	gone := make([]Gone, 0, len(m.gone))
	for _, g := range m.gone {
		gone = append(gone, g)
	}
	slices.SortFunc(gone, func(a, b Gone) int { return strings.Compare(a.Name, b.Name) })
	return gone
}

// Forget drops what is known of a node that is not there: it is not looked for any more.
func (m *Members) Forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.forgotten, func(_ string, at time.Time) bool { return time.Since(at) >= forgetFor })
	m.forgotten[name] = time.Now()
	delete(m.gone, name)
	delete(m.known, name)
}

// Forgotten says that a node was forgotten just now, and has not come back.
func (m *Members) Forgotten(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.forgotten[name]) < forgetFor
}

// events hears from memberlist what has changed. It must not ask memberlist anything.
type events Members

func (e *events) notify() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tell()
}

// tell says that something has changed. e.mu is held.
func (e *events) tell() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// NotifyJoin implements memberlist.EventDelegate.
func (e *events) NotifyJoin(member *memberlist.Node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.gone, member.Name)
	delete(e.forgotten, member.Name)
	e.tell()
}

// NotifyLeave implements memberlist.EventDelegate.
func (e *events) NotifyLeave(member *memberlist.Node) {
	n := Node{}
	known := json.Unmarshal(member.Meta, &n) == nil // else Nodes has said so
	n.Name, n.Gossip = member.Name, member.Address()
	e.mu.Lock()
	defer e.mu.Unlock()
	if n.Removed || time.Since(e.forgotten[n.Name]) < forgetFor {
		delete(e.known, n.Name)
	} else if known && n.Name != e.name {
		e.gone[n.Name] = Gone{Node: n, Left: n.Leaving, Since: time.Now()}
	}
	if len(e.gone) > maxGone { // this one among them
		oldest := n.Name
		for name, g := range e.gone {
			if g.Since.Before(e.gone[oldest].Since) {
				oldest = name
			}
		}
		delete(e.gone, oldest)
	}
	e.tell()
}

// NotifyUpdate implements memberlist.EventDelegate.
func (e *events) NotifyUpdate(*memberlist.Node) { e.notify() }
