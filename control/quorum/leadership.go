package quorum

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// leadership is what this node knows about who leads.
type leadership struct {
	mu sync.Mutex
	// leading is set while this node leads and has applied everything that was committed before;
	// it ends with its leadership. of is its term.
	leading context.Context
	end     context.CancelFunc
	of      uint64
	known   bool          // some node leads
	changed chan struct{} // closed at every change
}

func (l *leadership) init() { l.changed = make(chan struct{}) }

func (l *leadership) term() (uint64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of, l.leading != nil
}

func (l *leadership) now() (leading context.Context, known bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leading, l.known, l.changed
}

// set tells everybody. term 0: this node does not lead.
func (l *leadership) set(term uint64, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leading != nil && l.of != term {
		l.end()
		l.leading, l.end, l.of = nil, nil, 0
	}
	if term != 0 && l.leading == nil {
		l.leading, l.end = context.WithCancel(context.Background())
		l.of = term
	}
	l.known = known
	close(l.changed)
	l.changed = make(chan struct{})
}

// watchLeadership follows raft's notifications until the node is closed.
func (n *Node) watchLeadership(notify <-chan bool) {
	seen := make(chan raft.Observation, 1)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(observer)
	defer n.raft.DeregisterObserver(observer)
	defer n.leadership.set(0, false)
	// A leader found before the observer was there.
	n.leaderSeen()
	for {
		select {
		case leads := <-notify:
			if leads {
				n.establish()
				continue
			}
			n.log.Info("raft: this node does not lead any more", "node", string(n.id))
			n.leadership.set(0, n.leaderKnown())
		case <-seen:
			n.leaderSeen()
		case <-n.closed:
			return
		}
	}
}

func (n *Node) leaderSeen() {
	term, _ := n.leadership.term()
	n.leadership.set(term, n.leaderKnown())
}

func (n *Node) leaderKnown() bool {
	_, id := n.raft.LeaderWithID()
	return id != ""
}

// establish waits, as a new leader, until all that was committed before is applied here. When
// leadership is lost meanwhile, raft says so, and a notification follows. It counts as a call, since
// raft, when it is shut down, may forget to answer what it has not applied yet.
func (n *Node) establish() {
	if !n.begin() {
		return
	}
	defer n.calls.Done()
	term := n.raft.CurrentTerm()
	if err := n.raft.Barrier(0).Error(); err != nil {
		n.log.Info("raft: leadership lost before it began", "node", string(n.id), "error", err)
		return
	}
	if n.raft.CurrentTerm() != term {
		return
	}
	n.log.Info("raft: this node leads", "node", string(n.id), "term", term)
	n.leadership.set(term, true)
	if err := n.correctAddress(); err != nil {
		n.log.Warn("raft: could not change this node's address", "error", err)
	}
}

// IsLeader reports whether this node leads and has applied everything committed before it did.
func (n *Node) IsLeader() bool {
	_, ok := n.leadership.term()
	return ok
}

// HandOver has another voter lead, if this node does and there is one; it does not wait until that one does.
// Proposals meanwhile wait for the new leader, or fail with ErrNotLeader. Errors as Propose.
func (n *Node) HandOver(ctx context.Context) error {
	if n.raft.State() != raft.Leader || n.onlyVoter() {
		return nil
	}
	return n.await(ctx, func() error {
		if err := n.raft.LeadershipTransfer().Error(); err != nil && n.raft.State() == raft.Leader {
			return err
		}
		return nil
	})
}

// Leader is who leads, as far as this node knows; empty when nobody does.
func (n *Node) Leader() (id, addr string) {
	a, i := n.raft.LeaderWithID()
	return string(i), string(a)
}

// WaitReady returns once a leader is known and, if it is this node, everything committed before is
// applied here. The error is ctx's, ErrClosed, or ErrHalted.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		if err := n.Err(); err != nil {
			return err
		}
		leading, known, changed := n.leadership.now()
		if leading != nil {
			return nil
		}
		if id, _ := n.Leader(); known && id != "" && id != string(n.id) {
			return nil
		}
		select {
		case <-changed:
		case <-n.fsm.failed:
		case <-n.closed:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("quorum: no leader: %w", ctx.Err())
		}
	}
}

// Lead calls run each time this node becomes the leader (in the sense of IsLeader), with a context
// that ends with its leadership, and waits for it before it does so again: run never runs twice at
// once. When run returns by itself it is called again only in another term. Lead returns when ctx
// ends or the node is closed.
func (n *Node) Lead(ctx context.Context, run func(context.Context)) {
	for {
		leading, _, changed := n.leadership.now()
		if leading == nil {
			select {
			case <-changed:
				continue
			case <-n.closed:
			case <-ctx.Done():
			}
			return
		}
		both, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(leading, cancel)
		run(both)
		stop()
		cancel()
		select {
		case <-leading.Done():
		case <-ctx.Done():
			return
		}
	}
}
