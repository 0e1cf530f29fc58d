package bus

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// leaderPatience is how long a stream of a cluster may be without a leader before who needs it gives
	// up: an election takes up to six seconds after a node was killed, longer on a busy machine.
	leaderPatience = 15 * time.Second
	// leaderTry is how long one request may go unanswered: a leader that is gone answers nothing.
	leaderTry = time.Second
	// leaderPause is the wait between two tries.
	leaderPause = 100 * time.Millisecond
)

// insist repeats do while the stream that it is about has no leader. do must be safe to repeat: a try
// that was not answered may have been carried out. On a server that is alone it is called once, since
// what fails there does not mend by itself.
func (c *Conn) insist(ctx context.Context, do func(context.Context) error) error {
	if !c.clustered {
		return do(ctx)
	}
	for begun := time.Now(); ; {
		try, cancel := context.WithTimeout(ctx, leaderTry)
		err := do(try)
		cancel()
		if err == nil || !mayPass(err) || ctx.Err() != nil || time.Since(begun) > leaderPatience {
			return err
		}
		select {
		case <-time.After(leaderPause):
		case <-ctx.Done():
			return err
		}
	}
}

// mayPass tells whether an error is one of a stream without a leader: no answer, or that the service is
// not available; or that the try before is still under way.
func mayPass(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == 503 && !isFull(err) || api.ErrorCode == codeInProcess
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, jetstream.ErrNoStreamResponse) ||
		errors.Is(err, jetstream.ErrJetStreamNotEnabled)
}
