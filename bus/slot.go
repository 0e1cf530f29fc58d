package bus

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// Priorities of a pull: the broker hands a call to an instance that ran one just now, if one is
// parked, else to one that has been idle for longer, else to a host, which will start one because
// it holds that call. Within a priority it takes them in turn, which would keep every instance of a
// function half warm.
const (
	PriorityRecent = 0
	PriorityIdle   = 1
	PriorityHost   = 2
)

// maxAbandoned bounds the claims that a slot has given up and would still know a grant for.
const maxAbandoned = 64

// statusGone is what a pull is told that reaches no queue.
const statusGone = "503"

// SlotHandler is told what comes to a slot, one call at a time, on the slot's own goroutine.
type SlotHandler interface {
	// Delivered: the parked pull was answered with a call, one of as many as it asked for.
	Delivered(d *Delivery)
	// Granted: the claim was granted and the message settled; the event may be written.
	Granted(d *Delivery)
	// Refused: the call was answered, moved or given up elsewhere; it must not run. It is settled.
	Refused(d *Delivery)
	// Unparked: the pull ended without a call, by its limit (gone false) or because the queue has no
	// consumer any more (gone true). The slot is not parked any more.
	Unparked(gone bool)
}

// Slot is one place that calls can be handed to: an idle instance's, or a host's. At the queue's home
// it has one subscription for its life, on which pulled calls, grants and refusals arrive in order; and
// one more at each other home that it comes to deal with, because the queue moved there or because the
// asker of a call is reached that way.
type Slot struct {
	queue   *Queue
	inbox   string
	handler SlotHandler
	first   *Conn                // where it was made
	parked  atomic.Pointer[Conn] // where its last pull is

	mu     sync.Mutex
	subs   []listening
	closed bool
	claims []*Delivery
	// abandoned are the last claims that were given up.
	abandoned []*Delivery
	incoming  []*Delivery // granted, with a body still arriving
	outgoing  []*Delivery // answered, with a payload still leaving
	sending   sync.WaitGroup
}

// listening is a slot's subscription at one home.
type listening struct {
	at      *Conn
	sub     *nats.Subscription
	drained chan struct{}
}

// NewSlot subscribes a slot. It is not parked.
func (q *Queue) NewSlot(handler SlotHandler) (*Slot, error) {
	s := &Slot{queue: q, inbox: subjectSlot + "." + q.worker + "." + nuid.Next(), handler: handler}
	home := q.home.Load()
	if err := s.listen(home); err != nil {
		return nil, err
	}
	s.first = home
	return s, nil
}

// listen makes sure that the slot hears what comes to it at a home.
func (s *Slot) listen(at *Conn) error {
	if at == s.first {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("bus: slot is closed")
	}
	for _, l := range s.subs {
		if l.at == at {
			return nil
		}
	}
	sub, err := at.nc.Subscribe(s.inbox, func(m *nats.Msg) { s.receive(at, m) })
	if err != nil {
		return fmt.Errorf("bus: subscribe slot: %w", err)
	}
	l := listening{at, sub, make(chan struct{})}
	sub.SetClosedHandler(func(string) { close(l.drained) })
	s.subs = append(s.subs, l)
	at.mu.Lock()
	defer at.mu.Unlock()
	at.slots[s] = struct{}{}
	return nil
}

// Park asks for up to batch calls, for at most limit (and never longer than the bus's own bound).
// The slot is parked until that many were Delivered or it is Unparked.
func (s *Slot) Park(priority, batch int, limit time.Duration) error {
	limit = max(min(limit, pullLimit), time.Millisecond)
	var buffer [96]byte
	pull := append(buffer[:0], `{"group":"`+consumerGroup+`","priority":`...)
	pull = append(pull, byte('0'+priority))
	pull = append(pull, `,"batch":`...)
	pull = strconv.AppendInt(pull, int64(batch), 10)
	pull = append(pull, `,"expires":`...)
	pull = strconv.AppendInt(pull, int64(limit), 10)
	pull = append(pull, '}')
	home := s.queue.home.Load()
	if err := s.listen(home); err != nil {
		return err
	}
	s.parked.Store(home)
	to := s.queue.pullTo
	if home.guarded {
		to = s.queue.relay
	}
	if err := home.nc.PublishRequest(to, s.inbox, pull); err != nil {
		return fmt.Errorf("bus: park: %w", err)
	}
	return nil
}

