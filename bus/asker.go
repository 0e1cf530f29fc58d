package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// deferBytes is the size from which a body stays with the asker until the call is claimed, so
	// that queues stay small.
	deferBytes = 128 << 10
	// wakeAfter is how long a call may be unclaimed before its asker asks again for somebody to
	// host its queue, and how often it repeats that.
	wakeAfter = 10 * time.Millisecond
	// answerSlack is how much longer than the handler's own limit an asker waits for the answer:
	// the worker ends the handler, and tells so, within that.
	answerSlack = time.Second
)

// Waker is told of queues of this process's own home in which calls wait that nobody claims. It must
// not block. The tag is what Ask was given.
type Waker interface {
	Wake(queue QueueID, tag any)
}

// Specer is what the tag of a call is whose home may be another process: it tells what to host.
type Specer interface {
	Spec() *dozev1.FunctionSpec
}

// AskLimits bounds one call.
type AskLimits struct {
	// Queue is how long the call may wait to be claimed.
	Queue time.Duration
	// Start is how long it may wait from the moment a worker says that it starts an instance for it.
	Start time.Duration
	// Run is the handler's own limit: what the grant gives.
	Run time.Duration
	// Permit, where there is one, is asked for its word before the call is granted, and the handler is then
	// begun within BeginLimit of the claim or not at all.
	Permit Permit
}

// Permit is a right to run that may pass while a call waits. MayBegin must not block.
type Permit interface{ MayBegin() bool }

// BeginLimit is how long after a worker's claim it may begin the handler of a call with a Permit: a worker
// that was frozen with the grant on its way runs nothing that others are counted without.
const BeginLimit = 2 * time.Second

// Asker publishes calls and grants each to one worker. It owns one long-lived inbox, at every home: a
// subscription per call could lose its first message in a cluster. A call lives in its memory
// only: when the process dies nobody grants what it asked, so nothing of it runs.
type Asker struct {
	mesh   *Mesh
	id     string
	inbox  string
	waker  Waker
	served *Served
	probes probes

	mu      sync.Mutex
	pending map[uint64]*pending
	token   uint64
	queued  [callShards]int64 // bytes published and not granted, by shard
	bound   int64             // of each
	sweep   *time.Timer
	sweeps  bool
	hinted  map[QueueID]time.Time // when another home was last told of a queue
	closed  bool
	sending sync.WaitGroup
}

type askState uint8

const (
	waiting askState = iota // published, nobody claimed it
	granted                 // one worker runs it
)

type pending struct {
	id        CallID
	call      *Call // its caller's, until Ask returns
	queue     QueueID
	home      *Conn // whose queue it is in
	tag       any
	size      int64
	state     askState
	limits    AskLimits
	published time.Time
	granted   time.Time
	nextWake  time.Time
	worker    string
	deferred  []byte
	// deadline in Unix nanoseconds of the asker's own clock; the dispatcher moves it.
	deadline atomic.Int64
	done     chan *Answer
	// A large answer comes in pieces; a large body leaves in pieces, one a credit.
	answer  *Answer
	total   int64
	credits chan struct{}
}

// NewAsker subscribes the asker's inbox. queueBytes is what EnsureCallPlane was given: the broker
// does not acknowledge calls, because that would be one more message for each; the asker counts
// itself what it has in the queues, and the broker's own bound is the last one.
func (m *Mesh) NewAsker(waker Waker, queueBytes int64) (*Asker, error) {
	id := m.own.node + "." + nuid.Next()
	a := &Asker{
		mesh: m, id: id, inbox: subjectAsker + "." + id, waker: waker, pending: map[uint64]*pending{},
		bound: queueBytes / callShards / 10 * 9, hinted: map[QueueID]time.Time{}, probes: probes{workers: map[string]*probe{}},
	}
	a.sweep = time.AfterFunc(time.Hour, a.wakeUnclaimed)
	a.sweep.Stop()
	var err error
	a.served, err = m.serve(func(c *Conn) ([]*nats.Subscription, error) {
		subs, err := c.subscribe(map[string]nats.MsgHandler{
			a.inbox + ".*":      func(msg *nats.Msg) { a.receive(c, msg) },
			a.probeSubject("*"): a.probed,
		})
		for _, sub := range subs {
			err = errors.Join(err, sub.SetPendingLimits(-1, maxPending))
		}
		return subs, err
	})
	if err != nil {
		return nil, fmt.Errorf("bus: subscribe asker: %w", err)
	}
	m.onDown(a.homeLost)
	return a, nil
}

