package pool

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/doze-run/doze/bus"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/instance"
	"github.com/doze-run/doze/worker/meter"
)

// world is a real bus with one worker's pool on it; only the instances are made up.
type world struct {
	t      *testing.T
	pool   *Pool
	asker  *bus.Asker
	mesh   *bus.Mesh // of the asker
	spec   *dozev1.FunctionSpec
	maker  *maker
	worker *bus.Conn
}

// maker launches made-up instances that behave as told.
type maker struct {
	handle func(*instance.Event) *instance.Result // nil Result: the instance dies in the middle
	boot   time.Duration
	// initFails, noMemory: how many launches fail that way.
	initFails, noMemory atomic.Int64
	broken              error
	full                atomic.Bool // the journal has no room

	launched, living, peak atomic.Int64
	mu                     sync.Mutex
	records                []meter.Record
}

func (m *maker) Append(r *meter.Record) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = append(m.records, *r)
	return uint64(len(m.records)), nil
}

func (m *maker) Reserve() error {
	if m.full.Load() {
		return errors.New("disk full")
	}
	return nil
}

func TestNoEgressIsTold(t *testing.T) {
	w := newWorld(t, &maker{broken: fmt.Errorf("%w: no nf_tables", ErrNoEgress)}, time.Minute)
	a := w.ask("{}")
	if a.Fault == nil || a.Fault.Code != bus.FaultNoEgress || a.Fault.Ran || !strings.Contains(a.Fault.Message, "no nf_tables") {
		t.Fatalf("answer %+v", a)
	}
}

func (m *maker) billed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.records)
}

type fake struct {
	maker   *maker
	handler instance.Handler
	events  chan *instance.Event
	stop    chan struct{}
	once    sync.Once
}

func (m *maker) Launch(_ context.Context, s *Start, h instance.Handler) (Instance, error) {
	s.Origin = Origin{Parked: Hit, CodeCached: true}
	if m.broken != nil {
		return nil, m.broken
	}
	if m.noMemory.Add(-1) >= 0 {
		return nil, ErrNoMemory
	}
	m.launched.Add(1)
	living := m.living.Add(1)
	for peak := m.peak.Load(); living > peak && !m.peak.CompareAndSwap(peak, living); peak = m.peak.Load() {
	}
	f := &fake{maker: m, handler: h, events: make(chan *instance.Event, 1), stop: make(chan struct{})}
	go f.live()
	return f, nil
}

func (f *fake) live() {
	defer f.handler.Ended(nil)
	time.Sleep(f.maker.boot)
	if f.maker.initFails.Add(-1) >= 0 {
		f.handler.Done(nil, &instance.Result{Outcome: instance.InitError, FunctionError: "Unhandled", BilledMs: 1, Payload: []byte("init")})
		return
	}
	f.handler.Ready(nil, f.maker.boot)
	for {
		select {
		case <-f.stop:
			return
		case e := <-f.events:
			r := f.maker.handle(e)
			if r == nil {
				f.once.Do(func() { close(f.stop) })
				f.handler.Done(nil, &instance.Result{Outcome: instance.Exit, FunctionError: "Unhandled", BilledMs: 1})
				return
			}
			r.BilledMs = 1
			f.handler.Done(nil, r)
			f.handler.Idle(nil)
		}
	}
}

func (f *fake) Invoke(e *instance.Event) error {
	select {
	case <-f.stop:
		return errors.New("ended")
	case f.events <- e:
		return nil
	}
}
func (f *fake) Stop()              { f.once.Do(func() { close(f.stop) }) }
func (f *fake) Release()           { f.maker.living.Add(-1) }
func (f *fake) MemoryBytes() int64 { return 1 << 20 }

func (f *fake) CPUTime() time.Duration         { return 0 }
func (f *fake) CPUWait() (time.Duration, bool) { return 0, false }

func (w *world) Wake(bus.QueueID, any) {
	if err := w.pool.Host(context.Background(), "t", w.spec); err != nil {
		w.t.Log(err)
	}
}

// present answers for the worker that it is there.
type present struct{ bus.WorkerServer }

func newWorld(t *testing.T, m *maker, idle time.Duration) *world {
	t.Helper()
	// What the broker leaves running for a moment after its end is not ours.
	t.Cleanup(func() {
		goleak.VerifyNone(t, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*ipQueue[...]).push"))
	})
	log := slog.New(slog.DiscardHandler)
	server, err := bus.StartServer(bus.ServerConfig{Name: "t", StoreDir: t.TempDir(), MemoryBytes: 64 << 20, StoreBytes: 64 << 20, SyncInterval: time.Minute, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close(context.Background()) })
	connect := func(name string) *bus.Conn {
		c, err := bus.ConnectHome(t.Context(), "t", bus.ConnConfig{Name: name, Server: server, Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	control := connect("t")
	if err := control.EnsureCallPlane(t.Context(), 64<<20); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, maker: m, worker: connect("w1"), spec: &dozev1.FunctionSpec{Account: "1", Function: "f", Version: "$LATEST", Revision: "r1", MemoryMb: 128}}
	mesh := bus.NewMesh("w1", w.worker, nil, log)
	served, err := mesh.ServeWorker(t.Context(), "w1", present{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = served.Close() })
	w.pool = New(Config{Worker: "w1", Mesh: mesh, Launcher: m, Journal: m, IdleTimeout: idle, ConcurrentStarts: 8, Logger: log})
	t.Cleanup(func() {
		if err := w.pool.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if n := m.living.Load(); n != 0 {
			t.Errorf("%d instances outlive the pool", n)
		}
	})
	w.mesh = bus.NewMesh("t", control, nil, log)
	if w.asker, err = w.mesh.NewAsker(w, 64<<20); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.asker.Close() })
	return w
}

