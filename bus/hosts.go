package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	verbHost      = "host"
	verbInstances = "instances"
	verbPing      = "ping"
	verbDrain     = "drain"
	verbStop      = "stop"
)

// WorkerServer is what a worker answers to control nodes. Its methods run on goroutines of their
// own, several at once.
type WorkerServer interface {
	// Host is asked by the home that holds the calls.
	Host(ctx context.Context, home string, request *dozev1.HostRequest) *dozev1.HostReply
	Instances(ctx context.Context, account string) []*dozev1.InstanceInfo
	Retire(request *dozev1.RetireRequest)
	// Drain is told to take nothing new; it does not wait until what runs has ended.
	Drain()
	// Stop is told that an operator has removed the worker.
	Stop()
}

// Served is what ServeWorker and the other subscriptions of this file return: Close ends it and
// waits for the handlers that run.
type Served struct {
	service *service
}

// ServeWorker answers requests to this worker until the Served is closed. A home's requests to host
// come one at a time: hosting is quick, and the second request for a queue must see the first.
func (m *Mesh) ServeWorker(ctx context.Context, worker string, server WorkerServer) (*Served, error) {
	return m.serve(func(c *Conn) ([]*nats.Subscription, error) {
		return c.subscribe(map[string]nats.MsgHandler{
			workerSubject(worker, verbHost): func(m *nats.Msg) {
				request := &dozev1.HostRequest{}
				if err := proto.Unmarshal(m.Data, request); err != nil || request.Spec == nil {
					c.log.Warn("bus: malformed host request", "err", err)
					return
				}
				c.respond(m, server.Host(ctx, c.node, request))
			},
			workerSubject(worker, verbInstances): func(m *nats.Msg) {
				request := &dozev1.ListInstancesRequest{}
				if err := proto.Unmarshal(m.Data, request); err != nil {
					c.log.Warn("bus: malformed instances request", "err", err)
					return
				}
				c.respond(m, &dozev1.ListInstancesReply{Instances: server.Instances(ctx, request.Account)})
			},
			workerSubject(worker, verbPing):  c.heard,
			workerSubject(worker, verbDrain): func(m *nats.Msg) { server.Drain(); c.heard(m) },
			workerSubject(worker, verbStop):  func(m *nats.Msg) { server.Stop(); c.heard(m) },
			subjectRetire: func(m *nats.Msg) {
				request := &dozev1.RetireRequest{}
				if err := proto.Unmarshal(m.Data, request); err != nil {
					c.log.Warn("bus: malformed retire request", "err", err)
					return
				}
				server.Retire(request)
			},
		})
	})
}

// subscribe subscribes each handler to its subject, or none.
func (c *Conn) subscribe(handlers map[string]nats.MsgHandler) ([]*nats.Subscription, error) {
	var subs []*nats.Subscription
	for subject, handler := range handlers {
		sub, err := c.nc.Subscribe(subject, handler)
		if err != nil {
			for _, sub := range subs {
				_ = sub.Unsubscribe() // err says why
			}
			return nil, err
		}
		subs = append(subs, sub)
	}
	return subs, nil
}

// listen hands what comes on a subject, at any home, to fn: from each home one at a time.
func (m *Mesh) listen(subject string, fn func(*Conn, *nats.Msg)) (*Served, error) {
	return m.serve(func(c *Conn) ([]*nats.Subscription, error) {
		return c.subscribe(map[string]nats.MsgHandler{subject: func(m *nats.Msg) { fn(c, m) }})
	})
}

// Close ends the subscriptions and waits, bounded, for handlers that run.
func (s *Served) Close() error {
	for _, sub := range s.service.end() {
		closed := make(chan struct{})
		sub.SetClosedHandler(func(string) { close(closed) })
		if err := sub.Drain(); err != nil {
			return fmt.Errorf("bus: end subscription: %w", err)
		}
		select {
		case <-closed:
		case <-time.After(5 * time.Second):
			return fmt.Errorf("bus: %s did not end", sub.Subject)
		}
	}
	return nil
}

// heard answers that a message has come.
func (c *Conn) heard(m *nats.Msg) {
	if err := m.Respond(nil); err != nil {
		c.log.Warn("bus: reply", "subject", m.Subject, "err", err)
	}
}

func (c *Conn) respond(m *nats.Msg, reply proto.Message) {
	raw, err := proto.Marshal(reply)
	if err == nil {
		err = m.Respond(raw)
	}
	if err != nil {
		c.log.Warn("bus: reply", "subject", m.Subject, "err", err)
	}
}

