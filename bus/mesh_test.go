package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/doze-run/doze/bus/nodetls"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// homesPlane is several control nodes' call planes over TCP, an asker at each, and a worker that is connected
// to all.
type homesPlane struct {
	t       *testing.T
	servers map[string]*Server
	homes   []Home
	meshes  map[string]*Mesh
	askers  map[string]*Asker
	worker  *Mesh

	mu   sync.Mutex
	open map[QueueID]*meshSlot
	runs map[CallID]int
}

const meshMemory = 64 << 20

func newHomesPlane(t *testing.T, n int, certificates *certificates) *homesPlane {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	p := &homesPlane{
		t: t, servers: map[string]*Server{}, meshes: map[string]*Mesh{}, askers: map[string]*Asker{},
		open: map[QueueID]*meshSlot{}, runs: map[CallID]int{},
	}
	for i := range n {
		node := fmt.Sprint("c", i+1)
		address, certificate := freeAddress(t), certificates.node(nodetls.Control, node)
		server, err := StartServer(ServerConfig{Name: node, StoreDir: t.TempDir(), MemoryBytes: meshMemory, SyncInterval: time.Minute, Listen: address, TLS: certificate, Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close(context.Background()) })
		conn, err := ConnectHome(t.Context(), node, ConnConfig{Name: node, Server: server, Logger: log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.EnsureCallPlane(t.Context(), meshMemory); err != nil {
			t.Fatal(err)
		}
		p.servers[node] = server
		p.meshes[node] = NewMesh(node, conn, certificate, log)
		p.homes = append(p.homes, Home{Node: node, Address: address})
	}
	p.worker = NewMesh("w1", nil, certificates.node(nodetls.Worker, "w1"), log)
	if _, err := p.worker.ServeWorker(t.Context(), "w1", (*hostAll)(p)); err != nil {
		t.Fatal(err)
	}
	for _, m := range append([]*Mesh{p.worker}, p.meshes["c1"], p.meshes["c2"], p.meshes["c3"]) {
		m.SetHomes(p.homes)
		t.Cleanup(func() { _ = m.Close() })
		for now, all := m.Connected(); now < all; now, all = m.Connected() {
			time.Sleep(time.Millisecond)
		}
	}
	for node, m := range p.meshes {
		asker, err := m.NewAsker(homeWaker{p, m}, meshMemory)
		if err != nil {
			t.Fatal(err)
		}
		p.askers[node] = asker
		if _, err := m.OnHint(func(_ QueueID, spec *dozev1.FunctionSpec) { homeWaker{p, m}.host(spec) }); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// onHomes runs a test with three homes in clear, and with TLS.
func onHomes(t *testing.T, test func(t *testing.T, p *homesPlane)) {
	t.Run("clear", func(t *testing.T) { test(t, newHomesPlane(t, 3, nil)) })
	t.Run("TLS", func(t *testing.T) { test(t, newHomesPlane(t, 3, newCertificates(t))) })
}

// spec is the tag of a test's calls.
type spec struct{ *dozev1.FunctionSpec }

func (s spec) Spec() *dozev1.FunctionSpec { return s.FunctionSpec }

func testSpec(i int) spec {
	return spec{&dozev1.FunctionSpec{Account: "000000000000", Function: fmt.Sprint("f", i), Version: "$LATEST", Revision: "r1"}}
}

// homeWaker asks the worker to host, as a home's placement does.
type homeWaker struct {
	p *homesPlane
	m *Mesh
}

func (w homeWaker) Wake(_ QueueID, tag any) { w.host(tag.(Specer).Spec()) }
func (w homeWaker) host(s *dozev1.FunctionSpec) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, _ = w.m.AskHost(ctx, "w1", &dozev1.HostRequest{Spec: s}) // asked again when it did not come
	}()
}

// hostAll is a worker that has one slot for each queue.
type hostAll homesPlane

func (h *hostAll) Host(ctx context.Context, home string, request *dozev1.HostRequest) *dozev1.HostReply {
	s := request.Spec
	id := NewQueueID(s.Account, s.Function, s.Version, s.Revision)
	h.mu.Lock()
	defer h.mu.Unlock()
	reply := &dozev1.HostReply{Verdict: dozev1.HostReply_HOSTING}
	if s := h.open[id]; s != nil {
		if moved, err := s.queue.Move(ctx, home); moved && err == nil {
			_ = s.slot.Park(PriorityIdle, 1, time.Minute)
		}
		return reply
	}
	q, err := h.worker.OpenQueue(ctx, home, "w1", id)
	if err != nil {
		return &dozev1.HostReply{Verdict: dozev1.HostReply_UNAVAILABLE, Reason: err.Error()}
	}
	s1 := &meshSlot{p: (*homesPlane)(h), queue: q}
	if s1.slot, err = q.NewSlot(s1); err != nil {
		return &dozev1.HostReply{Verdict: dozev1.HostReply_UNAVAILABLE, Reason: err.Error()}
	}
	_ = s1.slot.Park(PriorityIdle, 1, time.Minute)
	h.open[id] = s1
	return reply
}
func (h *hostAll) Instances(context.Context, string) []*dozev1.InstanceInfo { return nil }
func (h *hostAll) Retire(*dozev1.RetireRequest)                             {}
func (h *hostAll) Drain()                                                   {}
func (h *hostAll) Stop()                                                    {}

type meshSlot struct {
	p     *homesPlane
	queue *Queue
	slot  *Slot
}

func (s *meshSlot) Delivered(d *Delivery) { _ = s.slot.Claim(d) }
func (s *meshSlot) Refused(*Delivery)     { s.Unparked(false) }
func (s *meshSlot) Unparked(bool)         { _ = s.slot.Park(PriorityIdle, 1, time.Minute) }
func (s *meshSlot) Granted(d *Delivery) {
	s.p.mu.Lock()
	s.p.runs[d.ID]++
	s.p.mu.Unlock()
	go func() {
		time.Sleep(20 * time.Millisecond)
		_ = s.slot.Answer(d, echo(d))
		s.Unparked(false)
	}()
}

// Every process comes to the same home for a function, and the functions are spread.
func TestHomesAgree(t *testing.T) { onHomes(t, testHomesAgree) }

func testHomesAgree(t *testing.T, p *homesPlane) {
	at := map[string]int{}
	for i := range 300 {
		s := testSpec(i)
		id := NewQueueID(s.Account, s.Function, s.Version, s.Revision)
		home := p.worker.home(id).node
		at[home]++
		for node, m := range p.meshes {
			if m.home(id).node != home {
				t.Errorf("function %d is at home at %s for %s, at %s for a worker", i, m.home(id).node, node, home)
			}
		}
		if other := NewQueueID(s.Account, s.Function, "1", "r2"); p.worker.home(other).node != home {
			t.Error("two versions of a function have two homes")
		}
	}
	for node := range p.meshes {
		if at[node] < 60 {
			t.Errorf("%s is the home of %d functions of 300", node, at[node])
		}
	}
}

// A home ends while calls are in its queues and run: those of other askers are answered all the same,
// and none runs twice.
func TestHomeLost(t *testing.T) { onHomes(t, testHomeLost) }

func testHomeLost(t *testing.T, p *homesPlane) {
	const functions, each = 12, 6
	type outcome struct {
		node   string
		id     CallID
		answer *Answer
	}
	outcomes := make(chan outcome, 2*functions*each)
	var asking sync.WaitGroup
	for i := range functions {
		for n := range each {
			node := []string{"c1", "c2"}[n%2]
			asking.Go(func() {
				s := testSpec(i)
				call := newCall([]byte("{}"))
				id := NewQueueID(s.Account, s.Function, s.Version, s.Revision)
				outcomes <- outcome{node, call.ID, p.askers[node].Ask(id, call, AskLimits{Queue: 20 * time.Second, Start: 20 * time.Second, Run: 20 * time.Second}, s)}
			})
		}
	}
	// When some have been answered, most of the rest wait at one of the homes.
	for range functions {
		if o := <-outcomes; o.answer.Fault != nil {
			t.Fatal(o.answer.Fault)
		}
	}
	p.servers["c3"].stop()
	asking.Wait()
	close(outcomes)
	for o := range outcomes {
		if o.answer.Fault != nil {
			t.Errorf("asked by %s: %v", o.node, o.answer.Fault)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.runs) != functions*each {
		t.Errorf("%d of %d calls ran", len(p.runs), functions*each)
	}
	for id, n := range p.runs {
		if n != 1 {
			t.Errorf("call %x ran %d times", id, n)
		}
	}
}

// A worker whose connections are gone from every home is lost at once, one that says nothing after a while.
func TestWorkerLost(t *testing.T) { onHomes(t, testWorkerLost) }

func testWorkerLost(t *testing.T, p *homesPlane) {
	s := testSpec(1)
	id := NewQueueID(s.Account, s.Function, s.Version, s.Revision)
	queue, err := p.worker.OpenQueue(t.Context(), p.worker.home(id).node, "w1", id)
	if err != nil {
		t.Fatal(err)
	}
	granted := make(chan struct{})
	r := newRunner(t, queue, func(d *Delivery) *Answer {
		close(granted)
		<-t.Context().Done() // for as long as anybody looks
		return echo(d)
	})
	if err := r.slot.Park(PriorityIdle, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	answer := make(chan *Answer, 1)
	go func() {
		answer <- p.askers["c1"].Ask(id, newCall([]byte("{}")), AskLimits{Queue: 20 * time.Second, Start: 20 * time.Second, Run: time.Minute}, s)
	}()
	<-granted
	lost := time.Now()
	if err := p.worker.Close(); err != nil {
		t.Fatal(err)
	}
	a := <-answer
	if a.Fault == nil || a.Fault.Code != FaultWorkerLost || !a.Fault.Ran || a.Fault.Left <= 0 {
		t.Errorf("answer %+v, fault %+v", a, a.Fault)
	}
	if took := time.Since(lost); took > 2*time.Second {
		t.Errorf("told after %v", took)
	}
}

// A port that somebody else has is said at once.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = StartServer(ServerConfig{Name: "n", StoreDir: t.TempDir(), Listen: l.Addr().String(), Logger: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v", err)
	}
}