func (w *world) ask(body string) *bus.Answer { return w.askWith(body, nil) }

func (w *world) askWith(body string, permit bus.Permit) *bus.Answer {
	call := &bus.Call{Body: []byte(body)}
	_, _ = rand.Read(call.ID[:])
	id := bus.NewQueueID(w.spec.Account, w.spec.Function, w.spec.Version, w.spec.Revision)
	return w.asker.Ask(id, call, bus.AskLimits{Queue: 20 * time.Second, Start: 20 * time.Second, Run: 20 * time.Second, Permit: permit}, nil)
}

func (w *world) askMany(n int, body string) (cold int) {
	w.t.Helper()
	var group sync.WaitGroup
	var colds atomic.Int64
	for range n {
		group.Go(func() {
			a := w.ask(body)
			if a.Fault != nil {
				w.t.Error(a.Fault)
			}
			if a.Cold {
				colds.Add(1)
			}
		})
	}
	group.Wait()
	return int(colds.Load())
}

func echo(e *instance.Event) *instance.Result {
	return &instance.Result{Outcome: instance.OK, Payload: bytes.Clone(e.Payload)}
}

func slowly(d time.Duration) func(*instance.Event) *instance.Result {
	return func(e *instance.Event) *instance.Result {
		time.Sleep(d)
		return &instance.Result{Outcome: instance.OK, Duration: d}
	}
}

func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("never: " + what)
		}
	}
}

func TestSleepWakeAnswerSleep(t *testing.T) {
	w := newWorld(t, &maker{handle: echo}, 50*time.Millisecond)
	for round := range 3 {
		a := w.ask("hello")
		if a.Fault != nil || string(a.Payload) != "hello" || !a.Cold {
			t.Fatalf("round %d: %+v", round, a)
		}
		if a := w.ask("again"); a.Fault != nil || a.Cold {
			t.Fatalf("round %d, warm: %+v", round, a)
		}
		w.eventually("asleep", func() bool { return len(w.pool.Hosted()) == 0 && w.maker.living.Load() == 0 })
	}
	if n := w.maker.billed(); n != 6 {
		t.Errorf("%d attempts journaled, want 6", n)
	}
}

// Without history each call gets an instance of its own, and few more.
func TestBurstStartsOneEach(t *testing.T) {
	w := newWorld(t, &maker{handle: slowly(time.Second), boot: 2 * time.Millisecond}, time.Minute)
	w.askMany(50, "{}")
	if n := w.maker.launched.Load(); n < 50 || n > 55 {
		t.Errorf("50 calls started %d instances", n)
	}
}

// A short handler is served by few instances although many call at once.
func TestShortHandlerQueues(t *testing.T) {
	w := newWorld(t, &maker{handle: echo, boot: 20 * time.Millisecond}, time.Minute)
	w.ask("{}")
	w.askMany(200, "{}")
	if n := w.maker.launched.Load(); n > 20 {
		t.Errorf("200 quick calls started %d instances", n)
	}
}

func TestInitFailureAnswersItsCall(t *testing.T) {
	m := &maker{handle: echo}
	m.initFails.Store(2)
	w := newWorld(t, m, time.Minute)
	for range 2 {
		if a := w.ask("{}"); a.Fault != nil || a.FunctionError != "Unhandled" || string(a.Payload) != "init" {
			t.Fatalf("answer %+v", a)
		}
	}
	if a := w.ask("{}"); a.Fault != nil || a.FunctionError != "" {
		t.Fatalf("answer %+v", a)
	}
	if n := m.billed(); n != 3 {
		t.Errorf("%d attempts journaled, want 3", n)
	}
}

// Crashes under load: every call is answered once, journaled once, and the next ones work.
func TestCrashesUnderLoad(t *testing.T) {
	var n atomic.Int64
	m := &maker{boot: time.Millisecond, handle: func(e *instance.Event) *instance.Result {
		if n.Add(1)%5 == 0 {
			return nil
		}
		return echo(e)
	}}
	w := newWorld(t, m, time.Minute)
	for range 5 {
		w.askMany(40, "{}")
	}
	if got := m.billed(); got != 200 {
		t.Errorf("%d attempts journaled, want 200", got)
	}
	seen := map[[16]byte]bool{}
	for _, r := range m.records {
		if seen[r.RequestID] {
			t.Fatal("a call was billed twice")
		}
		seen[r.RequestID] = true
	}
}

