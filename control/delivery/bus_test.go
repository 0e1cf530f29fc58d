package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
)

// startBus is an embedded server in a folder, with the durable plane.
func startBus(t *testing.T, dir string) (events *bus.Events, stop func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	server, err := bus.StartServer(bus.ServerConfig{
		Name: "test", StoreDir: dir, MemoryBytes: 1 << 20, StoreBytes: bus.MinStorageBytes, SyncInterval: time.Minute, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := bus.Connect(t.Context(), bus.ConnConfig{Name: "test", Server: server, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.EnsureStreams(t.Context(), bus.StreamsConfig{StorageBytes: bus.MinStorageBytes, Replicas: 1, EventShards: 2}); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := server.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return conn.Events(2), stop
}

// From Accept to the recorded end through the real store: a success, a failure with its retries, a
// function that is gone, and all of it across a restart of the server in the middle.
func TestDeliveryThroughTheBus(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	dir := t.TempDir()
	events, stopBus := startBus(t, dir)

	ended := make(chan end, 100)
	sink := sinkFunc(func(o *Outcome) {
		ended <- end{time.Now(), o.Condition, o.Event.Function, string(o.Event.Id), o.Attempts}
	})
	funcs := &functions{handlers: map[string]func(context.Context, *invoke.Call) (*invoke.Answer, error){
		"good": succeeds, "bad": fails,
	}}
	start := func(events *bus.Events) *Poller {
		return Start(Config{
			Source: FromBus(events, 64, 16<<20), Invoker: funcs, Resolver: funcs, Sink: sink,
			Logger: slog.New(slog.DiscardHandler), RetryWaits: []time.Duration{300 * time.Millisecond, 600 * time.Millisecond},
		})
	}
	poller := start(events)
	accept := func(function string, n byte) string {
		event := &invoke.Event{
			RequestID: [16]byte{n}, Function: &registry.Function{Account: "000000000000", Name: function},
			Payload: []byte(`{}`),
		}
		if err := NewAcceptor(events).Accept(t.Context(), event); err != nil {
			t.Fatal(err)
		}
		return string(event.RequestID[:])
	}
	next := func() end {
		t.Helper()
		select {
		case e := <-ended:
			return e
		case <-time.After(30 * time.Second):
			t.Fatal("an event did not end")
			return end{}
		}
	}
	id := accept("good", 1)
	if e := next(); e.condition != Success || e.id != id || e.attempts != 1 {
		t.Errorf("%+v", e)
	}
	accept("gone", 2)
	if e := next(); e.condition != FunctionGone {
		t.Errorf("%+v", e)
	}
	begun := time.Now()
	id = accept("bad", 3)
	if e := next(); e.condition != RetriesExhausted || e.id != id || e.attempts != 3 {
		t.Errorf("%+v", e)
	} else if took := e.at.Sub(begun); took < 900*time.Millisecond {
		t.Errorf("three attempts took %v", took)
	}
	for i, call := range funcs.called("bad") {
		if string(call.id[:]) != id {
			t.Errorf("attempt %d has another request id", i)
		}
	}

	// Everything stops between the attempts of twenty events, and goes on.
	want := map[string]bool{}
	for i := range byte(20) {
		want[accept("bad", 100+i)] = true
	}
	if err := poller.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopBus()
	events, _ = startBus(t, dir)
	poller = start(events)
	for range 20 {
		e := next()
		if !want[e.id] || e.condition != RetriesExhausted || e.attempts != 3 {
			t.Errorf("%+v", e)
		}
		delete(want, e.id)
	}
	if err := poller.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if s := poller.Stats(); fmt.Sprint(s.Held, s.Running) != "0 0" {
		t.Errorf("%+v", s)
	}
}

type sinkFunc func(*Outcome)

func (f sinkFunc) Record(_ context.Context, o *Outcome) error { f(o); return nil }
