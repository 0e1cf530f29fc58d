package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Where nodes show certificates, workers have no part in the JetStream API, not even to pull and to settle:
// who sends a request says where its answer goes, and JetStream answers with rights of its own, so that a
// worker could have it purge or delete a stream. They send to their home what they want, and the home,
// having looked at it, passes it on. In process, and without certificates, it is sent to JetStream itself.
const (
	ackPrefix = "$JS.ACK."
	// maxPull bounds a pull request in bytes; ours has about 60.
	maxPull = 256
	// pulledFor is for how long after a pull it is certain that a queue's consumer is there.
	pulledFor = consumerIdle - 5*time.Second
	// serveLimit bounds for how long the server takes to know of what is served.
	serveLimit = 5 * time.Second
	// maxPulled is how many queues are remembered before those without pulls are forgotten.
	maxPulled = 4096
)

// relay is what a home does for workers in their stead.
type relay struct {
	c *Conn

	mu     sync.Mutex
	pulled map[QueueID]*pulled
}

// pulled is a queue whose consumer was there.
type pulled struct {
	at time.Time // when it was last opened or pulled from
	to string    // where to pull
}

// serveQueues has this home work for the workers that it asks to host. After a restart of the server, whose
// queues are lost, it forgets what it knew.
func (c *Conn) serveQueues() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.relay != nil {
		c.relay.mu.Lock()
		defer c.relay.mu.Unlock()
		clear(c.relay.pulled)
		return nil
	}
	r := &relay{c: c, pulled: map[QueueID]*pulled{}}
	if _, err := c.subscribe(map[string]nats.MsgHandler{
		subjectQueue + ".*": r.open, subjectPull + ".*.*": r.pull, subjectSettle + ".>": r.settle,
	}); err != nil {
		return fmt.Errorf("bus: serve queues: %w", err)
	}
	// A worker may ask as soon as this returns: nobody to answer would be an error.
	if err := c.nc.FlushTimeout(serveLimit); err != nil {
		return fmt.Errorf("bus: serve queues: %w", err)
	}
	c.relay = r
	return nil
}

// open makes a queue's consumer.
func (r *relay) open(m *nats.Msg) {
	if !strings.HasPrefix(m.Reply, inbox(m.Subject[len(subjectQueue)+1:])+".") {
		return // this process may write to any subject, and must not be made to
	}
	ctx, cancel := context.WithTimeout(context.Background(), queueLimit)
	defer cancel()
	id, err := QueueID(m.Data), errors.New("bus: not a queue's name")
	if id.valid() {
		err = r.c.openQueue(ctx, id)
	}
	reply := nats.NewMsg(m.Reply)
	if err != nil {
		reply.Header.Set(headerError, err.Error())
	} else {
		r.note(id)
	}
	if err := m.RespondMsg(reply); err != nil {
		r.c.log.Warn("bus: answer about a queue", "err", err)
	}
}

func (r *relay) note(id QueueID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if len(r.pulled) >= maxPulled {
		for id, q := range r.pulled {
			if now.Sub(q.at) >= pulledFor {
				delete(r.pulled, id)
			}
		}
	}
	r.pulled[id] = &pulled{now, id.pullTo()}
}

// pull parks a worker's pull: g.<worker>.<queue>. Where there may be no consumer it says so, as JetStream would.
func (r *relay) pull(m *nats.Msg) {
	worker, queue, _ := strings.Cut(m.Subject[len(subjectPull)+1:], ".")
	id := QueueID(queue)
	if !id.valid() || len(m.Data) > maxPull || !ofSlot(m.Reply, worker) {
		return
	}
	r.mu.Lock()
	now := time.Now()
	q := r.pulled[id]
	there := q != nil && now.Sub(q.at) < pulledFor
	if there {
		q.at = now
	}
	r.mu.Unlock()
	var err error
	if there {
		err = r.c.nc.PublishRequest(q.to, m.Reply, m.Data)
	} else {
		gone := nats.NewMsg(m.Reply)
		gone.Header.Set("Status", statusGone)
		err = r.c.nc.PublishMsg(gone)
	}
	if err != nil {
		r.c.log.Warn("bus: park for a worker", "worker", worker, "err", err)
	}
}

// settle passes on what a worker says of a message that it was handed: z.<worker>.<rest of the ack>.
func (r *relay) settle(m *nats.Msg) {
	_, rest, _ := strings.Cut(m.Subject[len(subjectSettle)+1:], ".")
	if !bytes.Equal(m.Data, ackDone) && !bytes.Equal(m.Data, ackProgress) && !bytes.Equal(m.Data, ackReturn) {
		return
	}
	if err := r.c.nc.Publish(ackPrefix+rest, m.Data); err != nil {
		r.c.log.Warn("bus: settle for a worker", "subject", m.Subject, "err", err)
	}
}

// ackTo is where to settle a message that came over this connection.
func (c *Conn) ackTo(worker, ack string) string {
	if rest, ok := strings.CutPrefix(ack, ackPrefix); ok && c.guarded {
		return subjectSettle + "." + worker + "." + rest
	}
	return ack
}
