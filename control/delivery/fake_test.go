package delivery

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// memory is a Source in memory, with the clock of the test's bubble.
type memory struct {
	mu       sync.Mutex
	handler  func(Delivery)
	waiting  []*message // before somebody consumes
	out      int        // handed out and not settled
	settled  chan struct{}
	retryErr func() error
	acks     int
	retries  []*dozev1.Event
	peak     int
}

type message struct {
	event      *dozev1.Event
	deliveries uint64
}

func newMemory() *memory { return &memory{settled: make(chan struct{}, 1)} }

func (m *memory) put(events ...*dozev1.Event) {
	for _, e := range events {
		m.deliver(&message{event: e})
	}
}

func (m *memory) deliver(msg *message) {
	m.mu.Lock()
	if m.handler == nil {
		m.waiting = append(m.waiting, msg)
		m.mu.Unlock()
		return
	}
	msg.deliveries++
	m.out++
	m.peak = max(m.peak, m.out)
	handler := m.handler
	m.mu.Unlock()
	handler(Delivery{Event: proto.CloneOf(msg.event), Deliveries: msg.deliveries, Settler: &ticket{m: m, msg: msg}})
}

func (m *memory) Consume(ctx context.Context, handler func(Delivery)) error {
	m.mu.Lock()
	m.handler = handler
	waiting := m.waiting
	m.waiting = nil
	m.mu.Unlock()
	for _, msg := range waiting {
		m.deliver(msg)
	}
	<-ctx.Done()
	m.mu.Lock()
	m.handler = nil
	for m.out > 0 {
		m.mu.Unlock()
		<-m.settled
		m.mu.Lock()
	}
	m.mu.Unlock()
	return ctx.Err()
}

func (m *memory) RetryAt(_ context.Context, event *dozev1.Event, at time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.retryErr != nil {
		if err := m.retryErr(); err != nil {
			return err
		}
	}
	event = proto.CloneOf(event)
	m.retries = append(m.retries, event)
	time.AfterFunc(time.Until(at), func() { m.deliver(&message{event: event}) })
	return nil
}

type ticket struct {
	m    *memory
	msg  *message
	done bool
}

func (t *ticket) Ack() error {
	t.settle(func() { t.m.acks++ })
	return nil
}

func (t *ticket) Nak(delay time.Duration) error {
	t.settle(func() { time.AfterFunc(delay, func() { t.m.deliver(t.msg) }) })
	return nil
}

func (t *ticket) settle(how func()) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if t.done {
		panic("settled twice")
	}
	t.done = true
	t.m.out--
	how()
	select {
	case t.m.settled <- struct{}{}:
	default:
	}
}

// functions is a Resolver and an Invoker: what each function does, by name.
type functions struct {
	mu       sync.Mutex
	handlers map[string]func(ctx context.Context, call *invoke.Call) (*invoke.Answer, error)
	reserved map[string]int
	policy   Policy
	resolve  func(name string) error
	calls    []callSeen
}

type callSeen struct {
	at       time.Time
	function string
	id       [16]byte
}

func (f *functions) Resolve(_ context.Context, account, name, qualifier string) (Target, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.resolve != nil {
		if err := f.resolve(name); err != nil {
			return Target{}, err
		}
	}
	if _, ok := f.handlers[name]; !ok {
		return Target{}, ErrGone
	}
	version := &registry.Version{Version: registry.Latest}
	function := &registry.Function{Account: account, Name: name, Latest: version}
	if n, ok := f.reserved[name]; ok {
		function.Reserved = &n
	}
	policy := f.policy
	if policy == (Policy{}) {
		policy = DefaultPolicy()
	}
	return Target{Function: function, Version: version, InvokedARN: "arn:" + name, Policy: policy}, nil
}

func (f *functions) Invoke(ctx context.Context, call *invoke.Call) (*invoke.Answer, error) {
	f.mu.Lock()
	handler := f.handlers[call.Function.Name]
	f.calls = append(f.calls, callSeen{time.Now(), call.Function.Name, call.RequestID})
	f.mu.Unlock()
	return handler(ctx, call)
}

func (f *functions) called(name string) []callSeen {
	f.mu.Lock()
	defer f.mu.Unlock()
	var calls []callSeen
	for _, c := range f.calls {
		if c.function == name {
			calls = append(calls, c)
		}
	}
	return calls
}

func succeeds(context.Context, *invoke.Call) (*invoke.Answer, error) {
	return &invoke.Answer{ExecutedVersion: registry.Latest, Payload: []byte("1")}, nil
}

func fails(context.Context, *invoke.Call) (*invoke.Answer, error) {
	return &invoke.Answer{ExecutedVersion: registry.Latest, FunctionError: "Unhandled", Payload: []byte(`{"errorMessage":"no"}`)}, nil
}

func throttled(context.Context, *invoke.Call) (*invoke.Answer, error) {
	return nil, &invoke.Throttled{Reason: invoke.ReasonReserved}
}

func lasts(d time.Duration, then func(context.Context, *invoke.Call) (*invoke.Answer, error)) func(context.Context, *invoke.Call) (*invoke.Answer, error) {
	return func(ctx context.Context, call *invoke.Call) (*invoke.Answer, error) {
		time.Sleep(d)
		return then(ctx, call)
	}
}

// ends is a Sink that keeps what it is told.
type ends struct {
	mu   sync.Mutex
	all  []end
	fail int // so many times
}

type end struct {
	at        time.Time
	condition Condition
	function  string
	id        string
	attempts  int
}

func (s *ends) Record(_ context.Context, o *Outcome) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail > 0 {
		s.fail--
		return errors.New("destination is away")
	}
	s.all = append(s.all, end{time.Now(), o.Condition, o.Event.Function, string(o.Event.Id), o.Attempts})
	return nil
}

func (s *ends) of(function string) []end {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []end
	for _, e := range s.all {
		if e.function == function {
			all = append(all, e)
		}
	}
	return all
}

var eventCount uint64

func event(function string) *dozev1.Event {
	eventCount++
	id := binary.BigEndian.AppendUint64(make([]byte, 8), eventCount)
	return &dozev1.Event{Id: id, Account: "1", Function: function, AcceptedAtMs: time.Now().UnixMilli()}
}

// rig is a poller in a bubble with everything around it.
type rig struct {
	*Poller
	store *memory
	funcs *functions
	ends  *ends
}

func newRig(t *testing.T, change func(*rig, *Config)) *rig {
	t.Helper()
	r := &rig{
		store: newMemory(), ends: &ends{},
		funcs: &functions{handlers: map[string]func(context.Context, *invoke.Call) (*invoke.Answer, error){}},
	}
	config := Config{
		Source: r.store, Invoker: r.funcs, Resolver: r.funcs, Sink: r.ends,
		Logger: slog.New(slog.DiscardHandler), Jitter: func() float64 { return 0.5 },
	}
	change(r, &config)
	r.Poller = Start(config)
	return r
}
