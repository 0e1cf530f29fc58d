package bus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// maxLogChunk bounds one stored chunk: the longest line (256 KiB) and its envelope. Shorter
	// lines are stored together, up to logChunkAim.
	maxLogChunk = 256<<10 + 4<<10
	logChunkAim = 64 << 10
	// Outstanding chunks, not yet acknowledged by the store, that one process may have; what is
	// over is dropped and counted.
	logPendingChunks = 1024
	logPendingBytes  = 16 << 20
	// logAckLimit is how long an outstanding chunk counts as such.
	logAckLimit = 10 * time.Second
	// logClockSlack is how far the clocks of workers and store may be apart when reading from a time.
	logClockSlack = 5 * time.Second
	// logTailWait bounds the wait for lines that were there and then fell to a bound.
	logTailWait = 2 * time.Second
)

// Logs is the log stream: chunks of lines, by account and function. Its methods may be called from
// many goroutines.
type Logs struct {
	c  *Conn
	js jetstream.JetStream // its own, for its own bound on what is outstanding

	outstanding atomic.Int64 // bytes
	dropped     atomic.Uint64
}

// Logs returns the log stream, which EnsureStreams has made. Close it after the last PublishLogs.
func (c *Conn) Logs() (*Logs, error) {
	l := &Logs{c: c}
	js, err := jetstream.New(c.nc,
		jetstream.WithPublishAsyncMaxPending(2*logPendingChunks), // never reached: PublishLogs drops before it would stall
		jetstream.WithPublishAsyncTimeout(logAckLimit),
		jetstream.WithPublishAsyncAckHandler(func(_ jetstream.JetStream, msg *nats.Msg, _ *jetstream.PubAck) {
			l.outstanding.Add(-int64(len(msg.Data)))
		}),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, msg *nats.Msg, _ error) {
			l.outstanding.Add(-int64(len(msg.Data)))
			l.dropped.Add(1)
		}))
	if err != nil {
		return nil, fmt.Errorf("bus: jetstream for logs: %w", err)
	}
	l.js = js
	return l, nil
}

// Close waits, until ctx ends, for what is outstanding.
func (l *Logs) Close(ctx context.Context) error {
	defer l.js.CleanupPublisher()
	select {
	case <-l.js.PublishAsyncComplete():
		return nil
	case <-ctx.Done():
		n := l.js.PublishAsyncPending()
		if n == 0 {
			return nil
		}
		return fmt.Errorf("bus: %d log chunks not acknowledged: %w", n, ctx.Err())
	}
}

// Dropped counts the chunks that were lost because the store was full, too slow or away.
func (l *Logs) Dropped() uint64 { return l.dropped.Load() }

// PublishLogs stores a chunk without waiting for it: a store that cannot keep up costs lines, not
// time. The lines of one function keep their order if one goroutine publishes them. It does not
// keep the chunk. It returns false when lines were dropped.
func (l *Logs) PublishLogs(chunk *dozev1.LogChunk) bool {
	subject := logSubject(chunk.Account, chunk.Function)
	whole := true
	for lines := chunk.Lines; len(lines) > 0; {
		n, size := 0, 0
		for n < len(lines) {
			size += len(lines[n].Text) + len(lines[n].Stream) + 24
			if n > 0 && size > logChunkAim {
				break
			}
			n++
		}
		part := chunk
		if n < len(chunk.Lines) {
			part = &dozev1.LogChunk{Account: chunk.Account, Function: chunk.Function, Lines: lines[:n]}
		}
		lines = lines[n:]
		if !l.publish(subject, part) {
			whole = false
		}
	}
	return whole
}

func (l *Logs) publish(subject string, chunk *dozev1.LogChunk) bool {
	data, err := proto.Marshal(chunk)
	if err != nil || len(data) > maxLogChunk ||
		l.js.PublishAsyncPending() >= logPendingChunks || l.outstanding.Load() > logPendingBytes {
		l.dropped.Add(1)
		return false
	}
	l.outstanding.Add(int64(len(data)))
	if _, err := l.js.PublishAsync(subject, data); err != nil {
		l.outstanding.Add(-int64(len(data)))
		l.dropped.Add(1)
		return false
	}
	return true
}

// ReadLogs calls fn with the stored lines of one function that are not older than since, in the
// order in which they were stored. With follow it then goes on with new lines as they come, until
// ctx ends; without, it returns nil after the last line that was there at the call. An error of fn
// ends it and is returned.
func (l *Logs) ReadLogs(ctx context.Context, account, function string, since time.Time, follow bool, fn func(*dozev1.LogLine) error) error {
	subject := logSubject(account, function)
	var last uint64
	if !follow {
		stream, err := l.c.js.Stream(ctx, logStream)
		if err != nil {
			return fmt.Errorf("bus: look up logs: %w", err)
		}
		msg, err := stream.GetLastMsgForSubject(ctx, subject)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("bus: look up logs: %w", err)
		case msg.Time.Before(since.Add(-logClockSlack)):
			return nil
		}
		last = msg.Sequence
	}
	// The store knows when a chunk was stored, which is after its lines were written: begin a
	// little earlier and leave out the lines that are too old.
	start := since.Add(-logClockSlack)
	if start.Before(time.Unix(0, 0)) {
		start = time.Unix(0, 0)
	}
	consumer, err := l.c.js.OrderedConsumer(ctx, logStream, jetstream.OrderedConsumerConfig{
		FilterSubjects:    []string{subject},
		DeliverPolicy:     jetstream.DeliverByStartTimePolicy,
		OptStartTime:      &start,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return fmt.Errorf("bus: read logs: %w", err)
	}
	iter, err := consumer.Messages(jetstream.PullMaxMessages(64))
	if err != nil {
		return fmt.Errorf("bus: read logs: %w", err)
	}
	defer iter.Stop()
	sinceMs := since.UnixMilli()
	for {
		msg, err := l.next(ctx, iter, follow)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !follow && errors.Is(err, context.DeadlineExceeded):
			return nil // what was last has fallen to the stream's bound
		case err != nil:
			return fmt.Errorf("bus: read logs: %w", err)
		}
		chunk := &dozev1.LogChunk{}
		if err := proto.Unmarshal(msg.Data(), chunk); err != nil {
			return fmt.Errorf("bus: decode log chunk: %w", err)
		}
		for _, line := range chunk.Lines {
			if line.AtMs < sinceMs {
				continue
			}
			if err := fn(line); err != nil {
				return err
			}
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("bus: read logs: %w", err)
		}
		if !follow && (meta.Sequence.Stream >= last || meta.NumPending == 0) {
			return nil
		}
	}
}

func (l *Logs) next(ctx context.Context, iter jetstream.MessagesContext, follow bool) (jetstream.Msg, error) {
	if !follow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, logTailWait)
		defer cancel()
	}
	return iter.Next(jetstream.NextContext(ctx))
}
