package testenv

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// sleeper sleeps for as long as its event says, and answers with the event.
const sleeper = `import time
def handler(event, context):
    time.sleep(event.get("sleep", 0))
    return event
`

// What is deployed, updated and deleted by way of one control node is so for the others at once; a call
// runs by way of any.
func TestClusterIsOne(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 1)
	first := c.Controls[0]
	first.Create(ctx, "f", first.Runtime(ctx, "python"), Python(t, sleeper))
	for _, n := range c.Controls {
		if out := n.Invoke(ctx, "f", `{"by":"`+n.Name+`"}`); !strings.Contains(string(out.Payload), n.Name) {
			t.Errorf("%s answered %s", n.Name, out.Payload)
		}
	}
	for i := range 12 {
		writer, reader := c.Controls[i%3], c.Controls[(i+1)%3]
		description := fmt.Sprint("change ", i)
		if _, err := writer.Client().UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{
			FunctionName: aws.String("f"), Description: &description,
		}); err != nil {
			t.Fatal(err)
		}
		got, err := reader.Client().GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")})
		if err != nil || aws.ToString(got.Description) != description {
			t.Errorf("%s reads %q (%v) after %s was told %q", reader.Name, aws.ToString(got.Description), err, writer.Name, description)
		}
		writer.WaitActive(ctx, "f")
	}
	c.Eventually(20*time.Second, "the bill has three calls, on every node", func() bool {
		for _, n := range c.Controls {
			if requests, _ := n.Requests(ctx, "f"); requests != 3 {
				return false
			}
		}
		return true
	})
	if _, err := c.Controls[1].Client().DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String("f")}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Controls[2].Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f")}); err == nil || !strings.Contains(err.Error(), "Function not found") {
		t.Errorf("a deleted function answered %v", err)
	}
	c.SameState(ctx)
}

// load calls functions by way of the given nodes until it is ended; it counts what came of the calls.
type load struct {
	answered, failed atomic.Int64
	slowest          atomic.Int64 // nanoseconds
	mu               sync.Mutex
	failures         []string
	stop             context.CancelFunc
	group            sync.WaitGroup
}

func startLoad(ctx context.Context, callers int, payload string, functions []string, nodes ...*Member) *load {
	l := &load{}
	running, stop := context.WithCancel(ctx)
	l.stop = stop
	for i := range callers {
		client := nodes[i%len(nodes)].Client()
		name := nodes[i%len(nodes)].Name
		l.group.Go(func() {
			for call := 0; running.Err() == nil; call++ {
				begun := time.Now()
				out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String(functions[call%len(functions)]), Payload: []byte(payload)})
				if took := int64(time.Since(begun)); took > l.slowest.Load() {
					l.slowest.Store(took)
				}
				if err == nil && out.FunctionError == nil {
					l.answered.Add(1)
					continue
				}
				l.failed.Add(1)
				l.mu.Lock()
				l.failures = append(l.failures, fmt.Sprintf("%s after %v: %v", name, time.Since(begun), err))
				l.mu.Unlock()
			}
		})
	}
	return l
}

func (l *load) end() {
	l.stop()
	l.group.Wait()
}

// functions are several, so that every control node is the home of some.
func (c *Cluster) functions(ctx context.Context, n int) (names []string) {
	first := c.Others()[0]
	runtime := first.Runtime(ctx, "python")
	for i := range n {
		names = append(names, fmt.Sprint("f", i))
		first.Create(ctx, names[i], runtime, Python(c.t.(*testing.T), sleeper))
	}
	return names
}

