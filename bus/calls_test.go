package bus

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/doze-run/doze/bus/nodetls"
)

// plane is a server with the call plane and one connection each for an asker and a worker, as in
// `doze dev`.
type plane struct {
	server  *Server
	control *Conn
	mesh    *Mesh // the worker's
	asker   *Asker
	wakes   atomic.Int64
}

func (p *plane) Wake(QueueID, any) { p.wakes.Add(1) }

// present answers for a worker that it is there.
type present struct{ WorkerServer }

func newPlane(t testing.TB, memory int64) *plane { return newPlaneOver(t, nil, memory) }

// newPlaneOver is newPlane, or, with certificates, one whose worker comes over TLS with its own.
func newPlaneOver(t testing.TB, c *certificates, memory int64) *plane {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	config := ServerConfig{
		Name: "test", StoreDir: t.TempDir(), MemoryBytes: memory, StoreBytes: 64 << 20, SyncInterval: time.Minute, Logger: log,
	}
	if c != nil {
		config.Listen, config.TLS = freeAddress(t), c.node(nodetls.Control, "test")
	}
	server, err := StartServer(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close(context.Background()) })
	p := &plane{server: server}
	if p.control, err = ConnectHome(t.Context(), "test", ConnConfig{Name: "test", Server: server, Logger: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.control.Close() })
	if err := p.control.EnsureCallPlane(t.Context(), memory); err != nil {
		t.Fatal(err)
	}
	if c != nil {
		p.mesh = NewMesh("w1", nil, c.node(nodetls.Worker, "w1"), log)
		t.Cleanup(func() { _ = p.mesh.Close() })
		p.mesh.SetHomes([]Home{{Node: "test", Address: config.Listen}})
		for now, all := p.mesh.Connected(); now < all; now, all = p.mesh.Connected() {
			time.Sleep(time.Millisecond)
		}
	} else {
		worker, err := ConnectHome(t.Context(), "test", ConnConfig{Name: "w1", Server: server, Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = worker.Close() })
		p.mesh = NewMesh("w1", worker, nil, log)
	}
	served, err := p.mesh.ServeWorker(t.Context(), "w1", present{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = served.Close() })
	if p.asker, err = NewMesh("test", p.control, nil, log).NewAsker(p, memory); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.asker.Close() })
	return p
}

// onPlanes runs a test in process, and with a worker that comes over TLS.
func onPlanes(t *testing.T, memory int64, test func(t *testing.T, p *plane)) {
	t.Run("in process", func(t *testing.T) { test(t, newPlane(t, memory)) })
	t.Run("TLS", func(t *testing.T) { test(t, newPlaneOver(t, newCertificates(t), memory)) })
}

// runner is a slot that claims what it gets, answers with run, and parks again.
type runner struct {
	slot      *Slot
	run       func(d *Delivery) *Answer
	delivered chan *Delivery // when set, deliveries stop here and are not claimed
	refused   chan *Delivery
	unparked  chan bool
}

func newRunner(t testing.TB, q *Queue, run func(d *Delivery) *Answer) *runner {
	t.Helper()
	r := &runner{run: run, refused: make(chan *Delivery, 8), unparked: make(chan bool, 8)}
	slot, err := q.NewSlot(r)
	if err != nil {
		t.Fatal(err)
	}
	r.slot = slot
	return r
}

func (r *runner) Delivered(d *Delivery) {
	if r.delivered != nil {
		r.delivered <- d
		return
	}
	_ = r.slot.Claim(d)
}

func (r *runner) Granted(d *Delivery) {
	_ = r.slot.Answer(d, r.run(d))
	_ = r.slot.Park(PriorityRecent, 1, time.Minute)
}

func (r *runner) Refused(d *Delivery) { r.refused <- d }

func (r *runner) Unparked(gone bool) { r.unparked <- gone }

