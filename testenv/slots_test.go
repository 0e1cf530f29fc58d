package testenv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
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

// stamper writes into a file when it began and ended, by the clock that all processes of this machine share,
// whether or not anybody hears its answer.
const stamper = `import os, time
def handler(event, context):
    file = os.open(event["file"], os.O_WRONLY | os.O_APPEND)
    os.write(file, b"+ %d\n" % time.monotonic_ns())
    time.sleep(event["sleep"])
    os.write(file, b"- %d\n" % time.monotonic_ns())
    os.close(file)
`

// capped are calls of a function with a cap through several gateways at once, each again as soon as it is
// answered or refused.
type capped struct {
	mu      sync.Mutex
	refused map[string]int
	failed  []string
	group   sync.WaitGroup
	stop    context.CancelFunc
	done    atomic.Int64
}

func (c *cappedCluster) load(ctx context.Context, callers int, nodes ...*Member) *capped {
	l := &capped{refused: map[string]int{}}
	running, stop := context.WithCancel(ctx)
	l.stop = stop
	for i := range callers {
		n := nodes[i%len(nodes)]
		client := n.Client()
		l.group.Go(func() {
			for running.Err() == nil {
				out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("capped"), Payload: c.payload})
				l.count(n.Name, out, err)
				if err != nil {
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	return l
}

func (c *capped) count(node string, out *lambda.InvokeOutput, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var full *types.TooManyRequestsException
	switch {
	case errors.As(err, &full):
		c.refused[string(full.Reason)]++
	case err != nil:
		c.failed = append(c.failed, fmt.Sprintf("%s: %v", node, err))
	case out.FunctionError != nil:
		c.failed = append(c.failed, fmt.Sprintf("%s: %s", node, out.Payload))
	default:
		c.done.Add(1)
	}
}

func (c *capped) end() {
	c.stop()
	c.group.Wait()
}

// cappedCluster has a function that writes down when it runs. Its workers have no sandbox, so that it can.
type cappedCluster struct {
	*Cluster
	file    string
	payload []byte
}

// cappedRun is how long the function sleeps.
const cappedRun = 200 * time.Millisecond

func startCapped(t *testing.T) *cappedCluster {
	c := &cappedCluster{Cluster: StartCluster(t, 3, 2, "--sandbox", "process"), file: filepath.Join(t.TempDir(), "runs")}
	if err := os.WriteFile(c.file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	c.payload = fmt.Appendf(nil, `{"sleep":%v,"file":%q}`, cappedRun.Seconds(), c.file)
	first := c.Controls[0]
	first.Create(t.Context(), "capped", first.Runtime(t.Context(), "python"), Python(t, stamper), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(2) })
	return c
}

// most is how many executions there were at once at most, since the file had so many bytes, and how many in all.
func (c *cappedCluster) most(since int64) (most, runs int) {
	c.t.Helper()
	raw, err := os.ReadFile(c.file)
	if err != nil {
		c.t.Fatal(err)
	}
	type edge struct {
		at   int64
		step int
	}
	var edges []edge
	for line := range strings.Lines(string(raw)) {
		var sign rune
		var e edge
		if n, err := fmt.Sscanf(line, "%c %d", &sign, &e.at); n != 2 {
			c.t.Fatalf("line %q: %v", line, err)
		}
		if e.step = 1; sign == '-' {
			e.step = -1
		}
		edges = append(edges, e)
	}
	from := int64(math.MaxInt64)
	if before := strings.Count(string(raw[:since]), "\n"); before < len(edges) {
		from = edges[before].at
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.step, b.step)) })
	now := 0
	for _, e := range edges {
		now += e.step
		if e.step > 0 && e.at >= from {
			most = max(most, now)
			runs++
		}
	}
	return most, runs
}

// size is how many bytes have been written down.
func (c *cappedCluster) size() int64 {
	c.t.Helper()
	info, err := os.Stat(c.file)
	if err != nil {
		c.t.Fatal(err)
	}
	return info.Size()
}

// reserve sets the reserved concurrency.
func (n *Member) reserve(ctx context.Context, function string, limit int32) {
	n.t.Helper()
	if _, err := n.Client().PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{
		FunctionName: &function, ReservedConcurrentExecutions: &limit,
	}); err != nil {
		n.t.Fatal(err)
	}
}

