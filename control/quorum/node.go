// Package quorum replicates the registry and the ledger with hashicorp/raft: it is the log, the
// stores, the elections and the way in (Propose) and out (Read, Registry, Ledger).
//
// One voter and three are the same code. It knows Raft and the disk; it must not know what the
// commands mean, nor HTTP, NATS or prices. It is the only package that imports hashicorp/raft.
package quorum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/registry"
)

// Config says how to open a node.
type Config struct {
	// NodeID names this node in the cluster for ever; it is written into the data folder.
	NodeID string
	// DataDir is the node's own folder, made when missing. That no other process has it open is the
	// caller's to see to.
	DataDir string
	// Listener takes connections from other nodes; the node closes it. nil: there are none, and the
	// node must be the only voter.
	Listener net.Listener
	// Advertise is the address that others reach Listener by; "" is Listener's own.
	Advertise string
	// Dial connects to another node's Advertise; nil is plain TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Bootstrap begins a new cluster, if the folder is new, whose voters are this node and Peers. On one
	// node of a new cluster only. Without it a new node waits until a leader comes to it.
	Bootstrap bool
	Peers     []Member
	// Resolve finds another node's address by its ID, "" when it does not know; nil, or "": the
	// address that the log has.
	Resolve func(id string) string
	// Forward takes to the leader what only it can do; nil: callers are told who leads.
	Forward Forwarder
	// Timing has defaults for what is zero.
	Timing Timing
	Logger *slog.Logger
}

// Timing is the node's timers and counts. Zero members take the defaults.
type Timing struct {
	// Heartbeat is how long a follower hears nothing before it stands for election (500 ms),
	// Election how long a candidate waits for votes (500 ms), Lease how long a leader goes on
	// without hearing from a majority (250 ms).
	Heartbeat, Election, Lease time.Duration
	// Commit is how soon followers hear, at the latest, that what they have is committed (50 ms).
	Commit time.Duration
	// SnapshotThreshold is how many log entries make a snapshot worth while (8192), looked at every
	// SnapshotInterval (30 s, up to twice that); TrailingLogs is how many entries stay behind it for
	// followers that are a little late (8192).
	SnapshotThreshold, TrailingLogs uint64
	SnapshotInterval                time.Duration
}

func (t Timing) withDefaults() Timing {
	t.Heartbeat = or(t.Heartbeat, 500*time.Millisecond)
	t.Election = or(t.Election, t.Heartbeat)
	t.Lease = or(t.Lease, t.Heartbeat/2)
	t.Commit = or(t.Commit, 50*time.Millisecond)
	t.SnapshotThreshold = or(t.SnapshotThreshold, 8192)
	t.TrailingLogs = or(t.TrailingLogs, 8192)
	t.SnapshotInterval = or(t.SnapshotInterval, 30*time.Second)
	return t
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

const (
	// appendEntries is how many waiting proposals share one write to the disk, at most.
	appendEntries = 256
	// enqueueTimeout bounds how long a proposal waits to be looked at when its caller set no limit.
	enqueueTimeout = 5 * time.Second
	// drainTimeout bounds how long Close waits for proposals under way.
	drainTimeout  = 5 * time.Second
	keepSnapshots = 2
)

// Node is one member of the cluster. All methods may be called at any time from any goroutine.
type Node struct {
	id    raft.ServerID
	log   *slog.Logger
	raft  *raft.Raft
	fsm   *fsm
	trans transport
	store *store

	forward    Forwarder
	leadership leadership
	// replacing is held by proposals in common, and alone while the whole state is replaced.
	replacing sync.RWMutex

	// calls counts what runs inside raft for somebody; closing stops new ones.
	mu      sync.Mutex
	closing bool
	calls   sync.WaitGroup
	closed  chan struct{} // closed when raft has been shut down
	loop    sync.WaitGroup
	once    sync.Once
	err     error // of Close
}

// Open opens the node's folder and takes part in the cluster. What was acknowledged before is in
// the folder; it is in the state once WaitReady has returned. The errors to tell apart are ErrFormat
// and ErrNodeID; the others are the disk's.
//
// A node that is the only voter stands for election at once, so it is ready in a few milliseconds.
func Open(cfg Config) (*Node, error) {
	if cfg.NodeID == "" || cfg.DataDir == "" || cfg.Logger == nil {
		return nil, errors.New("quorum: NodeID, DataDir and Logger must be set")
	}
	timing := cfg.Timing.withDefaults()
	n := &Node{id: raft.ServerID(cfg.NodeID), log: cfg.Logger, closed: make(chan struct{})}
	n.fsm = newFSM(cfg.Logger)
	n.leadership.init()
	if n.forward = cfg.Forward; n.forward != nil {
		n.fsm.answers = make([]kept, keptAnswers)
	}

	if err := prepareFolder(cfg.DataDir, cfg.NodeID); err != nil {
		return nil, err
	}
	logger := newLogger(cfg.Logger)
	walDir := filepath.Join(cfg.DataDir, walFolder)
	store, err := openStore(walDir, logger.Named("wal"))
	if err != nil {
		return nil, err
	}
	n.store = store
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(cfg.DataDir, keepSnapshots, logger.Named("snapshot"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("quorum: open snapshots in %s: %w", cfg.DataDir, err), store.Close())
	}
	n.trans = newTransport(cfg, logger)

	notify := make(chan bool, 16)
	conf := raft.DefaultConfig()
	conf.LocalID = n.id
	conf.Logger = logger
	conf.NotifyCh = notify
	conf.NoLegacyTelemetry = true
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = timing.Heartbeat, timing.Election, timing.Lease
	conf.CommitTimeout = timing.Commit
	conf.SnapshotThreshold, conf.SnapshotInterval, conf.TrailingLogs = timing.SnapshotThreshold, timing.SnapshotInterval, timing.TrailingLogs
	conf.MaxAppendEntries = appendEntries

	fail := func(err error) (*Node, error) {
		return nil, errors.Join(fmt.Errorf("quorum: %w", err), n.trans.Close(), store.Close())
	}
	if cfg.Bootstrap {
		has, err := raft.HasExistingState(store, store, snapshots)
		if err != nil {
			return fail(err)
		}
		if !has {
			voters := raft.Configuration{Servers: []raft.Server{{ID: n.id, Address: n.trans.LocalAddr()}}}
			for _, p := range cfg.Peers {
				voters.Servers = append(voters.Servers, raft.Server{ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Addr)})
			}
			if err := raft.BootstrapCluster(conf, store, store, snapshots, n.trans, voters); err != nil {
				return fail(err)
			}
		}
	}
	if n.raft, err = raft.NewRaft(conf, n.fsm, store, store, snapshots, n.trans); err != nil {
		return fail(err)
	}
	n.loop.Go(func() { n.watchLeadership(notify) })
	if n.onlyVoter() {
		n.standNow()
	}
	return n, nil
}

