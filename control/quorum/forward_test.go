package quorum

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/doze-run/doze/control/registry"
)

// direct forwards within the process, as the bus does between processes.
type direct struct {
	mu    sync.Mutex
	nodes map[string]*Node
}

func (d *direct) node(id string) *Node {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.nodes[id]
}

func (d *direct) Apply(ctx context.Context, leader string, entry []byte) (uint64, error) {
	if n := d.node(leader); n != nil {
		return n.ApplyForwarded(ctx, entry)
	}
	return 0, &NotLeaderError{ID: leader}
}

func (d *direct) ReadIndex(ctx context.Context, leader string) (uint64, error) {
	if n := d.node(leader); n != nil {
		return n.ReadIndex(ctx)
	}
	return 0, &NotLeaderError{ID: leader}
}

// Three nodes of which none was there before begin a cluster together; what is proposed on any of
// them is answered as on the leader, and read on any other at once, also over a change of leaders.
func TestFollowersForward(t *testing.T) {
	ctx := deadline(t)
	d := &direct{nodes: map[string]*Node{}}
	c := &cluster{t: t}
	var peers []Member
	var configs []Config
	for i := range 3 {
		c.nodes, c.dirs = append(c.nodes, nil), append(c.dirs, t.TempDir())
		l := listen(t)
		configs = append(configs, Config{NodeID: c.id(i), DataDir: c.dirs[i], Listener: l, Logger: quiet(), Timing: fast, Forward: d})
		if i > 0 {
			peers = append(peers, Member{ID: c.id(i), Addr: l.Addr().String(), Voter: true})
		}
	}
	configs[0].Bootstrap, configs[0].Peers = true, peers
	for i, config := range configs {
		if has, err := HasState(c.dirs[i], quiet()); has || err != nil {
			t.Fatalf("a new folder has state: %v, %v", has, err)
		}
		n, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		c.nodes[i] = n
		d.nodes[c.id(i)] = n
	}
	for _, n := range c.nodes {
		if err := n.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	lead := c.leader(c.nodes...)
	round := func(nodes []*Node, prefix string) {
		t.Helper()
		for i, n := range nodes {
			name := fmt.Sprint(prefix, i)
			answer, err := n.Propose(ctx, create(name))
			if v, ok := answer.(*registry.Version); err != nil || !ok || v.RevisionID != "rev-"+name {
				t.Fatalf("%s answered %#v, %v", n.id, answer, err)
			}
			if _, err := n.Propose(ctx, create(name)); !errors.Is(err, registry.ErrExists) {
				t.Errorf("%s: the second create: %v", n.id, err)
			}
			other := nodes[(i+1)%len(nodes)]
			if err := other.Read(ctx); err != nil {
				t.Fatal(err)
			}
			if _, ok := other.Registry().Function("000000000000", name); !ok {
				t.Errorf("%s does not see what %s was told", other.id, n.id)
			}
		}
	}
	round(c.nodes, "a")
	var rest []*Node
	for _, n := range c.nodes {
		if n != lead {
			rest = append(rest, n)
		}
	}
	d.mu.Lock()
	delete(d.nodes, string(lead.id))
	d.mu.Unlock()
	if err := lead.Close(); err != nil {
		t.Fatal(err)
	}
	round(rest, "b")
	if err := rest[0].Close(); err != nil {
		t.Fatal(err)
	}
	for i := range c.nodes {
		if c.nodes[i] == rest[0] {
			if has, err := HasState(c.dirs[i], quiet()); !has || err != nil {
				t.Errorf("a folder that took part has no state: %v, %v", has, err)
			}
		}
	}
}
