package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
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

// recorder notes each of its runs in a file outside, which only works without a sandbox.
const recorder = `import os, time
runs = os.open(os.environ["RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
def handler(event, context):
    os.write(runs, (event["id"] + "\n").encode())
    time.sleep(event.get("sleep", 0))
    return event["id"]
`

// runs are the ids in the recorder's file, with how often each is there.
func runs(t *testing.T, file string) map[string]int {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for _, id := range strings.Fields(string(raw)) {
		all[id]++
	}
	return all
}

// balanced calls functions as the clients of a load balancer do: a node that refuses the connection is left
// for the next one, and what was sent is never sent again.
type balanced struct {
	t       *testing.T
	nodes   []*Member
	group   sync.WaitGroup
	running context.Context
	stop    context.CancelFunc

	calls, refused atomic.Int64
	slowest        atomic.Int64 // nanoseconds
	mu             sync.Mutex
	failures       []string
	addresses      []string        // of the nodes; they stay the same
	answered       map[string]bool // ids of sync calls
	accepted       map[string]bool // ids of events
}

func newBalanced(t *testing.T, nodes []*Member) *balanced {
	b := &balanced{t: t, nodes: nodes, answered: map[string]bool{}, accepted: map[string]bool{}}
	b.running, b.stop = context.WithCancel(t.Context())
	for _, n := range nodes {
		b.addresses = append(b.addresses, n.HTTP)
	}
	return b
}

// caller calls until the load ends; event callers pause, so that events do not crowd out calls.
func (b *balanced) caller(name string, functions []string, event, keepAlive bool) {
	// As README asks of a balancer, idle connections are given up before the notice is over: HTTP has no way to tell
	// who sends a request in the instant in which an idle connection is closed that nobody read it.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: !keepAlive, IdleConnTimeout: time.Second}}
	b.group.Go(func() {
		defer client.CloseIdleConnections()
		for n := 0; b.running.Err() == nil; n++ {
			id := fmt.Sprint(name, "-", n)
			begun := time.Now()
			err := b.call(client, functions[n%len(functions)], id, n, event)
			if took := int64(time.Since(begun)); took > b.slowest.Load() {
				b.slowest.Store(took)
			}
			b.calls.Add(1)
			b.mu.Lock()
			switch {
			case err != nil:
				b.failures = append(b.failures, fmt.Sprintf("%s at %s after %v: %v", id, time.Now().Format("15:04:05.000"), time.Since(begun), err))
			case event:
				b.accepted[id] = true
			default:
				b.answered[id] = true
			}
			b.mu.Unlock()
			if event {
				time.Sleep(50 * time.Millisecond)
			}
		}
	})
}

func (b *balanced) failed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.failures)
}