func TestNoMemoryWaits(t *testing.T) {
	m := &maker{handle: echo}
	m.noMemory.Store(3)
	w := newWorld(t, m, time.Minute)
	if a := w.ask("{}"); a.Fault != nil {
		t.Fatal(a.Fault)
	}
}

func TestStartFaultIsTold(t *testing.T) {
	w := newWorld(t, &maker{broken: errors.New("no code")}, time.Minute)
	a := w.ask("{}")
	if a.Fault == nil || a.Fault.Code != bus.FaultStart || a.Fault.Ran {
		t.Fatalf("answer %+v", a)
	}
}

func TestReservedConcurrencyBoundsInstances(t *testing.T) {
	w := newWorld(t, &maker{handle: slowly(20 * time.Millisecond)}, time.Minute)
	three := uint32(3)
	w.spec.ReservedConcurrency = &three
	w.askMany(30, "{}")
	if peak := w.maker.peak.Load(); peak > 3 {
		t.Errorf("%d instances at once", peak)
	}
}

// A worker that cannot journal takes no calls; when it can again, those that waited are answered.
func TestFullJournalTakesNoCalls(t *testing.T) {
	w := newWorld(t, &maker{handle: echo}, time.Minute)
	w.ask("{}")
	before := w.maker.billed()
	w.maker.full.Store(true)
	answered := make(chan *bus.Answer, 3)
	for range 3 { // the instance's pull and the host's were parked before: these calls go back
		go func() { answered <- w.ask("{}") }()
	}
	w.eventually("the calls wait", func() bool { return w.asker.InFlight() == 3 })
	if n := w.maker.billed(); n != before {
		t.Errorf("%d calls ran without room in the journal", n-before)
	}
	w.maker.full.Store(false)
	for range 3 {
		if a := <-answered; a.Fault != nil {
			t.Error(a.Fault)
		}
	}
}

// rest returns when the worker has seen the end of every call.
func (w *world) rest() {
	w.t.Helper()
	w.eventually("nothing runs", func() bool { s := w.pool.States(); return s.Busy+s.Starting == 0 })
}

// Instances of what was replaced or deleted end when they have finished; others stay.
func TestRetire(t *testing.T) {
	w := newWorld(t, &maker{handle: slowly(200 * time.Millisecond)}, time.Minute)
	w.ask("{}")
	w.pool.Retire("1", "other", "", "")
	w.pool.Retire("1", "f", "7", "")
	w.pool.Retire("1", "f", "$LATEST", "r1")
	w.rest()
	if a := w.ask("{}"); a.Fault != nil || a.Cold {
		t.Fatalf("an instance ended that was not meant: %+v", a)
	}
	w.rest()
	answer := make(chan *bus.Answer, 1)
	go func() { answer <- w.ask("{}") }()
	w.eventually("the call runs", func() bool {
		hosted := w.pool.Hosted()
		return len(hosted) == 1 && hosted[0].Busy == 1
	})
	w.pool.Retire("1", "f", "", "")
	if a := <-answer; a.Fault != nil {
		t.Errorf("a running call was cut off: %+v", a)
	}
	w.eventually("asleep", func() bool { return len(w.pool.Hosted()) == 0 && w.maker.living.Load() == 0 })
	if a := w.ask("{}"); a.Fault != nil || !a.Cold {
		t.Errorf("a straggler got %+v", a)
	}
}

// Close lets running calls end.
func TestCloseDrains(t *testing.T) {
	w := newWorld(t, &maker{handle: slowly(300 * time.Millisecond)}, time.Minute)
	answers := make(chan *bus.Answer, 10)
	for range 10 {
		go func() { answers <- w.ask("{}") }()
	}
	w.eventually("all run", func() bool {
		busy := uint32(0)
		for _, h := range w.pool.Hosted() {
			busy += h.Busy
		}
		return busy == 10
	})
	if err := w.pool.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if a := <-answers; a.Fault != nil {
			t.Error(a.Fault)
		}
	}
}

func TestPeakForgets(t *testing.T) {
	start := time.Unix(0, 0)
	p := newPeak(start, 10*time.Second)
	p.see(start.Add(time.Second), 7)
	if _, ok := p.most(start.Add(9 * time.Second)); ok {
		t.Error("sure of a peak before the window has passed")
	}
	p.see(start.Add(11*time.Second), 2)
	if most, ok := p.most(start.Add(14 * time.Second)); !ok || most != 7 {
		t.Errorf("peak %d, %v: forgot what is within a window and a half", most, ok)
	}
	if most, ok := p.most(start.Add(16 * time.Second)); !ok || most != 2 {
		t.Errorf("peak %d, %v", most, ok)
	}
	if most, _ := p.most(start.Add(time.Hour)); most != 0 {
		t.Errorf("peak %d an hour later", most)
	}
}
