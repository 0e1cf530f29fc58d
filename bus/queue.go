package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// queueAge is how long a call may stay in a queue. Its asker has given up long before, so what
	// is that old is refuse.
	queueAge = 2 * time.Minute
	// ackWait is after what time a delivered call whose holder shows no progress goes to another
	// one. JetStream's default is 30 s.
	ackWait = 2 * time.Second
	// ProgressInterval is how often the holder of an unclaimed delivery tells that it still has it.
	ProgressInterval = ackWait / 3
	// maxWaiting is how many pulls may be parked on one queue: each idle instance has one.
	maxWaiting = 16_384
	// maxHeld is how many deliveries of one queue may be unsettled.
	maxHeld = 16_384
	// consumerIdle is after what time without a pull a queue's consumer goes away: the function
	// sleeps and owns nothing in the broker.
	consumerIdle = 30 * time.Second
	// pullLimit is how long one pull stays parked, so that what a dead worker parked does not
	// swallow calls for longer.
	pullLimit = 10 * time.Second
)

// EnsureCallPlane makes the home's call streams, bounded to memoryBytes in all. It is idempotent.
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
	return nil
}

// Queue is a worker's view of one incarnation's call queue.
type Queue struct {
	ID     QueueID
	conn   *Conn
	worker string
	pullTo string
}

// OpenQueue makes sure that the queue has its consumer and returns the worker's view of it. It may
// be called again when pulls find no consumer.
func (c *Conn) OpenQueue(ctx context.Context, worker string, id QueueID) (*Queue, error) {
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
		return nil, fmt.Errorf("bus: consumer of queue %s: %w", id, err)
	}
	return &Queue{ID: id, conn: c, worker: worker, pullTo: pullAPI + id.stream() + "." + string(id)}, nil
}
