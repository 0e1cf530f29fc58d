package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	verbHost      = "host"
	verbInstances = "instances"
)

// WorkerServer is what a worker answers to control nodes. Its methods run on goroutines of their
// own, several at once.
type WorkerServer interface {
	Host(ctx context.Context, request *dozev1.HostRequest) *dozev1.HostReply
	Instances(ctx context.Context, account string) []*dozev1.InstanceInfo
	Retire(request *dozev1.RetireRequest)
}

// Served is what ServeWorker and the other subscriptions of this file return: Close ends it and
// waits for the handlers that run.
type Served struct {
	subs []*nats.Subscription
}

// ServeWorker answers requests to this worker until the Served is closed. Host requests come one
// at a time: hosting is quick, and the second request for a queue must see the first.
func (c *Conn) ServeWorker(ctx context.Context, worker string, server WorkerServer) (*Served, error) {
	host, err := c.nc.Subscribe(workerSubject(worker, verbHost), func(m *nats.Msg) {
		request := &dozev1.HostRequest{}
		if err := proto.Unmarshal(m.Data, request); err != nil || request.Spec == nil {
			c.log.Warn("bus: malformed host request", "err", err)
			return
		}
		c.respond(m, server.Host(ctx, request))
	})
	if err != nil {
		return nil, fmt.Errorf("bus: serve worker: %w", err)
	}
	instances, err := c.nc.Subscribe(workerSubject(worker, verbInstances), func(m *nats.Msg) {
		request := &dozev1.ListInstancesRequest{}
		if err := proto.Unmarshal(m.Data, request); err != nil {
			c.log.Warn("bus: malformed instances request", "err", err)
			return
		}
		c.respond(m, &dozev1.ListInstancesReply{Instances: server.Instances(ctx, request.Account)})
	})
	if err != nil {
		return nil, fmt.Errorf("bus: serve worker: %w", err)
	}
	retire, err := c.nc.Subscribe(subjectRetire, func(m *nats.Msg) {
		request := &dozev1.RetireRequest{}
		if err := proto.Unmarshal(m.Data, request); err != nil {
			c.log.Warn("bus: malformed retire request", "err", err)
			return
		}
		server.Retire(request)
	})
	if err != nil {
		return nil, fmt.Errorf("bus: serve worker: %w", err)
	}
	return &Served{subs: []*nats.Subscription{host, instances, retire}}, nil
}

// Close ends the subscriptions and waits, bounded, for handlers that run.
func (s *Served) Close() error {
	for _, sub := range s.subs {
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

func (c *Conn) respond(m *nats.Msg, reply proto.Message) {
	raw, err := proto.Marshal(reply)
	if err == nil {
		err = m.Respond(raw)
	}
	if err != nil {
		c.log.Warn("bus: reply", "subject", m.Subject, "err", err)
	}
}

func (c *Conn) request(ctx context.Context, subject string, request, reply proto.Message) error {
	raw, err := proto.Marshal(request)
	if err != nil {
		return fmt.Errorf("bus: %s: %w", subject, err)
	}
	m, err := c.nc.RequestWithContext(ctx, subject, raw)
	if err != nil {
		return fmt.Errorf("bus: %s: %w", subject, err)
	}
	if err := proto.Unmarshal(m.Data, reply); err != nil {
		return fmt.Errorf("bus: %s: %w", subject, err)
	}
	return nil
}

// AskHost asks one worker to host an incarnation.
func (c *Conn) AskHost(ctx context.Context, worker string, request *dozev1.HostRequest) (*dozev1.HostReply, error) {
	reply := &dozev1.HostReply{}
	return reply, c.request(ctx, workerSubject(worker, verbHost), request, reply)
}

// Retire tells every worker what has been replaced or deleted. It is a hint, which nobody answers:
// instances of what is not called any more end by themselves, later.
func (c *Conn) Retire(request *dozev1.RetireRequest) error {
	raw, err := proto.Marshal(request)
	if err != nil {
		return fmt.Errorf("bus: retire: %w", err)
	}
	if err := c.nc.Publish(subjectRetire, raw); err != nil {
		return fmt.Errorf("bus: retire: %w", err)
	}
	return nil
}

// ListInstances asks one worker for its instances of an account.
func (c *Conn) ListInstances(ctx context.Context, worker, account string) ([]*dozev1.InstanceInfo, error) {
	reply := &dozev1.ListInstancesReply{}
	if err := c.request(ctx, workerSubject(worker, verbInstances), &dozev1.ListInstancesRequest{Account: account}, reply); err != nil {
		return nil, err
	}
	return reply.Instances, nil
}

// Report sends a worker's heartbeat to every control node.
func (c *Conn) Report(report *dozev1.WorkerReport) error {
	raw, err := proto.Marshal(report)
	if err != nil {
		return fmt.Errorf("bus: report: %w", err)
	}
	if err := c.nc.Publish(subjectReport+"."+report.Worker, raw); err != nil {
		return fmt.Errorf("bus: report: %w", err)
	}
	return nil
}

// OnReport hands every heartbeat to fn, one at a time, until the Served is closed.
func (c *Conn) OnReport(fn func(*dozev1.WorkerReport)) (*Served, error) {
	sub, err := c.nc.Subscribe(subjectReport+".*", func(m *nats.Msg) {
		report := &dozev1.WorkerReport{}
		if err := proto.Unmarshal(m.Data, report); err != nil {
			c.log.Warn("bus: malformed report", "err", err)
			return
		}
		fn(report)
	})
	if err != nil {
		return nil, fmt.Errorf("bus: reports: %w", err)
	}
	return &Served{subs: []*nats.Subscription{sub}}, nil
}
