package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

func testEvent(function string, payload []byte) *dozev1.Event {
	return &dozev1.Event{
		Id: newEventID(), Account: "000000000000", Function: function, Payload: payload,
		AcceptedAtMs: time.Now().UnixMilli(),
	}
}

// poll consumes in the background and hands deliveries over; stop ends it, gives back what is not
// settled, and waits.
func poll(t testing.TB, e *Events, limits EventLimits) (<-chan *EventDelivery, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan *EventDelivery, 4096)
	var mu sync.Mutex
	var all []*EventDelivery
	var done sync.WaitGroup
	done.Go(func() {
		err := e.ConsumeEvents(ctx, limits, func(d *EventDelivery) {
			mu.Lock()
			all = append(all, d)
			mu.Unlock()
			if ctx.Err() != nil {
				_ = d.Nak(0) // came while it was being stopped
			}
			out <- d
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("consume: %v", err)
		}
	})
	stop := sync.OnceFunc(func() {
		cancel()
		mu.Lock()
		for _, d := range all {
			_ = d.Nak(0)
		}
		mu.Unlock()
		done.Wait()
	})
	t.Cleanup(stop)
	return out, stop
}

// drained waits until the store has settled what it was told to settle.
func drained(t testing.TB, e *Events) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		w, err := e.Waiting(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if w.Ready+w.Delayed == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left over: %+v", w)
		}
		runtime.Gosched()
	}
}

func receive(t testing.TB, deliveries <-chan *EventDelivery) *EventDelivery {
	t.Helper()
	select {
	case d := <-deliveries:
		return d
	case <-time.After(20 * time.Second):
		t.Fatal("no event came")
		return nil
	}
}

var wide = EventLimits{Events: 64, Bytes: 64 << 20}

func TestEventsComeBackAsStored(t *testing.T) {
	for _, shards := range []int{1, 3} {
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			s := newStore(t, StreamsConfig{EventShards: shards})
			e := s.conn.Events(shards)
			want := map[string]*dozev1.Event{}
			for i := range 10 {
				event := testEvent(fmt.Sprintf("fn %d.*", i), bytes.Repeat([]byte{'x'}, i*100_000))
				event.Qualifier, event.ClientContext, event.TraceId = "live", []byte("{}"), "Root=1"
				if err := e.PublishEvent(t.Context(), event); err != nil {
					t.Fatal(err)
				}
				want[string(event.Id)] = event
			}
			s.restart() // accepted is accepted
			deliveries, stop := poll(t, s.conn.Events(shards), wide)
			for range len(want) {
				d := receive(t, deliveries)
				if w := want[string(d.Event.Id)]; !proto.Equal(d.Event, w) {
					t.Errorf("came as %v, stored as %v", d.Event.Function, w.GetFunction())
				}
				delete(want, string(d.Event.Id))
				if err := d.Ack(); err != nil {
					t.Error(err)
				}
			}
			stop()
			drained(t, s.conn.Events(shards))
		})
	}
}

func TestPublishEventIsStoredOnce(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	e := s.conn.Events(1)
	event := testEvent("f", []byte("{}"))
	for range 3 {
		if err := e.PublishEvent(t.Context(), event); err != nil {
			t.Fatal(err)
		}
	}
	if w, err := e.Waiting(t.Context()); err != nil || w.Ready != 1 {
		t.Errorf("%+v, %v", w, err)
	}
}

// A shard that is gone costs a retry on another, under an id of its own.
func TestPublishEventMovesToAnotherShard(t *testing.T) {
	s := newStore(t, StreamsConfig{EventShards: 2})
	if err := s.conn.js.DeleteStream(t.Context(), eventStream(0)); err != nil {
		t.Fatal(err)
	}
	e := s.conn.Events(2)
	var moved int
	for range 2 {
		event := testEvent("f", []byte("{}"))
		before := string(event.Id)
		if err := e.PublishEvent(t.Context(), event); err != nil {
			t.Fatal(err)
		}
		if len(event.Id) != 16 {
			t.Errorf("id %x", event.Id)
		}
		if string(event.Id) != before {
			moved++
		}
	}
	if moved != 1 {
		t.Errorf("%d of 2 events have a new id, want that of the lost shard", moved)
	}
}