// call sends one call to the first node that takes the connection.
func (b *balanced) call(client *http.Client, function, id string, first int, event bool) error {
	body := fmt.Sprintf(`{"id":%q,"sleep":0.05}`, id)
	for try := range 2 * len(b.nodes) {
		node := b.nodes[(first+try)%len(b.nodes)]
		request, err := http.NewRequest(http.MethodPost, "http://"+b.addresses[(first+try)%len(b.nodes)]+"/2015-03-31/functions/"+function+"/invocations", bytes.NewReader([]byte(body)))
		if err != nil {
			return err
		}
		request.GetBody = nil // nobody sends it twice
		want := http.StatusOK
		if event {
			request.Header.Set("X-Amz-Invocation-Type", "Event")
			want = http.StatusAccepted
		}
		answer, err := client.Do(request)
		if errors.Is(err, syscall.ECONNREFUSED) {
			b.refused.Add(1)
			continue
		}
		if err != nil {
			return fmt.Errorf("by way of %s: %w", node.Name, err)
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		switch {
		case err != nil:
			return fmt.Errorf("by way of %s: %w", node.Name, err)
		case answer.StatusCode != want || answer.Header.Get("X-Amz-Function-Error") != "" || !event && string(text) != `"`+id+`"`:
			return fmt.Errorf("by way of %s: %s %s", node.Name, answer.Status, text)
		}
		return nil
	}
	return errors.New("every node refuses connections")
}

// Every node is stopped in order and started again, one after the other, under load. No sync call fails or
// runs twice, no accepted event is lost, and the bill is what ran.
func TestRollingRestart(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 2, "--sandbox", "process")
	first := c.Controls[0]
	file := filepath.Join(t.TempDir(), "runs")
	var names []string
	for i := range 6 { // so that every control node is the home of some
		names = append(names, fmt.Sprint("f", i))
		first.Create(ctx, names[i], first.Runtime(ctx, "python"), Python(t, recorder), func(in *lambda.CreateFunctionInput) {
			in.Environment = &types.Environment{Variables: map[string]string{"RUNS": file}}
		})
	}
	b := newBalanced(t, c.Controls)
	for i := range 8 {
		b.caller(fmt.Sprint("sync", i), names, false, i%2 == 0)
	}
	b.caller("event", names, true, true)
	more := func(n int64) {
		t.Helper()
		from := b.calls.Load()
		c.Eventually(60*time.Second, fmt.Sprintf("%d more calls come to their end", n), func() bool { return b.calls.Load() >= from+n })
	}
	more(200)
	leader := c.Leader(ctx)
	for _, n := range append(append(c.Others(leader), leader), c.Workers...) {
		begun := time.Now()
		if err := n.Stop(); err != nil {
			t.Errorf("%s does not stop in order: %v", n.Name, err)
		}
		stopped := time.Since(begun)
		more(50)
		again := time.Now()
		c.StartAll(n)
		ready := time.Since(again)
		c.Eventually(60*time.Second, "every node is alive and has its streams", func() bool {
			for _, n := range c.Controls[0].NodeList(ctx) {
				if n.State != "alive" || n.StreamsBehind > 0 {
					return false
				}
			}
			return true
		})
		t.Logf("%s: stopped after %v, ready %v after its start, whole after %v; %d calls, %d failed", n.Name, stopped, ready, time.Since(again), b.calls.Load(), b.failed())
		more(50)
	}
	b.stop()
	b.group.Wait()
	for _, f := range b.failures {
		t.Error("failed: ", f)
	}
	t.Logf("%d calls, %d events; %d connections were refused; the slowest took %v", len(b.answered), len(b.accepted), b.refused.Load(), time.Duration(b.slowest.Load()))

	c.Eventually(60*time.Second, "every accepted event has run, and none will run again", func() bool {
		if first.Status(ctx).PendingEvents > 0 {
			return false
		}
		ran := runs(t, file)
		for id := range b.accepted {
			if ran[id] == 0 {
				return false
			}
		}
		return true
	})
	var total int64
	for id, n := range runs(t, file) {
		total += int64(n)
		if n > 1 && strings.HasPrefix(id, "sync") {
			t.Errorf("%s ran %d times", id, n)
		}
	}
	for id := range b.answered {
		if runs(t, file)[id] != 1 {
			t.Errorf("%s was answered and did not run once", id)
			break
		}
	}
	billed := int64(0)
	c.Eventually(60*time.Second, fmt.Sprintf("the bill has %d requests", total), func() bool {
		billed = 0
		for _, f := range names {
			n, _ := first.Requests(ctx, f)
			billed += n
		}
		return billed >= total
	})
	if billed != total {
		t.Errorf("%d runs are billed, %d ran", billed, total)
	}
	c.SameState(ctx)
}

// A worker that drains lets a call of six seconds end, though others ask whether it is there.
func TestWorkerStopLetsCallsEnd(t *testing.T) {
	ctx := t.Context()
	c := StartCluster(t, 3, 1)
	first := c.Controls[0]
	first.Create(ctx, "f", first.Runtime(ctx, "python"), Python(t, sleeper), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(60) })
	failed := make(chan error, 1)
	go func() {
		_, err := c.Controls[1].Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"sleep":6}`)})
		failed <- err
	}()
	c.Eventually(20*time.Second, "the call runs", func() bool {
		all := first.Instances(ctx, "f")
		return len(all) > 0 && all[0].State == "busy"
	})
	if err := c.Workers[0].Stop(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err != nil {
		t.Errorf("a call that ran when its worker was stopped: %v", err)
	}
	c.Eventually(10*time.Second, "the call is billed and the worker has left", func() bool {
		n, _ := first.Requests(ctx, "f")
		return n == 1 && first.NodeNamed(ctx, "w1").State == "left"
	})
}