// Close ends the inbox. Calls that are still waiting get FaultWorkerLost at their deadline; the
// caller lets them end first.
func (a *Asker) Close() error {
	a.mu.Lock()
	a.closed = true
	a.sweep.Stop()
	a.mu.Unlock()
	a.sending.Wait()
	for _, sub := range a.served.service.end() {
		if err := sub.Unsubscribe(); err != nil {
			return fmt.Errorf("bus: close asker: %w", err)
		}
	}
	return nil
}

// InFlight is how many calls wait or run.
func (a *Asker) InFlight() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pending)
}

// Load is what an asker has out: calls that wait for a worker, with the bytes that they have in the queues,
// and calls that run.
type Load struct {
	Waiting, Running int
	QueuedBytes      int64
}

// Load counts the calls.
func (a *Asker) Load() (load Load) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pending {
		if p.state == waiting {
			load.Waiting++
		} else {
			load.Running++
		}
	}
	for _, bytes := range a.queued {
		load.QueuedBytes += bytes
	}
	return load
}

// Ask publishes the call and waits for its answer; it always returns one, within the limits. It
// does not end with the caller's context: a call that runs is accounted for whoever listens. tag
// is handed to the Waker.
func (a *Asker) Ask(queue QueueID, call *Call, limits AskLimits, tag any) *Answer {
	now := time.Now()
	p := &pending{
		id: call.ID, call: call, queue: queue, tag: tag, limits: limits, published: now, nextWake: now.Add(wakeAfter),
		done: make(chan *Answer, 1), total: -1,
	}
	home := a.mesh.home(queue)
	if home == nil {
		return &Answer{Fault: &Fault{Code: FaultBroker, Message: "no control node can be reached"}}
	}
	p.home = home
	p.deadline.Store(now.Add(limits.Queue).UnixNano())
	if len(call.Body) > deferBytes {
		p.deferred = call.Body
	}
	p.size = callOverhead + int64(len(call.InvokedARN)+len(call.TraceID)+len(call.ClientContext))
	if p.deferred == nil {
		p.size += int64(len(call.Body))
	}
	token, ok := a.register(p)
	if !ok {
		return &Answer{Fault: &Fault{Code: FaultQueueFull, Message: "the call queue is full"}}
	}

	if err := a.publishCall(home, token, p); err != nil && home != a.mesh.own && !home.up.Load() {
		a.republish(home) // it has just gone
	} else if err != nil {
		a.forget(token)
		return &Answer{Fault: &Fault{Code: FaultBroker, Message: fmt.Sprintf("publish call: %v", err)}}
	}

	timer := time.NewTimer(limits.Queue)
	defer timer.Stop()
	for {
		select {
		case answer := <-p.done:
			return answer
		case <-timer.C:
			if left := time.Until(time.Unix(0, p.deadline.Load())); left > 0 {
				timer.Reset(left)
				continue
			}
			if answer := a.giveUp(token, p); answer != nil {
				return answer
			}
			// The grant came in the same instant and moved the deadline.
			timer.Reset(time.Millisecond)
		}
	}
}

// publishCall puts a call into its queue.
func (a *Asker) publishCall(home *Conn, token uint64, p *pending) error {
	buffer := bufferPool.Get().(*[]byte)
	defer bufferPool.Put(buffer)
	*buffer = appendCall((*buffer)[:0], address{a.id, token}, p.call, p.deferred != nil)
	return home.nc.Publish(p.queue.subject(), *buffer)
}

