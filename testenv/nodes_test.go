package testenv

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// states are the nodes' states by name, as `doze node list --json` has them.
func states(t *testing.T, n *Member) map[string]NodeInfo {
	t.Helper()
	out, text, code := n.CLI(t.Context(), "node", "list", "--json")
	if code != 0 {
		t.Fatalf("doze node list: %d %s", code, text)
	}
	var all []NodeInfo
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	byName := map[string]NodeInfo{}
	for _, one := range all {
		byName[one.Name] = one
	}
	return byName
}

// settled waits until the nodes of these names, and no others, are alive and have all of their streams.
func (c *Cluster) settled(ctx context.Context, by *Member, names ...string) {
	c.t.Helper()
	var seen []NodeInfo
	defer func() {
		if c.t.Failed() {
			c.t.Logf("%s sees %+v", by.Name, seen)
		}
	}()
	c.Eventually(60*time.Second, fmt.Sprintf("%v are the nodes, alive and with all of their streams", names), func() bool {
		seen = by.NodeList(ctx)
		if len(seen) != len(names) {
			return false
		}
		for i, n := range seen {
			if n.Name != names[i] || n.State != "alive" || n.StreamsBehind > 0 {
				return false
			}
		}
		return true
	})
}

// What nodes there are is listed, and one that drains is empty when the command says so: a worker with a call
// running, then a control node.
func TestNodeListAndDrain(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 2)
	first := c.Controls[0]
	first.Create(ctx, "f", first.Runtime(ctx, "python"), Python(t, sleeper), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(60) })
	c.settled(ctx, first, "c1", "c2", "c3", "w1", "w2")
	leaders := 0
	for name, n := range states(t, first) {
		switch {
		case n.Role == "control" && n.Raft == "leader":
			leaders++
		case n.Role == "control" && n.Raft != "follower" || n.Address == "" || n.Version == "",
			n.Role == "worker" && (n.MemoryTotal == 0 || n.Raft != ""):
			t.Errorf("%s is %+v", name, n)
		}
	}
	if leaders != 1 {
		t.Errorf("%d nodes lead", leaders)
	}
	if out, _, code := first.CLI(ctx, "node", "list"); code != 0 || !strings.Contains(out, "leader") || !strings.Contains(out, "w2") {
		t.Errorf("%d %s", code, out)
	}
	for _, bad := range []struct{ args, says string }{
		{"drain nobody", "No node is called nobody"}, {"remove nobody", "No node is called nobody"}, {"remove w1", "w1 is there (alive)"},
		{"remove c2", "c2 is there (alive)"}, {"drain", "needs the name of a node"},
	} {
		if out, text, code := first.CLI(ctx, append([]string{"node"}, strings.Fields(bad.args)...)...); code == 0 || !strings.Contains(text, bad.says) {
			t.Errorf("doze node %s: %d %s%s", bad.args, code, out, text)
		}
	}

	failed := make(chan error, 1)
	go func() {
		_, err := c.Controls[1].Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"sleep":3}`)})
		failed <- err
	}()
	var worker string
	c.Eventually(20*time.Second, "the call runs", func() bool {
		for _, i := range first.Instances(ctx, "f") {
			if i.State == "busy" {
				worker = i.Worker
			}
		}
		return worker != ""
	})
	_, progress, code := first.CLI(ctx, "node", "drain", worker)
	if code != 0 || !strings.Contains(progress, "draining, 1 call, 1 instance") || !strings.HasSuffix(strings.TrimSpace(progress), "drained, 0 calls, 0 instances") {
		t.Errorf("drain %s: %d\n%s", worker, code, progress)
	}
	select {
	case err := <-failed:
		if err != nil {
			t.Errorf("the call that ran: %v", err)
		}
	case <-time.After(time.Second):
		t.Error("drained with a call running")
	}
	if n, _ := first.Requests(ctx, "f"); n != 1 {
		t.Errorf("the bill of what a drained worker ran has %d calls", n)
	}
	for range 3 {
		first.Invoke(ctx, "f", "{}")
	}
	for _, i := range first.Instances(ctx, "f") {
		if i.Worker == worker {
			t.Errorf("an instance on %s, which is drained", worker)
		}
	}

	leader := c.Leader(ctx)
	if _, progress, code := first.CLI(ctx, "node", "drain", leader.Name); code != 0 || !strings.Contains(progress, leader.Name+": drained") {
		t.Errorf("drain %s: %d\n%s", leader.Name, code, progress)
	}
	if n := states(t, leader)[leader.Name]; n.State != "drained" || n.Raft != "follower" || n.StreamsLed != 0 {
		t.Errorf("the drained leader is %+v", n)
	}
	if ready, words := leader.ready(ctx); ready {
		t.Errorf("a drained control node is ready: %s", words)
	}
	leader.Invoke(ctx, "f", "{}") // who still comes is answered
	for _, n := range c.Nodes() {
		if n == leader || n.Name == worker {
			if err := n.Stop(); err != nil {
				t.Error(err)
			}
			n.Start()
		}
	}
	c.settled(ctx, c.Others(leader)[0], "c1", "c2", "c3", "w1", "w2")
}

// Dead nodes are taken out of all of the cluster; what would leave no majority is refused. One that was
// removed does not come back with its old disk, and one of another name takes its place.
func TestNodeRemove(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 2)
	first := c.Controls[0]
	runtime := first.Runtime(ctx, "python")
	first.Create(ctx, "f", runtime, Python(t, sleeper))
	c.settled(ctx, first, "c1", "c2", "c3", "w1", "w2")

	c.Workers[0].Kill()
	c.Eventually(20*time.Second, "w1 is dead", func() bool { return states(t, first)["w1"].State == "dead" })
	if _, text, code := first.CLI(ctx, "node", "remove", "w1"); code != 0 {
		t.Errorf("remove w1: %s", text)
	}
	for _, n := range c.Controls {
		if got, ok := states(t, n)["w1"]; ok {
			t.Errorf("%s still lists %+v", n.Name, got)
		}
	}

	lost := c.Controls[2]
	lost.Kill()
	c.Eventually(20*time.Second, "c3 is dead", func() bool { n := states(t, first)["c3"]; return n.State == "dead" && n.Raft == "voter" })
	if _, text, code := first.CLI(ctx, "node", "remove", "--force", "c2"); code == 0 || !strings.Contains(text, "no majority") || !strings.Contains(text, "c3 (dead)") {
		t.Errorf("removed c2 of c1, c2 and the dead c3: %d %s", code, text)
	}
	begun := time.Now()
	if out, text, code := first.CLI(ctx, "node", "remove", "--json", "c3"); code != 0 || strings.Contains(out, `"c3"`) {
		t.Errorf("remove c3: %d %s%s", code, out, text)
	}
	t.Logf("removed after %v", time.Since(begun))
	c.settled(ctx, c.Controls[1], "c1", "c2", "w2")

	// It comes back with its old disk, and is told.
	if err := lost.start(); err == nil {
		if err := lost.Wait(30 * time.Second); err == nil {
			t.Error("a removed node ended as if nothing had been")
		}
	}
	if text := lost.Stderr(); !strings.Contains(text, "removed") {
		t.Errorf("it said\n%s", text)
	}
	lost.cmd = nil
	if err := lost.start(); err == nil || !strings.Contains(err.Error(), "was removed from its cluster") {
		t.Errorf("started once more: %v", err)
	}
	lost.cmd = nil

	next := c.control("c4", 3)
	c.Controls[2] = next
	c.StartAll(next)
	c.settled(ctx, first, "c1", "c2", "c4", "w2")
	first.Kill()
	next.Create(ctx, "g", runtime, Python(t, sleeper)) // code on two of three
	next.Invoke(ctx, "f", "{}")
	if _, err := next.Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("g"), InvocationType: types.InvocationTypeEvent, Payload: []byte("{}")}); err != nil {
		t.Errorf("an event: %v", err)
	}
	first.Start()
	c.settled(ctx, next, "c1", "c2", "c4", "w2")
	if n, text, code := next.CLI(ctx, "node", "remove", "--force", "w2"); code != 0 {
		t.Errorf("remove a living worker: %s%s", n, text)
	}
	if err := c.Workers[1].Wait(30 * time.Second); err == nil {
		t.Error("a worker that was removed ended as if nothing had been")
	}
	c.SameState(ctx)
}
