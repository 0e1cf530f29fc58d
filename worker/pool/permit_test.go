package pool

import (
	"sync"
	"testing"
	"time"

	"github.com/doze-run/doze/bus"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/instance"
)

type always struct{}

func (always) MayBegin() bool { return true }

// A call with a permit that was granted ahead, and whose turn does not come in time, is not begun: it is told
// that the handler has not seen it. One without a permit waits.
func TestPermitPassesWhileACallWaits(t *testing.T) {
	for _, test := range []struct {
		name   string
		permit bus.Permit
		begun  bool
	}{{"with a permit", always{}, false}, {"without", nil, true}} {
		t.Run(test.name, func(t *testing.T) {
			slow, waited := make(chan struct{}), false
			w := newWorld(t, &maker{handle: func(e *instance.Event) *instance.Result {
				switch string(e.Payload) {
				case "slow":
					close(slow)
					return slowly(bus.BeginLimit + 100*time.Millisecond)(e)
				case "waits":
					waited = true
				}
				return echo(e)
			}}, time.Minute)
			one := uint32(1)
			w.spec.ReservedConcurrency = &one
			for range 20 {
				w.ask("quick") // calls are claimed ahead of handlers that take no time
			}
			var group sync.WaitGroup
			group.Go(func() { w.ask("slow") })
			<-slow
			a := w.askWith("waits", test.permit)
			group.Wait()
			if begun := a.Fault == nil; begun != test.begun || waited != test.begun {
				t.Errorf("answer %+v, the handler ran: %v", a, waited)
			}
			if a.Fault != nil && (a.Fault.Code != bus.FaultWorkerLost || a.Fault.Ran) {
				t.Errorf("fault %+v", a.Fault)
			}
			if a := w.askWith("next", test.permit); a.Fault != nil {
				t.Errorf("the next one: %+v", a.Fault)
			}
		})
	}
}

// A cap that is raised lets an incarnation that is awake have more instances.
func TestReservationIsRaised(t *testing.T) {
	w := newWorld(t, &maker{handle: slowly(30 * time.Millisecond)}, time.Minute)
	for _, limit := range []uint32{1, 3} {
		w.hosts(&limit)
		w.askMany(12, "{}")
		if peak := w.maker.peak.Load(); peak != int64(limit) {
			t.Errorf("%d instances at once with a cap of %d", peak, limit)
		}
	}
}

// hosts has the pool told of another reservation, as the next request to host does.
func (w *world) hosts(reserved *uint32) {
	w.t.Helper()
	w.spec = &dozev1.FunctionSpec{
		Account: w.spec.Account, Function: w.spec.Function, Version: w.spec.Version, Revision: w.spec.Revision, MemoryMb: 128, ReservedConcurrency: reserved,
	}
	if err := w.pool.Host(w.t.Context(), "t", w.spec); err != nil {
		w.t.Fatal(err)
	}
}

// An instance that claimed a call whose asker is gone goes on with the next one.
func TestAskerGoneAtTheClaim(t *testing.T) {
	slow := make(chan struct{})
	w := newWorld(t, &maker{handle: func(e *instance.Event) *instance.Result {
		if string(e.Payload) == "slow" {
			close(slow)
			return slowly(200 * time.Millisecond)(e)
		}
		return echo(e)
	}}, time.Minute)
	one := uint32(1)
	w.spec.ReservedConcurrency = &one
	gone, err := w.mesh.NewAsker(w, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() { w.ask("slow") })
	<-slow
	id := bus.NewQueueID(w.spec.Account, w.spec.Function, w.spec.Version, w.spec.Revision)
	group.Go(func() {
		gone.Ask(id, &bus.Call{Body: []byte("orphan")}, bus.AskLimits{Queue: 2 * time.Second, Start: time.Second, Run: time.Second}, nil)
	})
	w.eventually("the call waits", func() bool { return gone.Load().Waiting == 1 })
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	if a := w.ask("next"); a.Fault != nil {
		t.Errorf("the next call: %+v", a.Fault)
	}
}