// Republish puts every call that nobody has claimed into its queue once more: after the queues of this
// process's home have been lost. A call that was not lost and now comes twice is granted once.
func (a *Asker) Republish() { a.republish(a.mesh.own) }

// homeLost moves the calls that wait at a home that is away to where their queues are at home now.
// Those that run are not touched: their workers answer by another way.
func (a *Asker) homeLost(home *Conn) {
	if home != a.mesh.own {
		a.republish(home)
	}
}

func (a *Asker) republish(from *Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for token, p := range a.pending {
		if p.state != waiting || p.home != from {
			continue
		}
		if to := a.mesh.home(p.queue); to != nil {
			p.home, p.nextWake = to, time.Time{}
		}
		if err := a.publishCall(p.home, token, p); err != nil {
			from.log.Warn("bus: publish a call again", "err", err)
		}
	}
}

var bufferPool = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

// callOverhead is what a queued call takes beside its variable parts: envelope, subject and the
// broker's own bookkeeping.
const callOverhead = 128

func (a *Asker) register(p *pending) (token uint64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if queued := &a.queued[p.queue.shard()]; *queued+p.size > a.bound {
		return 0, false
	} else {
		*queued += p.size
	}
	a.token++
	a.pending[a.token] = p
	if !a.sweeps && !a.closed {
		a.sweeps = true
		a.sweep.Reset(wakeAfter)
	}
	return a.token, true
}

func (a *Asker) forget(token uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.remove(token)
}

// remove ends a call's stay here. a.mu is held.
func (a *Asker) remove(token uint64) {
	if p := a.pending[token]; p != nil {
		a.unqueue(p)
		delete(a.pending, token)
	}
}

// unqueue notes that a call is in its queue no more. a.mu is held.
func (a *Asker) unqueue(p *pending) {
	a.queued[p.queue.shard()] -= p.size
	p.size = 0
}

// giveUp ends a call whose deadline has passed, or says nil when it has just been moved.
func (a *Asker) giveUp(token uint64, p *pending) *Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Now().UnixNano() < p.deadline.Load() {
		return nil
	}
	select {
	case answer := <-p.done:
		return answer
	default:
	}
	a.remove(token)
	if p.state == waiting {
		return &Answer{Fault: &Fault{Code: FaultNoCapacity, Message: "no instance took the call in time"}}
	}
	return &Answer{Worker: p.worker, Fault: &Fault{Code: FaultWorkerLost, Message: "the worker that ran the call did not answer in time", Ran: true}}
}

// receive handles every message to the asker, on the subscription's one goroutine.
func (a *Asker) receive(at *Conn, m *nats.Msg) {
	kind, token, id, rest, err := parseHead(m.Data)
	if err != nil {
		at.log.Warn("bus: asker got a malformed message", "err", err)
		return
	}
	worker := m.Subject[len(a.inbox)+1:]
	switch kind {
	case kindClaim:
		a.claimed(at, m, token, id, worker)
	case kindStarting:
		a.starting(token, id)
	case kindAnswer:
		a.answered(at, token, id, worker, rest)
	case kindChunk:
		a.chunk(at, m, token, id, worker, rest)
	case kindCredit:
		if p := a.find(token, id); p != nil && p.worker == worker && p.credits != nil {
			select {
			case p.credits <- struct{}{}:
			default:
			}
		}
	}
}

func (a *Asker) find(token uint64, id CallID) *pending {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.pending[token]; p != nil && p.id == id {
		return p
	}
	return nil
}