func echo(d *Delivery) *Answer {
	return &Answer{Outcome: 1, Payload: d.Body, Instance: "i-1", Phases: Phases{Handler: time.Millisecond, Queue: d.Waited, Claim: d.Claim}}
}

var testLimits = AskLimits{Queue: 5 * time.Second, Start: 5 * time.Second, Run: 5 * time.Second}

func newCall(body []byte) *Call {
	call := &Call{InvokedARN: "arn:aws:lambda:us-east-1:000000000000:function:f", TraceID: "Root=1-2-3", Body: body}
	_, _ = rand.Read(call.ID[:])
	return call
}

func openQueue(t testing.TB, p *plane) *Queue {
	t.Helper()
	q, err := p.mesh.OpenQueue(t.Context(), "test", "w1", NewQueueID("000000000000", "f", "$LATEST", "r1"))
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestCallRoundTripAtEverySize(t *testing.T) { onPlanes(t, 64<<20, testCallRoundTripAtEverySize) }

func testCallRoundTripAtEverySize(t *testing.T, p *plane) {
	q := openQueue(t, p)
	r := newRunner(t, q, echo)
	if err := r.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, deferBytes, deferBytes + 1, inlineBytes, inlineBytes + 1, 6291456} {
		body := make([]byte, size)
		_, _ = rand.Read(body)
		answer := p.asker.Ask(q.ID, newCall(body), testLimits, nil)
		if answer.Fault != nil {
			t.Fatalf("%d bytes: %v", size, answer.Fault)
		}
		if !bytes.Equal(answer.Payload, body) {
			t.Errorf("%d bytes came back as %d other ones", size, len(answer.Payload))
		}
		if answer.Worker != "w1" || answer.Instance != "i-1" || answer.Handler != time.Millisecond {
			t.Errorf("answer %+v", answer)
		}
	}
	if n := p.asker.InFlight(); n != 0 {
		t.Errorf("%d calls are still in flight", n)
	}
	if err := r.slot.Close(); err != nil {
		t.Fatal(err)
	}
}

// A call whose holder says nothing goes to another worker; the first one's late claim is refused.
func TestCallMovesAndRunsOnce(t *testing.T) { onPlanes(t, 16<<20, testCallMovesAndRunsOnce) }

func testCallMovesAndRunsOnce(t *testing.T, p *plane) {
	q := openQueue(t, p)
	var runs atomic.Int64
	count := func(d *Delivery) *Answer { runs.Add(1); return echo(d) }
	frozen := newRunner(t, q, count)
	frozen.delivered = make(chan *Delivery, 1)
	if err := frozen.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	answers := make(chan *Answer)
	go func() { answers <- p.asker.Ask(q.ID, newCall([]byte("{}")), testLimits, nil) }()
	held := <-frozen.delivered

	other := newRunner(t, q, count)
	if err := other.slot.Park(PriorityHost, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	if answer := <-answers; answer.Fault != nil {
		t.Fatal(answer.Fault)
	}
	if err := frozen.slot.Claim(held); err != nil {
		t.Fatal(err)
	}
	<-frozen.refused
	if n := runs.Load(); n != 1 {
		t.Fatalf("the handler ran %d times", n)
	}
}

func TestCallNobodyTakes(t *testing.T) { onPlanes(t, 16<<20, testCallNobodyTakes) }

func testCallNobodyTakes(t *testing.T, p *plane) {
	limits := AskLimits{Queue: 60 * time.Millisecond, Start: time.Second, Run: time.Second}
	answer := p.asker.Ask(NewQueueID("a", "f", "1", "r"), newCall([]byte("{}")), limits, nil)
	if answer.Fault == nil || answer.Fault.Code != FaultNoCapacity || answer.Fault.Ran {
		t.Fatalf("answer %+v", answer)
	}
	if p.wakes.Load() == 0 {
		t.Error("nobody was asked to host the queue")
	}
}

func TestCallQueueFull(t *testing.T) { onPlanes(t, 2<<20, testCallQueueFull) } // 256 KB a shard

func testCallQueueFull(t *testing.T, p *plane) {
	id := NewQueueID("a", "f", "1", "r")
	limits := AskLimits{Queue: time.Second, Start: time.Second, Run: time.Second}
	var full atomic.Int64
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			answer := p.asker.Ask(id, newCall(make([]byte, 100<<10)), limits, nil)
			if answer.Fault == nil {
				t.Error("answered")
			} else if answer.Fault.Code == FaultQueueFull {
				full.Add(1)
			}
		})
	}
	group.Wait()
	if n := full.Load(); n != 2 {
		t.Errorf("%d calls were refused by the full queue, want 2", n)
	}
}