// A function with reserved concurrency, called by way of all gateways at once: its executions are never more
// than that in the whole cluster, and as many when there are calls enough. The cap is changed as it runs: what is
// granted after the answer finds fewer than the new cap.
func TestCapHoldsInTheCluster(t *testing.T) {
	ctx := t.Context()
	c := startCapped(t)
	c.Controls[0].reserve(ctx, "capped", 5)
	l := c.load(ctx, 15, c.Controls...)
	more := func(n int64) {
		t.Helper()
		before := l.done.Load()
		c.Eventually(60*time.Second, fmt.Sprint(n, " more calls are answered"), func() bool { return l.done.Load() >= before+n })
	}
	more(20)
	before, begun := l.done.Load(), time.Now()
	more(150)
	rate, full := float64(l.done.Load()-before)/time.Since(begun).Seconds(), 5/cappedRun.Seconds()
	t.Logf("%.1f calls a second of %.1f that the cap allows", rate, full)
	if rate < full/2 {
		t.Errorf("%.1f calls a second, the cap allows %.1f", rate, full)
	}
	if most, _ := c.most(0); most != 5 {
		t.Errorf("%d executions at once with a cap of 5", most)
	}
	for i, limit := range []int32{2, 8, 1} {
		c.Controls[i].reserve(ctx, "capped", limit)
		more(16) // those that had their slot before
		changed := c.size()
		more(10 * int64(limit))
		if most, runs := c.most(changed); most != int(limit) {
			t.Errorf("%d executions at once in %d runs with a cap of %d", most, runs, limit)
		}
	}
	c.Controls[0].reserve(ctx, "capped", 0)
	time.Sleep(2 * cappedRun) // the one that had its slot before
	stopped := c.size()
	l.mu.Lock()
	refused := l.refused[string(types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded)]
	l.mu.Unlock()
	c.Eventually(60*time.Second, "calls are refused", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.refused[string(types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded)] >= refused+100
	})
	l.end()
	if most, runs := c.most(stopped); runs > 0 {
		t.Errorf("%d executions with a cap of 0, %d at once", runs, most)
	}
	if len(l.failed) > 0 {
		t.Errorf("%d calls failed, first: %s", len(l.failed), l.failed[0])
	}
	if len(l.refused) != 1 {
		t.Errorf("refused for %v", l.refused)
	}
}

// Each control node is killed in its turn while calls come through all, and one is frozen and thawed: whichever
// was the home of the function's slots, and whatever the lost one had granted, there are never more executions
// than the cap, and it is used again within seconds.
func TestCapHoldsWhenControlNodesAreKilled(t *testing.T) {
	ctx := t.Context()
	c := startCapped(t)
	c.Controls[0].reserve(ctx, "capped", 5)
	full := 5 / cappedRun.Seconds()
	answered := int64(0)
	for _, step := range []struct {
		victim *Member
		frozen bool
	}{{c.Controls[0], false}, {c.Controls[1], false}, {c.Controls[2], false}, {c.Controls[0], true}, {c.Controls[1], true}} {
		victim, what := step.victim, "killed"
		doomed := c.load(ctx, 5, victim)
		l := c.load(ctx, 10, c.Others(victim)...)
		more := func(n int64) {
			t.Helper()
			before := l.done.Load()
			c.Eventually(60*time.Second, fmt.Sprint(n, " more calls are answered"), func() bool { return l.done.Load() >= before+n })
		}
		more(50)
		if step.frozen {
			what = "frozen"
			if err := victim.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		} else {
			victim.Kill()
		}
		lost := time.Now()
		more(6) // at most five had begun
		again := time.Since(lost)
		more(50)
		if step.frozen {
			if err := victim.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
		doomed.end()
		// What the lost node may have begun is over by now.
		time.Sleep(time.Until(lost.Add(9 * time.Second)))
		before, begun := l.done.Load(), time.Now()
		more(50)
		rate := float64(l.done.Load()-before) / time.Since(begun).Seconds()
		l.end()
		t.Logf("%s was %s: answers again after %v, then %.1f calls a second of %.1f; refused %v", victim.Name, what, again, rate, full, l.refused)
		if rate < full/2 {
			t.Errorf("%.1f calls a second after %s was %s", rate, victim.Name, what)
		}
		if len(l.failed) > 0 {
			t.Errorf("%d calls by way of the others failed, first: %s", len(l.failed), l.failed[0])
		}
		answered += l.done.Load() + doomed.done.Load()
		if !step.frozen {
			victim.Start()
		}
		c.Eventually(60*time.Second, "it is one of them again", c.Whole)
	}
	most, runs := c.most(0)
	if most != 5 {
		t.Errorf("%d executions at once with a cap of 5", most)
	}
	if int64(runs) < answered {
		t.Errorf("%d runs, but %d answers", runs, answered)
	}
	t.Logf("%d runs, %d of them answered; at most %d at once", runs, answered, most)
}

// BenchmarkCapped is a warm call in a cluster of three, one after the other, of a function without a cap and of
// one with: by way of its slot home, and of the other nodes.
func BenchmarkCapped(b *testing.B) {
	ctx := b.Context()
	c := StartCluster(b, 3, 1)
	first := c.Controls[0]
	for _, name := range []string{"free", "capped"} {
		first.Create(ctx, name, "provided.al2023", GoFunction(b, "testenv/functions/echo"))
	}
	first.reserve(ctx, "capped", 5)
	for _, n := range c.Controls {
		for _, name := range []string{"free", "capped"} {
			n.Invoke(ctx, name, "{}")
			b.Run(n.Name+"/"+name, func(b *testing.B) {
				url := "http://" + n.HTTP + "/2015-03-31/functions/" + name + "/invocations"
				var took []time.Duration
				for b.Loop() {
					begun := time.Now()
					answer, err := http.Post(url, "application/json", strings.NewReader("{}"))
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
						b.Fatal(answer.Status, err)
					}
					_ = answer.Body.Close()
					took = append(took, time.Since(begun))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
			})
		}
	}
}