// claimed grants a call once. Whoever claims it again, or too late, is refused.
func (a *Asker) claimed(at *Conn, m *nats.Msg, token uint64, id CallID, worker string) {
	if !ofSlot(m.Reply, worker) {
		return
	}
	now := time.Now()
	a.mu.Lock()
	p := a.pending[token]
	ok := p != nil && p.id == id && p.state == waiting && now.UnixNano() < p.deadline.Load()
	var begin time.Duration
	if ok && p.limits.Permit != nil {
		begin = BeginLimit
		if ok = p.limits.Permit.MayBegin(); !ok {
			a.remove(token)
			p.done <- &Answer{Fault: &Fault{Code: FaultNoCapacity, Message: "the right to run the call has passed"}}
		}
	}
	if ok {
		p.state, p.worker, p.granted = granted, worker, now
		a.unqueue(p)
		p.deadline.Store(now.Add(p.limits.Run + answerSlack).UnixNano())
	}
	a.mu.Unlock()

	buffer := bufferPool.Get().(*[]byte)
	defer bufferPool.Put(buffer)
	if !ok {
		*buffer = appendHead((*buffer)[:0], kindRefuse, token, id)
		a.publish(at, m.Reply, *buffer)
		return
	}
	reply := appendHead((*buffer)[:0], kindGrant, token, id)
	reply = binary.BigEndian.AppendUint64(reply, uint64(p.limits.Run))
	reply = appendDuration(reply, now.Sub(p.published))
	reply = appendDuration(reply, begin)
	switch {
	case len(p.deferred) > inlineBytes:
		reply = binary.BigEndian.AppendUint64(reply, uint64(len(p.deferred)))
		p.credits = make(chan struct{}, transferWindow)
		a.publish(at, m.Reply, reply)
		to := m.Reply
		a.sending.Go(func() { a.send(at, p, token, to) })
	default:
		reply = binary.BigEndian.AppendUint64(reply, 0)
		reply = append(reply, p.deferred...)
		a.publish(at, m.Reply, reply)
	}
	*buffer = reply
}