// Claim asks the one who asked whether this call may be run here. Granted or Refused follows.
func (s *Slot) Claim(d *Delivery) error {
	d.claimedAt = time.Now()
	d.route = s.queue.mesh.route(d.from.asker, d.home)
	if err := s.listen(d.route); err != nil {
		return err
	}
	s.mu.Lock()
	s.claims = append(s.claims, d)
	s.mu.Unlock()
	buffer := bufferPool.Get().(*[]byte)
	defer bufferPool.Put(buffer)
	*buffer = appendHead((*buffer)[:0], kindClaim, d.from.token, d.ID)
	if err := d.route.nc.PublishRequest(d.asker, s.inbox, *buffer); err != nil {
		s.take(d.ID)
		return fmt.Errorf("bus: claim: %w", err)
	}
	return nil
}

// Abandon forgets claims older than age that got no word, and those that were granted and of whose body nothing has
// come for as long as a sender waits, and returns them: their asker is gone. If it is not, but slow, its grant is
// answered with a fault when it comes: the call has not run here and will not.
func (s *Slot) Abandon(age time.Duration) []*Delivery {
	s.mu.Lock()
	take := func(list *[]*Delivery, late func(*Delivery) bool) (old []*Delivery) {
		*list = slices.DeleteFunc(*list, func(d *Delivery) bool {
			if !late(d) {
				return false
			}
			old = append(old, d)
			return true
		})
		return old
	}
	claims := take(&s.claims, func(d *Delivery) bool { return time.Since(d.claimedAt) >= age })
	granted := take(&s.incoming, func(d *Delivery) bool { return time.Since(d.arrivedAt) >= answerSlack+age })
	s.abandoned = append(s.abandoned, claims...)
	s.abandoned = s.abandoned[max(0, len(s.abandoned)-maxAbandoned):]
	s.mu.Unlock()
	for _, d := range granted {
		s.giveUp(d)
	}
	return append(claims, granted...)
}

// giveUp tells the asker that a call which it has granted has not run here and will not: somebody else may run it.
func (s *Slot) giveUp(d *Delivery) {
	if err := s.Answer(d, &Answer{Fault: &Fault{Code: FaultWorkerLost, Message: "the claim was given up before all of its grant came"}}); err != nil {
		d.home.log.Warn("bus: give up a grant", "err", err)
	}
}

// Close withdraws the slot's pull, lets what is on its way arrive (Delivered may still be called),
// waits for that and for answers that are being sent, and ends the subscription.
func (s *Slot) Close() error {
	s.mu.Lock()
	s.closed = true
	subs := s.subs
	s.mu.Unlock()
	var failed error
	for _, l := range subs {
		l.at.mu.Lock()
		delete(l.at.slots, s)
		l.at.mu.Unlock()
		if !l.at.up.Load() {
			_ = l.sub.Unsubscribe() // what was on its way is lost with its home
			continue
		}
		if err := l.sub.Drain(); err != nil && !errors.Is(err, nats.ErrBadSubscription) && !errors.Is(err, nats.ErrConnectionClosed) {
			failed = fmt.Errorf("bus: drain slot: %w", err)
		}
	}
	late := time.NewTimer(pullLimit)
	defer late.Stop()
	for _, l := range subs {
		select {
		case <-l.drained:
		case <-late.C:
			return errors.Join(failed, errors.New("bus: slot did not drain"))
		}
	}
	s.sending.Wait()
	return failed
}

func (s *Slot) take(id CallID) *Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, d := range s.claims {
		if d.ID == id {
			s.claims = slices.Delete(s.claims, i, i+1)
			return d
		}
	}
	return nil
}