// A worker that says that it starts an instance moves the caller's deadline once the start takes
// longer than a call may wait in its queue.
func TestStartingExtendsTheWait(t *testing.T) { onPlanes(t, 16<<20, testStartingExtendsTheWait) }

func testStartingExtendsTheWait(t *testing.T, p *plane) {
	q := openQueue(t, p)
	r := newRunner(t, q, echo)
	r.delivered = make(chan *Delivery, 1)
	if err := r.slot.Park(PriorityHost, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	limits := AskLimits{Queue: 100 * time.Millisecond, Start: 10 * time.Second, Run: time.Second}
	answers := make(chan *Answer)
	go func() { answers <- p.asker.Ask(q.ID, newCall([]byte("{}")), limits, nil) }()
	d := <-r.delivered
	d.Starting()
	select {
	case answer := <-answers:
		t.Fatalf("gave up although an instance starts: %+v", answer)
	case <-time.After(2 * limits.Queue):
	}
	if err := r.slot.Claim(d); err != nil {
		t.Fatal(err)
	}
	if answer := <-answers; answer.Fault != nil {
		t.Fatal(answer.Fault)
	}
}

func TestWarmInstanceBeforeHost(t *testing.T) { onPlanes(t, 16<<20, testWarmInstanceBeforeHost) }

func testWarmInstanceBeforeHost(t *testing.T, p *plane) {
	q := openQueue(t, p)
	host, warm := newRunner(t, q, echo), newRunner(t, q, echo)
	warm.run = func(d *Delivery) *Answer { return &Answer{Outcome: 1, Instance: "warm"} }
	for _, park := range []error{host.slot.Park(PriorityHost, 1, time.Minute), warm.slot.Park(PriorityRecent, 1, time.Minute)} {
		if park != nil {
			t.Fatal(park)
		}
	}
	for range 20 {
		awaitParked(t, p, q, 2)
		if answer := p.asker.Ask(q.ID, newCall([]byte("{}")), testLimits, nil); answer.Instance != "warm" {
			t.Fatalf("answered by %q", answer.Instance)
		}
	}
}

// awaitParked waits until the broker has taken note of n pulls: it does so after a publish of the
// one who parks, on a goroutine of its own.
func awaitParked(t *testing.T, p *plane, q *Queue, n int) {
	t.Helper()
	consumer, err := p.control.js.Consumer(t.Context(), q.ID.stream(), string(q.ID))
	if err != nil {
		t.Fatal(err)
	}
	for t.Context().Err() == nil {
		info, err := consumer.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.NumWaiting == n {
			return
		}
	}
}

func TestPullEndsByItsLimit(t *testing.T) { onPlanes(t, 16<<20, testPullEndsByItsLimit) }

func testPullEndsByItsLimit(t *testing.T, p *plane) {
	r := newRunner(t, openQueue(t, p), echo)
	if err := r.slot.Park(PriorityRecent, 1, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if gone := <-r.unparked; gone {
		t.Error("told that the queue is gone")
	}
}

func TestPullWithoutConsumer(t *testing.T) { onPlanes(t, 16<<20, testPullWithoutConsumer) }

func testPullWithoutConsumer(t *testing.T, p *plane) {
	q := openQueue(t, p)
	if err := p.control.js.DeleteConsumer(t.Context(), q.ID.stream(), string(q.ID)); err != nil {
		t.Fatal(err)
	}
	if err := p.control.EnsureCallPlane(t.Context(), 16<<20); err != nil { // as after a restart: a home that relays pulls forgets
		t.Fatal(err)
	}
	r := newRunner(t, q, echo)
	if err := r.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	if gone := <-r.unparked; !gone {
		t.Error("not told that the queue is gone")
	}
}

// What a worker measured arrives as it was, within bounds.
func TestAnswerCarriesPhases(t *testing.T) {
	sent := &Answer{Cold: true, Outcome: 1, Worker: "w", Instance: "i", Payload: []byte("{}"),
		Phases: Phases{Queue: 1, Claim: 130, Mount: time.Millisecond, Init: 10 * time.Second, Handler: 15 * time.Minute}}
	got, _, err := parseAnswer(appendAnswer(nil, 1, CallID{}, sent, false)[25:])
	if err != nil || got.Phases != sent.Phases || string(got.Payload) != "{}" {
		t.Errorf("%v: %+v, want %+v", err, got, sent)
	}
	sent.Phases = Phases{Queue: -1, Handler: 48 * time.Hour}
	got, _, err = parseAnswer(appendAnswer(nil, 1, CallID{}, sent, false)[25:])
	if err != nil || got.Phases != (Phases{Handler: maxPhase}) {
		t.Errorf("%v: %+v", err, got)
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add(appendCall(nil, address{"x", 7}, newCall([]byte("{}")), false))
	f.Add(appendAnswer(nil, 1, CallID{}, &Answer{Payload: []byte("{}")}, false)[25:])
	f.Add(appendAnswer(nil, 1, CallID{}, &Answer{Fault: &Fault{Code: 1}}, true)[25:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if call, from, deferred, err := parseCall(b); err == nil && !deferred {
			again := appendCall(nil, from, &call, false)
			if back, _, _, err := parseCall(again); err != nil || !bytes.Equal(back.Body, call.Body) || back.ID != call.ID {
				t.Fatalf("call does not survive: %v", err)
			}
		}
		if _, total, err := parseAnswer(b); err == nil && total > maxBody {
			t.Fatal("unbounded payload")
		}
		_, _, _, _, _ = parseHead(b)
	})
}

func BenchmarkCall(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			p := newPlane(b, 64<<20)
			q := openQueue(b, p)
			for range 8 {
				r := newRunner(b, q, echo)
				if err := r.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var group sync.WaitGroup
			for range callers {
				group.Go(func() {
					for left.Add(-1) >= 0 {
						if answer := p.asker.Ask(q.ID, newCall([]byte(`{"a":1}`)), testLimits, nil); answer.Fault != nil {
							b.Error(answer.Fault)
						}
					}
				})
			}
			group.Wait()
		})
	}
}

// hasty gives every claim up before its grant can come.
type hasty struct{ slot *Slot }

func (h *hasty) Delivered(d *Delivery) {
	_ = h.slot.Claim(d)
	h.slot.Abandon(0)
}
func (h *hasty) Granted(*Delivery) { panic("a claim that was given up was granted") }
func (h *hasty) Refused(*Delivery) {}
func (h *hasty) Unparked(bool)     {}

// A grant that comes after its claim was given up is answered at once: the caller need not wait for what
// nobody runs.
func TestLateGrantIsAnswered(t *testing.T) {
	p := newPlane(t, 64<<20)
	q := openQueue(t, p)
	h := &hasty{}
	var err error
	if h.slot, err = q.NewSlot(h); err != nil {
		t.Fatal(err)
	}
	if err := h.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	answer := p.asker.Ask(q.ID, newCall([]byte("{}")), testLimits, nil)
	if answer.Fault == nil || answer.Fault.Code != FaultWorkerLost || answer.Fault.Ran {
		t.Fatalf("answer %+v, fault %v", answer, answer.Fault)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("the caller was told after %v", took)
	}
}