// standNow makes this node a candidate without waiting for a leader that cannot exist: it tells
// itself what a leader that hands over tells its successor. If that fails, the timers will do.
func (n *Node) standNow() {
	header := raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(n.id),
		Addr:            n.trans.EncodePeer(n.id, n.trans.LocalAddr()),
	}
	err := n.trans.TimeoutNow(n.id, n.trans.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{})
	if err != nil {
		n.log.Debug("raft: could not skip the wait for a leader", "error", err)
	}
}

// Registry is the replicated registry. It is this node's copy: see Read for when that is not enough.
func (n *Node) Registry() *registry.State { return n.fsm.machine.Registry }

// Ledger is the replicated ledger, likewise.
func (n *Node) Ledger() *ledger.Ledger { return n.fsm.machine.Ledger }

// StateHash is the SHA-256 of the whole state and the index of the last command in it. At one index
// it is the same on every node.
func (n *Node) StateHash() (index uint64, sum [32]byte) {
	index, r, l := n.fsm.capture()
	return index, hashOf(r, l)
}

// Snapshot writes the state to the disk now and cuts the log; raft does so by itself too. It is no
// error if there was nothing new.
func (n *Node) Snapshot(ctx context.Context) error {
	return n.await(ctx, func() error {
		if err := n.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			return err
		}
		return nil
	})
}

// Failed is closed when this node has met a log entry that it does not understand: one of a newer
// Doze, or damage. Its state stays as it was before the entry, and every call that needs the log
// fails; the owner should close the node and say Err to its operator.
func (n *Node) Failed() <-chan struct{} { return n.fsm.failed }

// Err is why Failed is closed, else nil.
func (n *Node) Err() error { return n.fsm.err() }

// LogErr is why the last write of the log failed, nil when it did not: the disk is full, most likely.
// The node does not lead until a write succeeds; it tries again by itself.
func (n *Node) LogErr() error {
	if err := n.store.Err(); err != nil {
		return fmt.Errorf("quorum: the log cannot be written: %w", err)
	}
	return nil
}

// Close leaves in order: it refuses new calls, lets those under way end (for at most 5 s), hands
// leadership over if there is somebody to take it, and closes the stores. What was acknowledged is
// on the disk in any case. Further calls answer the same as the first.
func (n *Node) Close() error {
	n.once.Do(func() { n.err = n.close() })
	return n.err
}

func (n *Node) close() error {
	n.mu.Lock()
	n.closing = true
	n.mu.Unlock()
	n.drained(drainTimeout)
	if n.raft.State() == raft.Leader && !n.onlyVoter() {
		if err := n.raft.LeadershipTransfer().Error(); err != nil {
			n.log.Warn("raft: could not hand over leadership", "error", err)
		}
	}
	err := n.raft.Shutdown().Error()
	close(n.closed)
	n.loop.Wait()
	if !n.drained(drainTimeout) {
		err = errors.Join(err, errors.New("calls under way did not end"))
	}
	if err = errors.Join(err, n.trans.Close(), n.store.Close()); err != nil {
		return fmt.Errorf("quorum: close: %w", err)
	}
	return nil
}

// drained waits until no call is under way; false when that took too long.
func (n *Node) drained(limit time.Duration) bool {
	done := make(chan struct{})
	go func() { n.calls.Wait(); close(done) }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// begin registers a call; false when the node is closing.
func (n *Node) begin() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closing {
		return false
	}
	n.calls.Add(1)
	return true
}

// await runs f, which waits inside raft, and translates its error. raft's futures know no context:
// when ctx ends first, f goes on and its result is dropped.
func (n *Node) await(ctx context.Context, f func() error) error {
	if err := n.Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("quorum: not begun: %w", err)
	}
	if !n.begin() {
		return ErrClosed
	}
	done := make(chan error, 1)
	go func() {
		defer n.calls.Done()
		done <- f()
	}()
	select {
	case err := <-done:
		return n.translate(err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknown, ctx.Err())
	}
}
