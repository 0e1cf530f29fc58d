package slots

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	verb = "slots"
	// askLimit bounds one request to another node.
	askLimit = time.Second
	// witnessLimit bounds one request to keep a lease.
	witnessLimit = 250 * time.Millisecond
	// patience is how long a call waits for somebody who grants, as when a home has died; askAgain how often
	// it asks; maxPatient how many wait at once.
	patience   = 3 * time.Second
	askAgain   = 20 * time.Millisecond
	maxPatient = 1024
	// fullAgain is after how long a home is asked once more that was full: the end of a call before may be on
	// its way from another node.
	fullAgain = 2 * time.Millisecond
)

// Wire is how a node reaches the others; *bus.Mesh is one.
type Wire interface {
	// AskNode brings a node's answer, TellNode waits for none.
	AskNode(ctx context.Context, node, verb string, request []byte) ([]byte, error)
	TellNode(node, verb string, message []byte) error
	// HearNode answers what comes, one at a time, until stop.
	HearNode(verb string, answer func(message []byte) []byte) (stop func() error, err error)
	// Favourite is the control node that a name hashes to among those that can be reached, "" for none.
	Favourite(name string) string
}

// Config is what a Node is made of.
type Config struct {
	// Node is this node's name, Boot names this life of it.
	Node, Boot string
	Wire       Wire
	// Members are the names of all control nodes, this one included, as the cluster has agreed.
	Members func() []string
	// Limit says a function's cap, as this node knows it; ok is false when it knows of none. Longest says how
	// long an execution of the function may run at most, 0 when it knows no such function.
	Limit   func(account, name string) (limit int, ok bool)
	Longest func(account, name string) time.Duration
	// Clean says that executions of this node's life before have ended.
	Clean  bool
	Logger *slog.Logger
}

// Node is a control node's part in the cluster's slots. Its methods may be called from many goroutines.
type Node struct {
	config  Config
	holder  *Holder
	home    *Home
	kick    chan struct{}
	patient atomic.Int64
	stop    context.CancelFunc
	unhear  func() error
	running sync.WaitGroup

	mu     sync.Mutex
	asking map[string]bool // nodes that a beat is on its way to
	closed bool
}

// message is what goes between nodes: one of them.
type message struct {
	Beat    *Beat    `json:"beat,omitempty"`
	Acquire *acquire `json:"acquire,omitempty"`
	End     *end     `json:"end,omitempty"`
	Witness *witness `json:"witness,omitempty"`
}

type acquire struct {
	Node    string `json:"n"`
	Boot    string `json:"b"`
	Account string `json:"a"`
	Name    string `json:"f"`
	Limit   int    `json:"c"`
	Lease   Lease  `json:"l"`
}

type acquired struct {
	Verdict Verdict `json:"v"`
	Ballot  uint64  `json:"b"`
}

type end struct {
	Boot  string `json:"b"`
	Lease Lease  `json:"l"`
}

type witness struct {
	Home   string `json:"h"`
	Boot   string `json:"b"`
	Ballot uint64 `json:"n"`
	Lease  Lease  `json:"l"`
}

// Open takes part, until Close.
func Open(config Config) (*Node, error) {
	ctx, stop := context.WithCancel(context.Background())
	n := &Node{config: config, kick: make(chan struct{}, 1), stop: stop, asking: map[string]bool{}}
	n.holder = NewHolder(config.Boot, config.Clean, time.Now())
	n.home = NewHome(config.Node, n.holder)
	var err error
	if n.unhear, err = config.Wire.HearNode(verb, n.hear); err != nil {
		stop()
		return nil, fmt.Errorf("slots: %w", err)
	}
	n.running.Go(func() { n.beat(ctx) })
	return n, nil
}