// send gives a large body to the slot that was granted the call. It ends with the call: at the
// latest at its deadline.
func (a *Asker) send(at *Conn, p *pending, token uint64, to string) {
	err := sendChunks(p.deferred, p.credits, time.Until(time.Unix(0, p.deadline.Load())), func(piece []byte) error {
		return at.nc.PublishRequest(to, a.inbox, append(appendHead(nil, kindChunk, token, p.id), piece...))
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		at.log.Warn("bus: sending a body failed", "err", err)
	}
}

// ofSlot tells whether a subject is that of a slot of the worker: this process may write to any, and must
// not be made to by somebody who may not.
func ofSlot(subject, worker string) bool {
	rest, ok := strings.CutPrefix(subject, subjectSlot+".")
	return ok && strings.HasPrefix(rest, worker) && len(rest) > len(worker) && rest[len(worker)] == '.'
}

func (a *Asker) starting(token uint64, id CallID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.pending[token]; p != nil && p.id == id && p.state == waiting {
		p.deadline.Store(time.Now().Add(p.limits.Start).UnixNano())
	}
}

// answered takes an answer from the worker that was granted the call, or a refusal to run it from one
// that was handed it.
func (a *Asker) answered(at *Conn, token uint64, id CallID, worker string, rest []byte) {
	answer, total, err := parseAnswer(rest)
	if err != nil {
		at.log.Warn("bus: asker got a malformed answer", "err", err)
		return
	}
	a.mu.Lock()
	p := a.pending[token]
	if p == nil || p.id != id || p.state == granted && p.worker != worker {
		a.mu.Unlock()
		return
	}
	if total >= 0 {
		answer.Payload = make([]byte, 0, total)
		p.answer, p.total = answer, total
		a.mu.Unlock()
		return
	}
	a.remove(token)
	a.mu.Unlock()
	p.done <- answer
}

func (a *Asker) chunk(at *Conn, m *nats.Msg, token uint64, id CallID, worker string, piece []byte) {
	a.mu.Lock()
	p := a.pending[token]
	if p == nil || p.id != id || p.worker != worker || p.answer == nil || int64(len(p.answer.Payload)+len(piece)) > p.total {
		a.mu.Unlock()
		return
	}
	p.answer.Payload = append(p.answer.Payload, piece...)
	whole := int64(len(p.answer.Payload)) == p.total
	if whole {
		a.remove(token)
	}
	a.mu.Unlock()
	if ofSlot(m.Reply, worker) {
		a.publish(at, m.Reply, appendHead(nil, kindCredit, token, id))
	}
	if whole {
		p.done <- p.answer
	}
}

func (a *Asker) publish(at *Conn, subject string, message []byte) {
	if subject == "" {
		return
	}
	if err := at.nc.Publish(subject, message); err != nil {
		at.log.Warn("bus: asker could not publish", "err", err)
	}
}

// wakeUnclaimed reminds the waker of every queue in which a call of this asker has waited for
// wakeAfter. The asker owns the call, so that nobody has to search the queues for it.
func (a *Asker) wakeUnclaimed() {
	type wake struct {
		home  *Conn
		queue QueueID
		tag   any
	}
	var wakes []wake
	var away *Conn
	now := time.Now()
	a.mu.Lock()
	for _, p := range a.pending {
		if p.state == waiting && !now.Before(p.nextWake) {
			if p.home != a.mesh.own && !p.home.up.Load() {
				away = p.home // it went before the call came there, or there was no other
			}
			p.nextWake = now.Add(wakeAfter)
			wakes = append(wakes, wake{p.home, p.queue, p.tag})
		}
	}
	a.sweeps = len(a.pending) > 0 && !a.closed
	if a.sweeps {
		a.sweep.Reset(wakeAfter)
	}
	a.mu.Unlock()
	if away != nil {
		a.republish(away)
	}
	seen := map[QueueID]bool{}
	for _, w := range wakes {
		if !seen[w.queue] {
			seen[w.queue] = true
			a.wake(w.home, w.queue, w.tag)
		}
	}
	a.watchWorkers(now)
}

// Wake tells the home of a queue that calls may be waiting there.
func (a *Asker) Wake(queue QueueID, tag any) {
	if home := a.mesh.home(queue); home != nil {
		a.wake(home, queue, tag)
	}
}

// wake tells a home, the own one directly; another is not told of the same queue again within wakeAfter.
func (a *Asker) wake(home *Conn, queue QueueID, tag any) {
	if home == a.mesh.own {
		a.waker.Wake(queue, tag)
		return
	}
	specer, ok := tag.(Specer)
	if !ok {
		return
	}
	now := time.Now()
	a.mu.Lock()
	again := now.Sub(a.hinted[queue]) < wakeAfter
	if !again {
		if len(a.hinted) >= maxHinted {
			clear(a.hinted)
		}
		a.hinted[queue] = now
	}
	a.mu.Unlock()
	if again || !home.up.Load() {
		return
	}
	raw, err := proto.Marshal(&dozev1.HostRequest{Spec: specer.Spec()})
	if err == nil {
		err = home.nc.Publish(subjectHint, raw)
	}
	if err != nil {
		home.log.Warn("bus: hint", "node", home.node, "err", err)
	}
}

// maxHinted bounds how many queues are remembered of which other homes were told.
const maxHinted = 4096

// OnHint hands what other processes tell this home, that calls wait in a queue of its, to fn, one at a
// time, until the Served is closed.
func (m *Mesh) OnHint(fn func(queue QueueID, spec *dozev1.FunctionSpec)) (*Served, error) {
	return m.listenAtHome(subjectHint, func(c *Conn, msg *nats.Msg) {
		hint := &dozev1.HostRequest{}
		if err := proto.Unmarshal(msg.Data, hint); err != nil || hint.Spec == nil {
			c.log.Warn("bus: malformed hint", "err", err)
			return
		}
		s := hint.Spec
		fn(NewQueueID(s.Account, s.Function, s.Version, s.Revision), s)
	})
}
