package invoke

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// plane answers calls as told and notes the hints.
type plane struct {
	mu      sync.Mutex
	answers []*bus.Answer // the last one repeats
	asked   []bus.QueueID
	woken   int
	takes   time.Duration
	has     string
	permits bool // the last call had one
}

func (p *plane) Ask(queue bus.QueueID, _ *bus.Call, limits bus.AskLimits, _ any) *bus.Answer {
	time.Sleep(p.takes)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked, p.permits = append(p.asked, queue), limits.Permit != nil
	answer := p.answers[0]
	if len(p.answers) > 1 {
		p.answers = p.answers[1:]
	}
	return answer
}

func (p *plane) Wake(bus.QueueID, any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.woken++
}

func (p *plane) Runs(runtime string) bool { return runtime == p.has }

func (p *plane) Runtimes() []*dozev1.Runtime { return []*dozev1.Runtime{{Name: p.has}} }

func newInvoker(p *plane, unreserved int) *Invoker {
	return New(Config{
		Asker: p, Workers: p, Unreserved: func(string) int { return unreserved },
		ARN: func(account, name string) string { return "arn:" + account + ":" + name }, Metrics: NewMetrics(prometheus.NewRegistry()),
	})
}

func call(f *registry.Function) *Call {
	return &Call{Function: f, Version: f.Latest, Payload: []byte("{}")}
}

func function(reserved *int) *registry.Function {
	return &registry.Function{Account: "1", Name: "f", Reserved: reserved, Latest: &registry.Version{
		Version: registry.Latest, Incarnation: "r1", Config: registry.Config{Runtime: "python3.11", Timeout: 3, MemorySize: 128},
	}}
}

func TestAnswersAndFaults(t *testing.T) {
	ok := &bus.Answer{Payload: []byte("1")}
	fault := func(code bus.FaultCode, ran bool) *bus.Answer {
		return &bus.Answer{Fault: &bus.Fault{Code: code, Ran: ran, Message: "m"}}
	}
	two := 2
	for _, test := range []struct {
		name    string
		f       *registry.Function
		answers []*bus.Answer
		asks    int
		check   func(*Answer, error) bool
	}{
		{"answered", function(nil), []*bus.Answer{ok}, 1, func(a *Answer, err error) bool { return err == nil && string(a.Payload) == "1" }},
		{"queue full", function(nil), []*bus.Answer{fault(bus.FaultQueueFull, false)}, 1, throttled(ReasonConcurrent)},
		{"no capacity", function(nil), []*bus.Answer{fault(bus.FaultNoCapacity, false)}, 1, throttled(ReasonConcurrent)},
		{"no capacity, reserved", function(&two), []*bus.Answer{fault(bus.FaultNoCapacity, false)}, 1, throttled(ReasonReserved)},
		{"given back by a draining worker", function(nil), []*bus.Answer{fault(bus.FaultWorkerLost, false), ok}, 2, func(_ *Answer, err error) bool { return err == nil }},
		{"lost while it ran: never run twice", function(nil), []*bus.Answer{fault(bus.FaultWorkerLost, true), ok}, 1, unavailable(true)},
		{"no egress", function(nil), []*bus.Answer{fault(bus.FaultNoEgress, false)}, 1, func(_ *Answer, err error) bool {
			var noEgress *NoEgress
			return errors.As(err, &noEgress)
		}},
		{"could not start", function(nil), []*bus.Answer{fault(bus.FaultStart, false)}, 1, unavailable(false)},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &plane{answers: test.answers, has: "python3.11"}
			if a, err := newInvoker(p, 10).Invoke(context.Background(), call(test.f)); !test.check(a, err) {
				t.Errorf("answer %+v, error %v", a, err)
			}
			if len(p.asked) != test.asks {
				t.Errorf("asked %d times, want %d", len(p.asked), test.asks)
			}
		})
	}
}

func throttled(reason string) func(*Answer, error) bool {
	return func(_ *Answer, err error) bool {
		var t *Throttled
		return errors.As(err, &t) && t.Reason == reason
	}
}

func unavailable(ran bool) func(*Answer, error) bool {
	return func(_ *Answer, err error) bool {
		var u *Unavailable
		return errors.As(err, &u) && u.Ran == ran
	}
}