// Close gives up what this node is the home of. clean says that it has no lease any more: all of its
// executions have ended.
func (n *Node) Close() (clean bool, err error) {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.stop()
	n.running.Wait()
	resign := n.home.Resign(time.Now())
	raw, err := json.Marshal(message{Beat: resign})
	if err != nil {
		return false, fmt.Errorf("slots: %w", err)
	}
	for _, m := range n.config.Members() {
		if m != n.config.Node {
			// Who does not hear it finds out in a Term. It is asked, so that it is there before the end.
			ctx, cancel := context.WithTimeout(context.Background(), witnessLimit)
			if _, err := n.config.Wire.AskNode(ctx, m, verb, raw); err != nil {
				n.config.Logger.Debug("slots: resign", "node", m, "err", err)
			}
			cancel()
		}
	}
	if err := n.unhear(); err != nil {
		return false, fmt.Errorf("slots: %w", err)
	}
	return resign.Idle, nil
}

// beat has promises made and renewed until ctx ends.
func (n *Node) beat(ctx context.Context) {
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	for {
		members := n.config.Members()
		n.home.Look(members, func(shard int) bool {
			return n.config.Wire.Favourite("slots "+strconv.Itoa(shard)) == n.config.Node
		}, time.Now())
		// The own promise first: who has it not, asks nobody else.
		n.beatTo(ctx, n.config.Node)
		for _, m := range members {
			if m != n.config.Node {
				n.beatTo(ctx, m)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-n.kick:
		}
	}
}

// beatTo asks one node, in the background unless it is this one.
func (n *Node) beatTo(ctx context.Context, node string) {
	sent := time.Now()
	b := n.home.Beat(node, sent)
	if b == nil {
		return
	}
	if node == n.config.Node {
		n.reported(node, n.holder.Beat(b, sent), sent)
		return
	}
	n.mu.Lock()
	busy := n.asking[node]
	n.asking[node] = true
	n.mu.Unlock()
	if busy {
		return
	}
	n.running.Go(func() {
		defer func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.asking[node] = false
		}()
		report := &Report{}
		if err := n.ask(ctx, node, askLimit, message{Beat: b}, report); err != nil {
			n.config.Logger.Debug("slots: beat", "node", node, "err", err)
			return
		}
		n.reported(node, report, sent)
	})
}

func (n *Node) reported(node string, r *Report, sent time.Time) {
	if n.home.Reported(node, r, sent, time.Now()) {
		select {
		case n.kick <- struct{}{}:
		default:
		}
	}
}

func (n *Node) ask(ctx context.Context, node string, limit time.Duration, m message, answer any) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("slots: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if raw, err = n.config.Wire.AskNode(ctx, node, verb, raw); err != nil {
		return err
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("slots: what %s answered: %w", node, err)
	}
	return nil
}

// hear answers another node. It only looks into tables: messages of one sender stay in order.
func (n *Node) hear(raw []byte) []byte {
	var m message
	if err := json.Unmarshal(raw, &m); err != nil {
		n.config.Logger.Warn("slots: malformed message", "err", err)
		return nil
	}
	var answer any
	now := time.Now()
	switch {
	case m.Beat != nil:
		answer = n.holder.Beat(m.Beat, now)
	case m.Acquire != nil:
		verdict, ballot := n.grant(m.Acquire, now)
		answer = acquired{verdict, ballot}
	case m.End != nil:
		n.home.End(m.End.Boot, m.End.Lease)
		return nil
	case m.Witness != nil:
		w := m.Witness
		answer = n.holder.Witness(w.Home, w.Boot, w.Ballot, w.Lease)
	}
	raw, err := json.Marshal(answer)
	if err != nil {
		n.config.Logger.Warn("slots: answer", "err", err)
	}
	return raw
}

// grant is the home's decision. The cap is the lower of what the two nodes know: one of them may not have
// heard of a change.
func (n *Node) grant(a *acquire, now time.Time) (Verdict, uint64) {
	limit, ok := n.config.Limit(a.Account, a.Name)
	if !ok || a.Limit < limit {
		limit = a.Limit
	}
	longest := func() time.Duration { return n.config.Longest(a.Account, a.Name) }
	return n.home.Acquire(a.Node, a.Boot, a.Lease, limit, longest, now)
}

