package quorum

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// fast is quick to notice a dead leader, and slow enough for the race detector on a busy machine.
var fast = Timing{Heartbeat: 200 * time.Millisecond, TrailingLogs: 8}

type cluster struct {
	t     *testing.T
	nodes []*Node
	dirs  []string
}

// newCluster is three voters over loopback TCP; the first bootstrapped and leads.
func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t}
	ctx := deadline(t)
	for i := range 3 {
		c.dirs = append(c.dirs, t.TempDir())
		c.nodes = append(c.nodes, nil)
		c.open(i, listen(t))
		if i == 0 {
			if err := c.nodes[0].WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
		} else if err := c.nodes[0].AddVoter(ctx, c.id(i), c.addr(i)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

func (c *cluster) id(i int) string   { return fmt.Sprintf("n%d", i+1) }
func (c *cluster) addr(i int) string { return string(c.nodes[i].trans.LocalAddr()) }

func (c *cluster) open(i int, l net.Listener) {
	c.t.Helper()
	n, err := Open(Config{NodeID: c.id(i), DataDir: c.dirs[i], Bootstrap: i == 0, Listener: l, Logger: quiet(), Timing: fast})
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[i] = n
}

// leader waits until one of the nodes leads.
func (c *cluster) leader(among ...*Node) *Node {
	c.t.Helper()
	ctx, cancel := context.WithCancel(deadline(c.t))
	defer cancel()
	found := make(chan *Node, len(among))
	var wg sync.WaitGroup
	for _, n := range among {
		wg.Go(func() {
			n.Lead(ctx, func(context.Context) { found <- n; cancel() })
		})
	}
	wg.Wait()
	select {
	case n := <-found:
		return n
	default:
		c.t.Fatal("no leader")
		return nil
	}
}

// agree checks that all nodes have the same state once they have applied the same index.
func (c *cluster) agree(index uint64, nodes ...*Node) {
	c.t.Helper()
	ctx := deadline(c.t)
	var first [32]byte
	for i, n := range nodes {
		if err := n.WaitApplied(ctx, index); err != nil {
			c.t.Fatal(err)
		}
		at, sum := n.StateHash()
		if i == 0 {
			first = sum
		}
		if at != index || sum != first {
			c.t.Fatalf("node %s: index %d (want %d), same state: %v", n.id, at, index, sum == first)
		}
	}
}

func TestThreeNodesAgreeAndSurviveTheLeader(t *testing.T) {
	c := newCluster(t)
	ctx := deadline(t)
	lead := c.leader(c.nodes...)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := lead.Propose(ctx, create(fmt.Sprintf("f%d", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := lead.ProposeUsage(ctx, []*dozev1.UsageBatch{usage("e", 1, 4, false)}); err != nil {
		t.Fatal(err)
	}
	index, err := lead.ReadIndex(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.agree(index, c.nodes...)

	var rest []*Node
	for _, n := range c.nodes {
		if n == lead {
			continue
		}
		rest = append(rest, n)
		var nl *NotLeaderError
		if _, err := n.Propose(ctx, create("x")); !errors.As(err, &nl) || nl.ID != string(lead.id) {
			t.Errorf("follower's propose: %v", err)
		}
		if err := n.Read(ctx); !errors.Is(err, ErrNotLeader) {
			t.Errorf("follower's read: %v", err)
		}
	}
	if err := lead.Close(); err != nil {
		t.Fatal(err)
	}
	next := c.leader(rest...)
	if err := next.Read(ctx); err != nil {
		t.Fatal(err)
	}
	if _, ok := next.Registry().Function("000000000000", "f49"); !ok {
		t.Fatal("acknowledged by the old leader, not readable from the new one")
	}
	if _, err := next.Propose(ctx, create("after")); err != nil {
		t.Fatal(err)
	}
	if index, err = next.ReadIndex(ctx); err != nil {
		t.Fatal(err)
	}
	c.agree(index, rest...)
}

func TestNodeThatWasAwayCatchesUpFromASnapshot(t *testing.T) {
	c := newCluster(t)
	ctx := deadline(t)
	addr := c.addr(2)
	if err := c.nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	lead := c.leader(c.nodes[:2]...)
	for i := range 40 {
		if _, err := lead.Propose(ctx, create(fmt.Sprintf("f%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	// The log no longer reaches back to where the third node left.
	if err := lead.Snapshot(ctx); err != nil {
		t.Fatal(err)
	}
	if first, err := lead.store.FirstIndex(); err != nil || first < 20 {
		t.Fatalf("log begins at %d, %v", first, err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.open(2, l)
	index, err := lead.ReadIndex(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.agree(index, c.nodes...)
}

func TestRemoveAndMembers(t *testing.T) {
	c := newCluster(t)
	ctx := deadline(t)
	lead := c.leader(c.nodes...)
	var gone *Node
	for _, n := range c.nodes {
		if n != lead {
			gone = n
		}
	}
	if err := lead.Remove(ctx, string(gone.id)); err != nil {
		t.Fatal(err)
	}
	members, err := lead.Members()
	if err != nil || len(members) != 2 {
		t.Fatalf("members = %v, %v", members, err)
	}
	if _, err := lead.Propose(ctx, create("f")); err != nil {
		t.Fatal(err)
	}
	if err := lead.AddVoter(ctx, "", ""); err == nil {
		t.Fatal("added a nameless voter")
	}
}

func TestLeaderWithoutMajorityAcknowledgesNothing(t *testing.T) {
	c := newCluster(t)
	ctx := deadline(t)
	lead := c.leader(c.nodes...)
	for _, n := range c.nodes {
		if n != lead {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := lead.Propose(ctx, create("f"))
	if !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotLeader) {
		t.Fatalf("propose: %v", err)
	}
	if err := lead.Read(ctx); !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrUnknown) {
		t.Fatalf("read: %v", err)
	}
	if _, ok := lead.Registry().Function("000000000000", "f"); ok {
		t.Fatal("applied without a majority")
	}
}

func TestLeadEndsWithLeadership(t *testing.T) {
	n := openOne(t, t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		n.Lead(ctx, func(ctx context.Context) {
			close(started)
			<-ctx.Done()
			close(ended)
		})
	})
	<-started
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
	wg.Wait()
	cancel()
	if err := n.WaitReady(context.Background()); !errors.Is(err, ErrClosed) {
		t.Fatalf("ready after Close: %v", err)
	}
}

func TestReadersRunWhileTheLogIsApplied(t *testing.T) {
	n := openOne(t, t.TempDir(), func(c *Config) { c.Timing.SnapshotThreshold, c.Timing.SnapshotInterval = 16, 5*time.Millisecond })
	ctx, cancel := context.WithCancel(deadline(t))
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for ctx.Err() == nil {
				n.StateHash()
				n.Registry().List("000000000000", "", 10)
				if _, err := n.Ledger().Statement("000000000000", ledger.MonthOf(0), ledger.DefaultPrices(), 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for w := range 8 {
		writers.Go(func() {
			for i := range 20 {
				name := fmt.Sprintf("f%d-%d", w, i)
				_, err := n.Propose(ctx, create(name))
				if err != nil {
					t.Error(err)
				}
				if _, err := n.Propose(ctx, registry.DeleteFunction{Account: "000000000000", Name: name}); err != nil {
					t.Error(err)
				}
				if _, err := n.ProposeUsage(ctx, []*dozev1.UsageBatch{usage(name, 1, 3, true)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	cancel()
	readers.Wait()
}