func TestRuntimeNobodyHas(t *testing.T) {
	p := &plane{has: "nodejs20.x"}
	_, err := newInvoker(p, 10).Invoke(context.Background(), call(function(nil)))
	var invalid *InvalidRuntime
	if !errors.As(err, &invalid) || !strings.Contains(invalid.Message, "nodejs20.x") || len(p.asked) != 0 {
		t.Errorf("error %v after %d asks", err, len(p.asked))
	}
}

// A cap holds at every moment, and is free again after the calls.
func TestAdmission(t *testing.T) {
	three := 3
	for _, test := range []struct {
		name       string
		f          *registry.Function
		unreserved int
		reason     string
	}{
		{"reserved", function(&three), 1000, ReasonReserved},
		{"what is left of the account", function(nil), 3, ReasonConcurrent},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &plane{answers: []*bus.Answer{{}}, has: "python3.11", takes: time.Second}
				i := newInvoker(p, test.unreserved)
				for round := range 2 {
					var group sync.WaitGroup
					var mu sync.Mutex
					refused := 0
					for range 10 {
						group.Go(func() {
							if _, err := i.Invoke(context.Background(), call(test.f)); throttled(test.reason)(nil, err) {
								mu.Lock()
								refused++
								mu.Unlock()
							} else if err != nil {
								t.Error(err)
							}
						})
					}
					group.Wait()
					if refused != 7 {
						t.Errorf("round %d: %d of 10 refused with a cap of 3", round, refused)
					}
				}
			})
		})
	}
	zero := 0
	if _, err := newInvoker(&plane{has: "python3.11"}, 10).Invoke(context.Background(), call(function(&zero))); !throttled(ReasonReserved)(nil, err) {
		t.Errorf("a function with no concurrency: %v", err)
	}
}

// New code has a new queue; a change that no instance can see keeps the queue.
func TestQueueFollowsTheIncarnation(t *testing.T) {
	p := &plane{answers: []*bus.Answer{{}}, has: "python3.11"}
	i := newInvoker(p, 10)
	f := function(nil)
	next := *f
	tagged := *f.Latest
	tagged.RevisionID = "tags changed"
	next.Latest = &tagged
	updated := *f
	code := *f.Latest
	code.Incarnation = "r2"
	updated.Latest = &code
	for _, g := range []*registry.Function{f, &next, &updated} {
		if _, err := i.Invoke(context.Background(), call(g)); err != nil {
			t.Fatal(err)
		}
	}
	if p.asked[0] != p.asked[1] || p.asked[1] == p.asked[2] {
		t.Errorf("queues %v", p.asked)
	}
}

// The first call after a quiet time brings its own hint; those in a row do not.
func TestHintAfterQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &plane{answers: []*bus.Answer{{}}, has: "python3.11"}
		i := newInvoker(p, 10)
		f := function(nil)
		invoke := func() {
			if _, err := i.Invoke(context.Background(), call(f)); err != nil {
				t.Fatal(err)
			}
		}
		invoke()
		invoke()
		invoke()
		if p.woken != 1 {
			t.Errorf("%d hints for three calls in a row", p.woken)
		}
		time.Sleep(2 * awakeFor)
		invoke()
		if p.woken != 2 {
			t.Errorf("%d hints after a quiet time", p.woken)
		}
	})
}

// Functions that come and go leave nothing behind; those that are called stay known.
func TestForgetsWhatIsNotCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &plane{answers: []*bus.Answer{{}}, has: "python3.11"}
		i := newInvoker(p, 10)
		kept := function(nil)
		kept.Name = "kept"
		invoke := func(f *registry.Function) {
			if _, err := i.Invoke(context.Background(), call(f)); err != nil {
				t.Fatal(err)
			}
		}
		invoke(kept)
		first := i.incarnation(kept, kept.Latest)
		for n := range 10 * keepKnown {
			f := function(nil)
			f.Name = fmt.Sprint("f", n)
			invoke(f)
			if n%10 == 0 {
				invoke(kept)
				time.Sleep(time.Second)
			}
		}
		known := 0
		i.known.Range(func(any, any) bool { known++; return true })
		if known != i.entries || known > 2*keepKnown { // a minute has 600
			t.Errorf("%d function versions are known, %d counted", known, i.entries)
		}
		if i.incarnation(kept, kept.Latest) != first {
			t.Error("a function that was called all the time was forgotten")
		}
	})
}
