package bus

import (
	"encoding/hex"
	"runtime"
	"testing"
	"time"
)

// After a restart of the server connections are there again, calls that run go on and what is in
// files is there; calls that wait in the queues, which are lost, are published again.
func TestRestartKeepsCallsAndEvents(t *testing.T) {
	onPlanes(t, 64<<20, testRestartKeepsCallsAndEvents)
}

func testRestartKeepsCallsAndEvents(t *testing.T, p *plane) {
	if err := p.control.EnsureStreams(t.Context(), StreamsConfig{StorageBytes: MinStorageBytes, Replicas: 1, EventShards: 1}); err != nil {
		t.Fatal(err)
	}
	events := p.control.Events(1)
	stored := testEvent("f", []byte("{}"))
	if err := events.PublishEvent(t.Context(), stored); err != nil {
		t.Fatal(err)
	}

	queue := openQueue(t, p)
	began, finish := make(chan struct{}, 2), make(chan struct{})
	slow := newRunner(t, queue, func(d *Delivery) *Answer {
		began <- struct{}{}
		<-finish
		return echo(d)
	})
	if err := slow.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	ask := func(body string) chan *Answer {
		answer := make(chan *Answer, 1)
		go func() {
			answer <- p.asker.Ask(queue.ID, newCall([]byte(body)), AskLimits{Queue: 20 * time.Second, Start: 20 * time.Second, Run: 20 * time.Second}, nil)
		}()
		return answer
	}
	granted := ask("1")
	<-began
	waiting := ask("2") // while nobody is parked
	for p.asker.InFlight() < 2 {
		runtime.Gosched()
	}
	other, err := p.mesh.OpenQueue(t.Context(), "test", "w1", NewQueueID("000000000000", "g", "$LATEST", "r1"))
	if err != nil {
		t.Fatal(err)
	}
	idle := newRunner(t, other, echo)
	if err := idle.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
		t.Fatal(err)
	}

	if err := p.server.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := p.control.EnsureCallPlane(t.Context(), 64<<20); err != nil {
		t.Fatal(err)
	}
	for gone := range idle.unparked { // the server that ends may have a word of its own before
		if gone {
			break
		}
	}
	if err := p.server.Healthy(); err != nil {
		t.Fatal(err)
	}
	openQueue(t, p)
	p.asker.Republish()
	close(finish)
	for body, answer := range map[string]chan *Answer{"1": granted, "2": waiting} {
		if a := <-answer; a.Fault != nil || string(a.Payload) != body {
			t.Errorf("call %s got %+v", body, a)
		}
	}

	deliveries, _ := poll(t, events, EventLimits{Events: 8, Bytes: 8 << 20})
	d := receive(t, deliveries)
	if hex.EncodeToString(d.Event.Id) != hex.EncodeToString(stored.Id) {
		t.Error("another event came back")
	}
	if err := d.Ack(); err != nil {
		t.Fatal(err)
	}
}