// The leader is killed while calls run: calls by way of the others do not fail, whichever node their
// queues were at, and what is deployed is there; it comes back and is one of them again.
func TestLeaderKilledUnderLoad(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 2)
	names := c.functions(ctx, 6)
	leader := c.Leader(ctx)
	others := c.Others(leader)
	l := startLoad(ctx, 8, `{"sleep":0.05}`, names, others...)
	c.Eventually(60*time.Second, "100 calls are answered", func() bool { return l.answered.Load() >= 100 })
	leader.Kill()
	before := l.answered.Load()
	c.Eventually(60*time.Second, "200 more calls are answered", func() bool { return l.answered.Load() >= before+200 })

	killed := time.Now()
	next := c.Leader(ctx)
	t.Logf("%s leads after %s was killed; seen %v later", next.Name, leader.Name, time.Since(killed))
	others[0].Create(ctx, "after", others[0].Runtime(ctx, "python"), Python(t, sleeper))
	leader.Start()
	c.Eventually(60*time.Second, "all three take calls", func() bool {
		serving := 0
		for _, n := range others[0].Status(ctx).Nodes {
			if n.Serving && n.Voter && n.Alive {
				serving++
			}
		}
		return serving == 3
	})
	leader.Invoke(ctx, "after", "{}")
	l.end()
	if l.failed.Load() > 0 {
		t.Errorf("%d calls failed, first: %s", l.failed.Load(), l.failures[0])
	}
	t.Logf("%d calls answered, the slowest after %v", l.answered.Load(), time.Duration(l.slowest.Load()))
	c.SameState(ctx)
}

