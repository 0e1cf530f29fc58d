package placement

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/doze-run/doze/bus"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// hosts answers as each worker is told to, and notes who was asked.
type hosts struct {
	mu      sync.Mutex
	verdict map[string]dozev1.HostReply_Verdict // absent: no answer
	asked   []string
}

func (h *hosts) AskHost(_ context.Context, worker string, _ *dozev1.HostRequest) (*dozev1.HostReply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, worker)
	verdict, ok := h.verdict[worker]
	if !ok {
		return nil, errors.New("no answer")
	}
	return &dozev1.HostReply{Verdict: verdict}, nil
}

func (h *hosts) take() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	asked := h.asked
	h.asked = nil
	slices.Sort(asked)
	return asked
}

type spec string

func (s spec) Spec() *dozev1.FunctionSpec {
	return &dozev1.FunctionSpec{Function: "f", Runtime: string(s)}
}

const python = spec("python3.11")

func report(worker string, free int64, runtimes ...string) *dozev1.WorkerReport {
	r := &dozev1.WorkerReport{Worker: worker, MemoryFreeBytes: free}
	for _, name := range runtimes {
		r.Runtimes = append(r.Runtimes, &dozev1.Runtime{Name: name})
	}
	return r
}

func newPlacement(t *testing.T, h *hosts, reports ...*dozev1.WorkerReport) *Placement {
	t.Helper()
	p := New(h, slog.New(slog.DiscardHandler))
	t.Cleanup(p.Close)
	for _, r := range reports {
		p.Report(r)
	}
	return p
}

func TestWakeAsksWhoCan(t *testing.T) {
	const hosting, full, none = dozev1.HostReply_HOSTING, dozev1.HostReply_FULL, dozev1.HostReply_NO_RUNTIME
	draining := report("w3", 9, "python3.11")
	draining.Draining = true
	sick := report("w4", 9, "python3.11")
	sick.Unavailable = "disk full"
	for _, test := range []struct {
		name    string
		verdict map[string]dozev1.HostReply_Verdict
		reports []*dozev1.WorkerReport
		want    []string
	}{
		{"the only one", map[string]dozev1.HostReply_Verdict{"w1": hosting}, []*dozev1.WorkerReport{report("w1", 1, "python3.11")}, []string{"w1"}},
		{"nobody has the runtime", nil, []*dozev1.WorkerReport{report("w1", 1, "nodejs20.x")}, nil},
		{"who drains or is sick is not asked", map[string]dozev1.HostReply_Verdict{"w1": hosting}, []*dozev1.WorkerReport{report("w1", 1, "python3.11"), draining, sick}, []string{"w1"}},
		{"more memory first", map[string]dozev1.HostReply_Verdict{"w1": hosting, "w2": hosting}, []*dozev1.WorkerReport{report("w1", 1, "python3.11"), report("w2", 2, "python3.11")}, []string{"w2"}},
		{"the next when one is full", map[string]dozev1.HostReply_Verdict{"w1": hosting, "w2": full}, []*dozev1.WorkerReport{report("w1", 1, "python3.11"), report("w2", 2, "python3.11")}, []string{"w1", "w2"}},
		{"the next when one is silent", map[string]dozev1.HostReply_Verdict{"w1": hosting}, []*dozev1.WorkerReport{report("w1", 1, "python3.11"), report("w2", 2, "python3.11")}, []string{"w1", "w2"}},
		{"all refuse", map[string]dozev1.HostReply_Verdict{"w1": none, "w2": full}, []*dozev1.WorkerReport{report("w1", 1, "python3.11"), report("w2", 2, "python3.11")}, []string{"w1", "w2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &hosts{verdict: test.verdict}
				p := newPlacement(t, h, test.reports...)
				p.Wake("q", python)
				synctest.Wait()
				if got := h.take(); !slices.Equal(got, test.want) {
					t.Errorf("asked %v, want %v", got, test.want)
				}
			})
		})
	}
}

// Hints come every few milliseconds from every asker: few of them become requests.
func TestHintsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hosts{verdict: map[string]dozev1.HostReply_Verdict{"w1": dozev1.HostReply_HOSTING}}
		p := newPlacement(t, h, report("w1", 1, "python3.11"))
		for range 100 {
			p.Wake("q", python)
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if n := len(h.take()); n < 2 || n > 5 {
			t.Errorf("100 hints in 100 ms became %d requests", n)
		}
	})
}

// A queue whose host does not keep up gets another one.
func TestSecondHostWhenCallsGoOnWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosting := dozev1.HostReply_HOSTING
		h := &hosts{verdict: map[string]dozev1.HostReply_Verdict{"w1": hosting, "w2": hosting}}
		p := newPlacement(t, h, report("w1", 1, "python3.11"), report("w2", 2, "python3.11"))
		p.Wake("q", python)
		synctest.Wait()
		if got := h.take(); !slices.Equal(got, []string{"w2"}) {
			t.Fatalf("first asked %v", got)
		}
		for range 30 {
			time.Sleep(10 * time.Millisecond)
			p.Report(report("w1", 1, "python3.11"))
			p.Report(report("w2", 2, "python3.11"))
			p.Wake("q", python)
			synctest.Wait()
		}
		if got := h.take(); !slices.Contains(got, "w1") {
			t.Errorf("w1 was never asked: %v", got)
		}
	})
}

func TestSilentWorkersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hosts{}
		p := newPlacement(t, h, report("w1", 1, "python3.11", "nodejs20.x"))
		if !p.Runs("python3.11") || p.Runs("ruby3.3") || len(p.Runtimes()) != 2 || len(p.Workers()) != 1 {
			t.Error("a worker that reported is not known")
		}
		time.Sleep(silence)
		if len(p.Workers()) != 0 || len(p.Runtimes()) != 0 {
			t.Error("a silent worker is taken for alive")
		}
		if !p.Runs("ruby3.3") {
			t.Error("refused while no worker is known")
		}
		p.Wake("q", python)
		synctest.Wait()
		if got := h.take(); len(got) != 0 {
			t.Errorf("a silent worker was asked: %v", got)
		}
	})
}

func TestWaitWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlacement(t, &hosts{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.WaitWorker(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without a worker: %v", err)
		}
		ready := make(chan error)
		go func() { ready <- p.WaitWorker(t.Context()) }()
		synctest.Wait()
		p.Report(report("w1", 1))
		if err := <-ready; err != nil {
			t.Error(err)
		}
	})
}

func TestQueuesDoNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlacement(t, &hosts{verdict: map[string]dozev1.HostReply_Verdict{"w1": dozev1.HostReply_HOSTING}}, report("w1", 1, "python3.11"))
		for n := range 1000 {
			p.Wake(bus.QueueID(fmt.Sprint(n)), python)
		}
		synctest.Wait()
		time.Sleep(2 * forgetQueue)
		p.Report(report("w1", 1))
		if len(p.queues) != 0 {
			t.Errorf("%d records of queues that nobody woke for two minutes", len(p.queues))
		}
	})
}