func TestEventsRefuseWhenFull(t *testing.T) {
	s := newStore(t, StreamsConfig{EventShards: 2})
	e := s.conn.Events(2)
	payload := make([]byte, 1<<20)
	accepted := 0
	for {
		err := e.PublishEvent(t.Context(), testEvent("f", payload))
		if err != nil {
			if !errors.Is(err, ErrEventsFull) {
				t.Fatal(err)
			}
			break
		}
		if accepted++; accepted > 100 {
			t.Fatal("no bound")
		}
	}
	if w, err := e.Waiting(t.Context()); err != nil || w.Ready != uint64(accepted) {
		t.Errorf("accepted %d, stored %+v, %v", accepted, w, err)
	}
	// One settled makes room for one.
	deliveries, stop := poll(t, e, wide)
	if err := receive(t, deliveries).Ack(); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := e.PublishEvent(t.Context(), testEvent("f", payload)); err != nil {
		t.Errorf("after one was settled: %v", err)
	}
	if err := e.PublishEvent(t.Context(), testEvent("f", make([]byte, MaxEventBytes))); !errors.Is(err, ErrEventTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func TestTimersRefuseWhenFull(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	e := s.conn.Events(1)
	payload := make([]byte, 1<<20)
	at := time.Now().Add(time.Hour)
	accepted := 0
	for {
		err := e.RetryAt(t.Context(), testEvent("f", payload), at)
		if err != nil {
			if !errors.Is(err, ErrTimersFull) {
				t.Fatal(err)
			}
			break
		}
		if accepted++; accepted > 100 {
			t.Fatal("no bound")
		}
	}
	if w, err := e.Waiting(t.Context()); err != nil || w.Delayed != uint64(accepted) || accepted < 10 {
		t.Errorf("accepted %d, stored %+v, %v", accepted, w, err)
	}
}

func TestRetryComesBackAtItsTime(t *testing.T) {
	s := newStore(t, StreamsConfig{EventShards: 2})
	e := s.conn.Events(2)
	deliveries, _ := poll(t, e, wide)
	for _, wait := range []time.Duration{0, -time.Hour, 700 * time.Millisecond, 1500 * time.Millisecond} {
		event := testEvent("f.g", bytes.Repeat([]byte{0, 1, '\n', '\r'}, 1000))
		event.Attempt = 1
		at := time.Now().Add(wait)
		for range 2 { // the same retry is stored once
			if err := e.RetryAt(t.Context(), event, at); err != nil {
				t.Fatal(err)
			}
		}
		d := receive(t, deliveries)
		if now := time.Now(); now.Before(at.Truncate(time.Millisecond)) || now.Sub(at) > 2*time.Second && wait >= 0 {
			t.Errorf("to wait %v: came %v off", wait, now.Sub(at))
		}
		if !proto.Equal(d.Event, event) {
			t.Errorf("came back as %v", d.Event)
		}
		if err := d.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case d := <-deliveries:
		t.Errorf("one more: %v", d.Event.Function)
	default:
	}
	drained(t, e)
}

// Attempts, and puttings-back between two of them, are different retries.
func TestRetriesOfOneEventAreTold(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	e := s.conn.Events(1)
	event := testEvent("f", nil)
	for _, n := range []struct{ attempt, throttled uint32 }{{0, 1}, {0, 2}, {1, 0}, {1, 1}, {1, 1}, {11, 0}} {
		event.Attempt, event.Throttled = n.attempt, n.throttled
		if err := e.RetryAt(t.Context(), event, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if w, err := e.Waiting(t.Context()); err != nil || w.Delayed != 5 {
		t.Errorf("%+v, %v; want 5 of 6 stored", w, err)
	}
}

// What waits for its time, and what has come of age meanwhile, is still there after the server was
// away, and nothing comes twice.
func TestRetriesSurviveARestart(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	e := s.conn.Events(1)
	want := map[string]bool{}
	for i := range 20 {
		event := testEvent("f", fmt.Appendf(nil, "%d", i))
		event.Attempt = 1
		if err := e.RetryAt(t.Context(), event, time.Now().Add(time.Duration(i)*100*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		want[string(event.Id)] = true
	}
	s.restart()
	deliveries, stop := poll(t, s.conn.Events(1), wide)
	for range 20 {
		d := receive(t, deliveries)
		if !want[string(d.Event.Id)] {
			t.Errorf("came twice: %s", d.Event.Payload)
		}
		delete(want, string(d.Event.Id))
		if err := d.Ack(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	drained(t, s.conn.Events(1))
}

func TestNakGivesBack(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	e := s.conn.Events(1)
	if err := e.PublishEvent(t.Context(), testEvent("f", nil)); err != nil {
		t.Fatal(err)
	}
	deliveries, _ := poll(t, e, wide)
	for n := uint64(1); n <= 3; n++ {
		d := receive(t, deliveries)
		if d.Deliveries != n {
			t.Errorf("delivery %d counts %d", n, d.Deliveries)
		}
		begun := time.Now()
		if err := d.Nak(300 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if err := d.Ack(); err != nil { // settled already: nothing
			t.Fatal(err)
		}
		d = receive(t, deliveries)
		if waited := time.Since(begun); waited < 300*time.Millisecond {
			t.Errorf("came back after %v", waited)
		}
		n++
		if err := d.Nak(0); err != nil {
			t.Fatal(err)
		}
	}
}

// A poller holds no more than its limits, and what one poller put off does not stop it from
// getting the rest.
func TestEventLimits(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	e := s.conn.Events(1)
	for range 10 {
		if err := e.PublishEvent(t.Context(), testEvent("f", nil)); err != nil {
			t.Fatal(err)
		}
	}
	handedOut := func() int {
		consumer, err := s.conn.js.Consumer(t.Context(), eventStream(0), pollerConsumer)
		if err != nil {
			t.Fatal(err)
		}
		return consumer.CachedInfo().NumAckPending
	}
	deliveries, _ := poll(t, e, EventLimits{Events: 4, Bytes: 64 << 20})
	want := 0
	for _, hold := range []int{4, 4, 2} {
		want += hold
		var held []*EventDelivery
		for range hold {
			held = append(held, receive(t, deliveries))
		}
		if n := handedOut(); n != want {
			t.Errorf("%d events are handed out, want %d", n, want)
		}
		for _, d := range held {
			if err := d.Nak(time.Hour); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestUnreadableEventIsDropped(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	e := s.conn.Events(1)
	if _, err := s.conn.js.Publish(t.Context(), eventSubject(0, "a", "f"), []byte("\xff\xff")); err != nil {
		t.Fatal(err)
	}
	good := testEvent("f", nil)
	if err := e.PublishEvent(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	deliveries, stop := poll(t, e, wide)
	d := receive(t, deliveries)
	if !proto.Equal(d.Event, good) {
		t.Errorf("came: %v", d.Event)
	}
	if err := d.Ack(); err != nil {
		t.Fatal(err)
	}
	stop()
	drained(t, e)
}

// What a poller held when it died goes to the next one.
func TestUnsettledEventsAreHandedToAnother(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	if err := s.conn.Events(1).PublishEvent(t.Context(), testEvent("f", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	deliveries, stop := poll(t, s.conn.Events(1), wide)
	d := receive(t, deliveries)
	s.stop() // with the delivery in hand
	if err := d.Ack(); err == nil {
		t.Error("settled without a store")
	}
	stop()
	s.start()
	deliveries, _ = poll(t, s.conn.Events(1), wide)
	if d := receive(t, deliveries); string(d.Event.Payload) != "x" {
		t.Errorf("came: %v", d.Event)
	} else if err := d.Ack(); err != nil {
		t.Fatal(err)
	}
}