// A worker is killed with calls running: their callers are told at once, the others go on.
func TestWorkerKilledWithCallsRunning(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 2)
	first := c.Controls[0]
	first.Create(ctx, "f", first.Runtime(ctx, "python"), Python(t, sleeper), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(120) })
	type end struct {
		at  time.Time
		err error
	}
	ends := make(chan end, 12)
	client := make([]*lambda.Client, 3)
	for i, n := range c.Controls {
		client[i] = n.Client()
	}
	for i := range cap(ends) {
		go func() {
			_, err := client[i%3].Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"sleep":60}`)})
			ends <- end{time.Now(), err}
		}()
	}
	busy := func(worker string) (n int) {
		for _, i := range first.Instances(ctx, "f") {
			if i.State == "busy" && i.Worker == worker {
				n++
			}
		}
		return n
	}
	c.Eventually(60*time.Second, "all calls run", func() bool { return busy("w1")+busy("w2") == cap(ends) })
	victim := c.Workers[0]
	if busy(victim.Name) == 0 {
		victim = c.Workers[1]
	}
	running := busy(victim.Name)
	victim.Kill()
	killed := time.Now()
	for range running {
		e := <-ends
		if e.err == nil {
			t.Error("a call on a killed worker was answered")
		}
		if took := e.at.Sub(killed); took > 2*time.Second {
			t.Errorf("the caller was told after %v", took)
		}
	}
	t.Logf("%d callers of %s were told, the last after %v", running, victim.Name, time.Since(killed))
	if out := first.Invoke(ctx, "f", `{}`); out.FunctionError != nil {
		t.Errorf("the next call: %s", out.Payload)
	}
	for _, w := range c.Workers {
		if w.cmd != nil {
			w.Kill() // what still sleeps there has a minute to go
		}
	}
	for range cap(ends) - running {
		<-ends
	}
}

// A control node is killed that is the home of waiting and running calls: those of the others come to
// their end as if nothing had been.
func TestHomeKilled(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 1)
	names := c.functions(ctx, 9)
	victim := c.Others(c.Leader(ctx))[0]
	others := c.Others(victim)
	for _, f := range names {
		others[0].Invoke(ctx, f, "{}")
	}
	l := startLoad(ctx, 9, `{"sleep":1}`, names, others...)
	c.Eventually(60*time.Second, "calls are answered", func() bool { return l.answered.Load() >= 9 })
	victim.Kill()
	before := l.answered.Load()
	c.Eventually(60*time.Second, "more calls are answered", func() bool { return l.answered.Load() >= before+27 })
	l.end()
	if l.failed.Load() > 0 {
		t.Errorf("%d calls failed, first: %s", l.failed.Load(), l.failures[0])
	}
	if slowest := time.Duration(l.slowest.Load()); slowest > 6*time.Second {
		t.Errorf("a call took %v", slowest)
	}
}

// Every process is killed at once and started again: each control node serves within ten seconds; functions,
// code and bill are there, and an event that was accepted before runs.
func TestEverythingKilledAndStartedAgain(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 2)
	first := c.Controls[0]
	first.Create(ctx, "f", first.Runtime(ctx, "python"), Python(t, sleeper))
	first.Invoke(ctx, "f", "{}")
	c.Eventually(20*time.Second, "the call is billed", func() bool { n, _ := first.Requests(ctx, "f"); return n == 1 })
	for _, w := range c.Workers {
		w.Kill()
	}
	event := func(n *Member) error {
		_, err := n.Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: []byte("{}")})
		return err
	}
	for _, n := range c.Controls {
		if err := event(n); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Controls {
		n.Kill()
	}
	begun := time.Now()
	for _, n := range c.Nodes() {
		if err := n.launch(); err != nil {
			t.Fatal(err)
		}
	}
	serving := make(chan string, len(c.Controls))
	for _, n := range c.Controls {
		client := n.Client()
		go func() {
			for ctx.Err() == nil {
				if out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("{}")}); err == nil && out.FunctionError == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			serving <- n.Name
		}()
	}
	for range c.Controls {
		name := <-serving
		took := time.Since(begun)
		t.Logf("%s answers a call after %v", name, took)
		if took > 10*time.Second {
			t.Errorf("%s answers a call after %v", name, took)
		}
	}
	for _, n := range c.Nodes() {
		if err := n.await(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("every node is ready after %v", time.Since(begun))
	if err := event(first); err != nil {
		t.Errorf("the first event afterwards: %v", err)
	}
	t.Logf("an event is accepted after %v", time.Since(begun))
	c.Eventually(60*time.Second, "eight calls and events are billed", func() bool {
		n, _ := c.Controls[2].Requests(ctx, "f")
		return n == 8
	})
	t.Logf("all is billed after %v", time.Since(begun))
	c.settled(ctx, first, "c1", "c2", "c3", "w1", "w2")
	c.SameState(ctx)
}

// A control node that lost its disk comes back by the same name and has everything: it counts when another
// one goes.
func TestControlNodeComesBackEmpty(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 1)
	first := c.Controls[0]
	python := first.Runtime(ctx, "python")
	first.Create(ctx, "f", python, Python(t, sleeper))
	for _, victim := range []*Member{c.Controls[2], c.Leader(ctx)} { // the second may be the same one, or the least
		victim.Kill()
		if err := victim.Wipe(); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		victim.Start()
		t.Logf("%s is ready %v after its start with no disk", victim.Name, time.Since(begun))
		victim.Invoke(ctx, "f", "{}")
		c.settled(ctx, victim, "c1", "c2", "c3", "w1")
		t.Logf("%s has all streams after %v", victim.Name, time.Since(begun))
		c.SameState(ctx)

		other := c.Others(victim)[0]
		other.Kill()
		name := "after-" + victim.Name
		victim.Create(ctx, name, python, Python(t, sleeper))
		if _, err := victim.Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String(name), InvocationType: types.InvocationTypeEvent, Payload: []byte("{}")}); err != nil {
			t.Errorf("an event without %s: %v", other.Name, err)
		}
		c.Eventually(30*time.Second, "the event is billed", func() bool { n, _ := victim.Requests(ctx, name); return n == 1 })
		c.StartAll(other)
		c.settled(ctx, victim, "c1", "c2", "c3", "w1")
	}
	c.SameState(ctx)
}

// A worker that is stopped with a call running is given up; thawed, it runs nothing twice and takes
// calls again.
func TestWorkerFrozenAndThawed(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 1)
	first := c.Controls[0]
	first.Create(ctx, "f", first.Runtime(ctx, "python"), Python(t, sleeper), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(60) })
	first.Invoke(ctx, "f", "{}")
	failed := make(chan error, 1)
	go func() {
		_, err := c.Controls[1].Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"sleep":20}`)})
		failed <- err
	}()
	c.Eventually(20*time.Second, "the call runs", func() bool {
		all := first.Instances(ctx, "f")
		return len(all) > 0 && all[0].State == "busy"
	})
	if err := c.Workers[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := <-failed; err == nil {
		t.Error("a call on a stopped worker was answered")
	}
	if took := time.Since(begun); took > 4*time.Second {
		t.Errorf("the caller was told after %v", took)
	}
	if err := c.Workers[0].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.Eventually(20*time.Second, "the worker takes calls again", func() bool {
		_, err := first.Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("{}")})
		return err == nil
	})
}
