package bus

import (
	"context"
	"fmt"
)

// StreamStats is what one stream holds.
type StreamStats struct {
	Name            string
	Messages, Bytes uint64
	Consumers       int
}

// StreamStats lists the streams, for metrics. Their number is fixed: queues and functions have none of their
// own.
func (c *Conn) StreamStats(ctx context.Context) ([]StreamStats, error) {
	var all []StreamStats
	streams := c.js.ListStreams(ctx)
	for info := range streams.Info() {
		all = append(all, StreamStats{info.Config.Name, info.State.Msgs, info.State.Bytes, info.State.Consumers})
	}
	if err := streams.Err(); err != nil {
		return nil, fmt.Errorf("bus: list streams: %w", err)
	}
	return all, nil
}

// QueuedCalls is how many calls are in the queues of this home: waiting, or held by a worker that has not
// claimed them yet.
func (c *Conn) QueuedCalls(ctx context.Context) (calls uint64, err error) {
	for shard := range callShards {
		stream, err := c.js.Stream(ctx, callStream(shard))
		if err != nil {
			return 0, fmt.Errorf("bus: look up call stream %d: %w", shard, err)
		}
		calls += stream.CachedInfo().State.Msgs
	}
	return calls, nil
}

// UsageStream is the name of the one that holds usage on its way to the ledger.
const UsageStream = usageStream