func (s *Slot) receive(at *Conn, m *nats.Msg) {
	if m.Subject != s.inbox {
		s.delivered(at, m)
		return
	}
	if len(m.Header) > 0 {
		if at != s.parked.Load() {
			return // of a pull that does not count any more
		}
		// A status of the pull: 408 its limit passed, 404/409 it was refused, 503 nobody is there.
		status := m.Header.Get("Status")
		gone := status == statusGone || status == "409" && strings.Contains(m.Header.Get("Description"), "Deleted")
		s.handler.Unparked(gone)
		return
	}
	kind, _, id, rest, err := parseHead(m.Data)
	if err != nil {
		at.log.Warn("bus: slot got a malformed message", "err", err)
		return
	}
	switch kind {
	case kindGrant:
		s.granted(m, id, rest)
	case kindRefuse:
		if d := s.take(id); d != nil {
			d.settle()
			s.handler.Refused(d)
		}
	case kindChunk:
		s.chunk(at, m, id, rest)
	case kindCredit:
		s.credit(id)
	}
}

func (s *Slot) delivered(at *Conn, m *nats.Msg) {
	d := &Delivery{home: at, mesh: s.queue.mesh, ack: at.ackTo(s.queue.worker, m.Reply), DeliveredAt: time.Now()}
	var err error
	if d.Call, d.from, d.deferred, err = parseCall(m.Data); err != nil {
		// Nobody can run it and nobody can be told: it is not one of ours.
		at.log.Warn("bus: dropped a malformed call", "queue", s.queue.ID, "err", err)
		d.settle()
		s.handler.Unparked(false)
		return
	}
	d.asker = subjectAsker + "." + d.from.asker + "." + s.queue.worker
	s.handler.Delivered(d)
}

func (s *Slot) granted(m *nats.Msg, id CallID, rest []byte) {
	d := s.take(id)
	if d == nil {
		s.grantedLate(id)
		return
	}
	r := reader{b: rest}
	d.Left, d.GrantedAt = time.Duration(r.uint64()), time.Now()
	d.Waited = r.duration()
	d.begin = r.duration()
	total := int64(r.uint64())
	if r.failed || total > maxBody || total < 0 {
		d.home.log.Warn("bus: malformed grant")
		return
	}
	d.settle()
	if total > 0 {
		d.Body, d.total, d.arrivedAt = make([]byte, 0, total), total, d.GrantedAt
		s.mu.Lock()
		s.incoming = append(s.incoming, d)
		s.mu.Unlock()
		return
	}
	if d.deferred {
		d.Body = r.b
	}
	d.Claim = d.GrantedAt.Sub(d.claimedAt)
	s.handler.Granted(d)
}

// grantedLate is of a claim that was given up before.
func (s *Slot) grantedLate(id CallID) {
	s.mu.Lock()
	i := slices.IndexFunc(s.abandoned, func(d *Delivery) bool { return d.ID == id })
	if i < 0 {
		s.mu.Unlock()
		return
	}
	d := s.abandoned[i]
	s.abandoned = slices.Delete(s.abandoned, i, i+1)
	s.mu.Unlock()
	d.settle()
	s.giveUp(d)
}

func (s *Slot) chunk(at *Conn, m *nats.Msg, id CallID, piece []byte) {
	s.mu.Lock()
	var d *Delivery
	for i, candidate := range s.incoming {
		if candidate.ID != id || int64(len(candidate.Body)+len(piece)) > candidate.total {
			continue
		}
		d = candidate
		d.Body, d.arrivedAt = append(d.Body, piece...), time.Now()
		if int64(len(d.Body)) == d.total {
			s.incoming = slices.Delete(s.incoming, i, i+1)
		}
		break
	}
	s.mu.Unlock()
	if d == nil {
		return
	}
	if err := at.nc.Publish(d.asker, appendHead(nil, kindCredit, d.from.token, id)); err != nil {
		at.log.Warn("bus: credit", "err", err)
	}
	if int64(len(d.Body)) == d.total {
		d.Claim = time.Since(d.claimedAt)
		s.handler.Granted(d)
	}
}