// Slot is the right to one execution.
type Slot struct {
	node  *Node
	lease Lease
}

// Take gets a slot for one execution of at most run of a function with a cap of limit. It waits, bounded,
// while nobody can grant one. Errors: ErrFull, ErrAway.
func (n *Node) Take(account, name, key string, limit int, run time.Duration) (*Slot, error) {
	begun := time.Now()
	waiting, asked := false, false
	for {
		l, verdict := n.try(account, name, key, limit, run)
		switch {
		case verdict == Granted:
			if waiting {
				n.patient.Add(-1)
			}
			return &Slot{n, l}, nil
		case verdict == Full && !asked:
			asked = true
			time.Sleep(fullAgain)
			continue
		}
		if !waiting {
			waiting = n.patient.Add(1) <= maxPatient
			if !waiting {
				n.patient.Add(-1)
			}
		}
		n.mu.Lock()
		closed := n.closed
		n.mu.Unlock()
		if verdict == Full || !waiting || closed || time.Since(begun) >= patience {
			if waiting {
				n.patient.Add(-1)
			}
			if verdict == Full {
				return nil, ErrFull
			}
			return nil, ErrAway
		}
		time.Sleep(askAgain)
	}
}

// try asks once.
func (n *Node) try(account, name, key string, limit int, run time.Duration) (Lease, Verdict) {
	l, home, ballot, ok := n.holder.Begin(key, run, time.Now())
	if !ok {
		return l, NotHome
	}
	a := &acquire{Node: n.config.Node, Boot: n.config.Boot, Account: account, Name: name, Limit: limit, Lease: l}
	var answer acquired
	if home == n.config.Node {
		answer.Verdict, answer.Ballot = n.grant(a, time.Now())
		if answer.Verdict == Granted && !n.witnessed(answer.Ballot, l) {
			answer.Verdict = NotHome
		}
	} else if err := n.ask(context.Background(), home, askLimit, message{Acquire: a}, &answer); err != nil {
		answer.Verdict = NotHome
	}
	if answer.Verdict == Granted && answer.Ballot == ballot && n.holder.Confirm(l, ballot) {
		return l, Granted
	}
	n.end(l)
	if answer.Verdict == Granted {
		return l, NotHome // of a home that is not the home any more
	}
	return l, answer.Verdict
}

// witnessed has another node keep a lease of this node's own, as a home that is not its own holder knows it
// too: one of them may die.
func (n *Node) witnessed(ballot uint64, l Lease) bool {
	members := n.config.Members()
	if len(members) == 1 {
		return true
	}
	w := message{Witness: &witness{Home: n.config.Node, Boot: n.config.Boot, Ballot: ballot, Lease: l}}
	for _, m := range members {
		var kept bool
		if m != n.config.Node && n.ask(context.Background(), m, witnessLimit, w, &kept) == nil && kept {
			return true
		}
	}
	return false
}

// MayBegin says whether the execution may be begun now.
func (s *Slot) MayBegin() bool { return s.node.holder.May(s.lease.Key, time.Now()) }

// End gives the slot back, once, after a time in which the execution may go on.
func (s *Slot) End(after time.Duration) {
	if after > 0 {
		time.AfterFunc(after, func() { s.node.end(s.lease) })
		return
	}
	s.node.end(s.lease)
}

// end tells the home; when that does not hear it, the next report says it.
func (n *Node) end(l Lease) {
	home := n.holder.End(l)
	switch home {
	case n.config.Node:
		n.home.End(n.config.Boot, l)
	case "":
	default:
		raw, err := json.Marshal(message{End: &end{n.config.Boot, l}})
		if err == nil {
			err = n.config.Wire.TellNode(home, verb, raw)
		}
		if err != nil {
			n.config.Logger.Debug("slots: end", "node", home, "err", err)
		}
	}
}
