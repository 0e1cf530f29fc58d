package bus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// queueAge is how long a call may stay in a queue. Its asker has given up long before, so what
	// is that old is refuse.
	queueAge = 2 * time.Minute
	// ackWait is after what time a delivered call whose holder shows no progress goes to another
	// one. JetStream's default is 30 s.
	ackWait = 900 * time.Millisecond
	// ProgressInterval is how often the holder of an unclaimed delivery tells that it still has it.
	ProgressInterval = ackWait / 3
	// maxWaiting is how many pulls may be parked on one queue: each idle instance has one.
	maxWaiting = 16_384
	// maxHeld is how many deliveries of one queue may be unsettled.
	maxHeld = 16_384
	// consumerIdle is after what time without a pull a queue's consumer goes away: the function
	// sleeps and owns nothing in the broker.
	consumerIdle = 30 * time.Second
	// queueLimit bounds making a queue's consumer.
	queueLimit = 5 * time.Second
	// pullLimit is how long one pull stays parked, so that what a dead worker parked does not
	// swallow calls for longer.
	pullLimit = 10 * time.Second
)

// EnsureCallPlane makes the home's call streams, bounded to memoryBytes in all, and has the home make queues
// in them for workers that ask. It is idempotent.
func (c *Conn) EnsureCallPlane(ctx context.Context, memoryBytes int64) error {
	for shard := range callShards {
		_, err := c.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
			Name:       callStream(shard),
			Subjects:   []string{fmt.Sprintf("%s.%d.*", subjectCall, shard)},
			Retention:  jetstream.WorkQueuePolicy,
			Storage:    jetstream.MemoryStorage,
			Discard:    jetstream.DiscardNew,
			MaxBytes:   memoryBytes / callShards,
			MaxAge:     queueAge,
			Replicas:   1,
			MaxMsgSize: maxPayload,
			NoAck:      true, // see NewAsker
		})
		if err != nil {
			return fmt.Errorf("bus: call stream %d: %w", shard, err)
		}
	}
	return c.serveQueues()
}

// Queue is a worker's view of one incarnation's call queue, wherever its home is: the control nodes
// agree on that but for moments, and while they do not, calls come from several.
type Queue struct {
	ID     QueueID
	mesh   *Mesh
	worker string
	pullTo string               // as JetStream knows it
	relay  string               // as a home does, where workers show certificates
	home   atomic.Pointer[Conn] // where pulls are parked now
}

// OpenQueue makes sure that the queue has its consumer at the given home and returns the worker's view
// of it.
func (m *Mesh) OpenQueue(ctx context.Context, home, worker string, id QueueID) (*Queue, error) {
	q := &Queue{ID: id, mesh: m, worker: worker, pullTo: id.pullTo(), relay: subjectPull + "." + worker + "." + string(id)}
	_, err := q.Move(ctx, home)
	return q, err
}

// Move has pulls parked at another home from now on; those that are parked stay where they are. False
// when that was the home already.
func (q *Queue) Move(ctx context.Context, home string) (bool, error) {
	link := q.mesh.link(home)
	if link == nil {
		return false, fmt.Errorf("bus: no home is called %q", home)
	}
	if q.home.Load() == link {
		return false, nil
	}
	if err := link.askQueue(ctx, q.worker, q.ID); err != nil {
		return false, err
	}
	q.home.Store(link)
	return true, nil
}

// Reopen makes the queue's consumer anew, when pulls find none.
func (q *Queue) Reopen(ctx context.Context) error { return q.home.Load().askQueue(ctx, q.worker, q.ID) }

// askQueue has the home make a queue's consumer: workers have no part in the JetStream API but to pull.
func (c *Conn) askQueue(ctx context.Context, worker string, id QueueID) error {
	ctx, cancel := context.WithTimeout(ctx, queueLimit)
	defer cancel()
	reply, err := c.nc.RequestWithContext(ctx, subjectQueue+"."+worker, []byte(id))
	if err == nil {
		if text := reply.Header.Get(headerError); text != "" {
			err = errors.New(text)
		}
	}
	if err != nil {
		return fmt.Errorf("bus: queue %s at %s: %w", id, c.node, err)
	}
	return nil
}

func (c *Conn) openQueue(ctx context.Context, id QueueID) error {
	_, err := c.js.CreateOrUpdateConsumer(ctx, id.stream(), jetstream.ConsumerConfig{
		Durable:           string(id),
		FilterSubject:     id.subject(),
		AckPolicy:         jetstream.AckExplicitPolicy,
		AckWait:           ackWait,
		MaxDeliver:        -1,
		MaxAckPending:     maxHeld,
		MaxWaiting:        maxWaiting,
		InactiveThreshold: consumerIdle,
		MemoryStorage:     true,
		Replicas:          1,
		PriorityPolicy:    jetstream.PriorityPolicyPrioritized,
		PriorityGroups:    []string{consumerGroup},
	})
	if err != nil {
		return fmt.Errorf("bus: consumer of queue %s: %w", id, err)
	}
	return nil
}