// Answer sends what came of a granted call. The payload may be reused when it returns, unless it
// is larger than a message: then it is sent by a goroutine that Close waits for, and must stay.
func (s *Slot) Answer(d *Delivery, a *Answer) error {
	a.Worker = s.queue.worker
	chunked := len(a.Payload) > inlineBytes
	route := s.queue.mesh.detour(d.route)
	buffer := bufferPool.Get().(*[]byte)
	message := appendAnswer((*buffer)[:0], d.from.token, d.ID, a, chunked)
	err := route.nc.Publish(d.asker, message)
	if cap(message) <= inlineBytes {
		*buffer = message
		bufferPool.Put(buffer)
	}
	if err != nil {
		return fmt.Errorf("bus: answer: %w", err)
	}
	if !chunked {
		return nil
	}
	if err := s.listen(route); err != nil {
		return err
	}
	d.credits = make(chan struct{}, transferWindow)
	s.mu.Lock()
	s.outgoing = append(s.outgoing, d)
	s.mu.Unlock()
	s.sending.Go(func() {
		defer s.sent(d)
		err := sendChunks(a.Payload, d.credits, answerSlack, func(piece []byte) error {
			return route.nc.PublishRequest(d.asker, s.inbox, append(appendHead(nil, kindChunk, d.from.token, d.ID), piece...))
		})
		if err != nil {
			route.log.Warn("bus: sending an answer failed", "err", err)
		}
	})
	return nil
}

func (s *Slot) sent(d *Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outgoing = slices.DeleteFunc(s.outgoing, func(other *Delivery) bool { return other == d })
}

func (s *Slot) credit(id CallID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.outgoing {
		if d.ID == id {
			select {
			case d.credits <- struct{}{}:
			default:
			}
		}
	}
}

// Delivery is one call in a worker's hands.
type Delivery struct {
	Call
	// Left is how long the handler may run; set when granted.
	Left time.Duration
	// DeliveredAt is when it came to this worker, GrantedAt when its grant did.
	DeliveredAt, GrantedAt time.Time
	// Waited is from its publishing to its grant, by the asker's clock; Claim from when this worker
	// claimed it until it had all of it. Both are set when granted.
	Waited, Claim time.Duration

	begin     time.Duration // from the claim, for the handler to be begun; 0 for any time
	mesh      *Mesh
	home      *Conn // where it came from, and is settled
	route     *Conn // to its asker, once it is claimed
	from      address
	asker     string // its inbox for this worker
	ack       string
	deferred  bool
	claimedAt time.Time
	arrivedAt time.Time // the last piece of its body
	total     int64
	credits   chan struct{}
}

// Late says that the call, though granted, must not be begun any more.
func (d *Delivery) Late() bool { return d.begin > 0 && time.Since(d.claimedAt) >= d.begin }

var (
	ackDone     = []byte("+ACK")
	ackProgress = []byte("+WPI")
	ackReturn   = []byte("-NAK")
)

func (d *Delivery) settle() { d.acknowledge(ackDone) }

// Progress keeps an unclaimed delivery from going to another worker, for ackWait.
func (d *Delivery) Progress() { d.acknowledge(ackProgress) }

// Return gives an unclaimed delivery back to the queue, for anybody.
func (d *Delivery) Return() { d.acknowledge(ackReturn) }

func (d *Delivery) acknowledge(what []byte) {
	if !d.home.up.Load() {
		return // the queue is lost, and with it who would deliver it again
	}
	if err := d.home.nc.Publish(d.ack, what); err != nil {
		d.home.log.Warn("bus: acknowledge", "err", err)
	}
}

// Starting tells the one who asked that an instance is being started for the call.
func (d *Delivery) Starting() {
	if err := d.mesh.route(d.from.asker, d.home).nc.Publish(d.asker, appendHead(nil, kindStarting, d.from.token, d.ID)); err != nil {
		d.home.log.Warn("bus: starting", "err", err)
	}
}

// Fail answers an unclaimed delivery with a fault and settles it: no worker could do better.
func (d *Delivery) Fail(worker string, fault *Fault) {
	message := appendAnswer(nil, d.from.token, d.ID, &Answer{Worker: worker, Fault: fault}, false)
	if err := d.mesh.route(d.from.asker, d.home).nc.Publish(d.asker, message); err != nil {
		d.home.log.Warn("bus: fail", "err", err)
	}
	d.settle()
}