// request asks a worker.
func (c *Conn) request(ctx context.Context, worker, verb string, request, reply proto.Message) error {
	subject := workerSubject(worker, verb)
	raw, err := proto.Marshal(request)
	if err != nil {
		return fmt.Errorf("bus: %s: %w", subject, err)
	}
	m, err := c.ask(ctx, worker, subject, raw)
	if err != nil {
		return fmt.Errorf("bus: %s: %w", subject, err)
	}
	if err := proto.Unmarshal(m.Data, reply); err != nil {
		return fmt.Errorf("bus: %s: %w", subject, err)
	}
	return nil
}

// ask is a request whose answer comes to a subject that only this worker may answer on: a connection's
// inbox for all answers is nobody's who is asked.
func (c *Conn) ask(ctx context.Context, worker, subject string, request []byte) (*nats.Msg, error) {
	reply := subjectReply + "." + worker + "." + nuid.Next()
	answers := make(chan *nats.Msg, 1) // SubscribeSync's would have room for 65,536
	sub, err := c.nc.ChanSubscribe(reply, answers)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only when the connection is closed, which ends it too
	if err := c.nc.PublishRequest(subject, reply, request); err != nil {
		return nil, err
	}
	select {
	case m := <-answers:
		if len(m.Data) == 0 && m.Header.Get("Status") == statusGone {
			return nil, nats.ErrNoResponders
		}
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// AskHost asks one worker to host an incarnation whose calls wait at this process's own home.
func (m *Mesh) AskHost(ctx context.Context, worker string, request *dozev1.HostRequest) (*dozev1.HostReply, error) {
	reply := &dozev1.HostReply{}
	return reply, m.own.request(ctx, worker, verbHost, request, reply)
}

// AskDrain tells one worker to take nothing new, and returns when it has heard that.
func (m *Mesh) AskDrain(ctx context.Context, worker string) error {
	return m.tellWorker(ctx, worker, verbDrain)
}

// AskStop tells one worker to drain and end, and returns when it has heard that.
func (m *Mesh) AskStop(ctx context.Context, worker string) error {
	return m.tellWorker(ctx, worker, verbStop)
}

func (m *Mesh) tellWorker(ctx context.Context, worker, verb string) error {
	subject := workerSubject(worker, verb)
	if _, err := m.own.ask(ctx, worker, subject, nil); err != nil {
		return fmt.Errorf("bus: %s: %w", subject, err)
	}
	return nil
}

// Retire tells every worker what has been replaced or deleted. It is a hint, which nobody answers:
// instances of what is not called any more end by themselves, later.
func (m *Mesh) Retire(request *dozev1.RetireRequest) error {
	raw, err := proto.Marshal(request)
	if err == nil {
		err = m.atHome(subjectRetire, raw)
	}
	if err != nil {
		return fmt.Errorf("bus: retire: %w", err)
	}
	return nil
}

// ListInstances asks one worker for its instances of an account.
func (m *Mesh) ListInstances(ctx context.Context, worker, account string) ([]*dozev1.InstanceInfo, error) {
	reply := &dozev1.ListInstancesReply{}
	if err := m.own.request(ctx, worker, verbInstances, &dozev1.ListInstancesRequest{Account: account}, reply); err != nil {
		return nil, err
	}
	return reply.Instances, nil
}

// Report sends a worker's heartbeat to every control node.
func (m *Mesh) Report(report *dozev1.WorkerReport) error {
	raw, err := proto.Marshal(report)
	if err == nil {
		err = m.tell(subjectReport+"."+report.Worker, raw)
	}
	if err != nil {
		return fmt.Errorf("bus: report: %w", err)
	}
	return nil
}

// OnReport hands every heartbeat that comes to this process's own home to fn, one at a time, until the
// Served is closed.
func (m *Mesh) OnReport(fn func(*dozev1.WorkerReport)) (*Served, error) {
	return m.listenAtHome(subjectReport+".*", func(c *Conn, msg *nats.Msg) {
		report := &dozev1.WorkerReport{}
		if err := proto.Unmarshal(msg.Data, report); err != nil {
			c.log.Warn("bus: malformed report", "err", err)
			return
		}
		if msg.Subject != subjectReport+"."+report.Worker {
			c.log.Warn("bus: a worker reports as another", "subject", msg.Subject, "worker", report.Worker)
			return
		}
		fn(report)
	})
}

// listenAtHome is listen at the process's own home only.
func (m *Mesh) listenAtHome(subject string, fn func(*Conn, *nats.Msg)) (*Served, error) {
	return m.serve(func(c *Conn) ([]*nats.Subscription, error) {
		if c != m.own {
			return nil, nil
		}
		return c.subscribe(map[string]nats.MsgHandler{subject: func(m *nats.Msg) { fn(c, m) }})
	})
}
