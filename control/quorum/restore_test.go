package quorum

import (
	"bytes"
	"context"
	"errors"
	"testing"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// A state that is put in the place of a cluster's own is there on every node, goes through the form of
// snapshots unchanged, can be gone on with, and survives restarts.
func TestRestoreOnThree(t *testing.T) {
	ctx := deadline(t)
	from := openOne(t, t.TempDir())
	for _, name := range []string{"f", "g"} {
		if _, err := from.Propose(ctx, create(name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := from.ProposeUsage(ctx, []*dozev1.UsageBatch{usage("e", 1, 5, false)}); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := from.State().Write(&file); err != nil {
		t.Fatal(err)
	}
	state, err := ReadState(&file)
	if err != nil || state.Hash() != from.State().Hash() {
		t.Fatalf("read back: %v", err)
	}

	c := newCluster(t)
	leader := c.leader(c.nodes...)
	if _, err := leader.Propose(ctx, create("lost")); err != nil {
		t.Fatal(err)
	}
	before := leader.AppliedIndex()
	no := errors.New("no")
	if _, err := leader.Restore(ctx, state, func(now State) error {
		if now.Registry.Len() != 1 {
			t.Errorf("asked about %d functions", now.Registry.Len())
		}
		return no
	}); !errors.Is(err, no) {
		t.Errorf("refused: %v", err)
	}
	if _, ok := leader.Registry().Function("000000000000", "lost"); !ok {
		t.Error("a refused restoration changed the state")
	}
	for _, n := range c.nodes {
		if n != leader {
			if _, err := n.Restore(ctx, state, func(State) error { return nil }); !errors.Is(err, ErrNotLeader) {
				t.Errorf("on a follower: %v", err)
			}
		}
	}
	now, err := leader.Restore(ctx, state, func(State) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if now.Hash() != state.Hash() || now.Index <= before {
		t.Errorf("restored at index %d, after %d; the same state: %v", now.Index, before, now.Hash() == state.Hash())
	}
	c.agree(now.Index, c.nodes...)
	if _, err := leader.Propose(ctx, create("after")); err != nil {
		t.Fatal(err)
	}
	c.agree(leader.AppliedIndex(), c.nodes...)
	index := leader.AppliedIndex()
	for i, n := range c.nodes {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		c.open(i, listen(t))
	}
	// Addresses are new: of each other the nodes know by their log only what was, so that this is about
	// what each has on its disk.
	for _, n := range c.nodes {
		if got := n.AppliedIndex(); got > index {
			t.Errorf("applied %d of %d", got, index)
		}
		if _, ok := n.Registry().Function("000000000000", "g"); !ok {
			t.Error("after a restart the restored function is not there")
		}
	}
}

// Changes that are proposed while the state is replaced are either in what allowed saw, or come after.
func TestRestoreBesideProposals(t *testing.T) {
	ctx := deadline(t)
	empty := State{Registry: NewMachine().Registry.Snapshot(), Ledger: NewMachine().Ledger.Snapshot()}
	n := openOne(t, t.TempDir())
	acknowledged := make(chan string, 1000)
	proposing, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; proposing.Err() == nil && i < cap(acknowledged); i++ {
			name := "f" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
			if _, err := n.Propose(ctx, create(name)); err != nil {
				t.Error(err)
				return
			}
			acknowledged <- name
		}
	}()
	for len(acknowledged) < 20 {
		select {
		case <-done:
			t.Fatal("proposals ended")
		default:
		}
	}
	seen := map[string]bool{}
	if _, err := n.Restore(ctx, empty, func(State) error {
		for i := range 26 * 26 * 26 {
			name := "f" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
			if _, ok := n.Registry().Function("000000000000", name); !ok {
				break
			}
			seen[name] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	stop()
	<-done
	close(acknowledged)
	for name := range acknowledged {
		if _, ok := n.Registry().Function("000000000000", name); !ok && !seen[name] {
			t.Errorf("%s was acknowledged, was not seen before the change, and is not there after it", name)
		}
	}
}
