package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Streams, consumers and subjects of the durable plane.
const (
	usageStream = "USAGE"
	logStream   = "LOGS"
	codeBucket  = "code" // the object store; its stream is OBJ_code
	codeStream  = "OBJ_" + codeBucket

	pollerConsumer = "pollers" // on every event and timer stream, shared by all control nodes
	ledgerConsumer = "ledger"  // on the usage stream, drawn from by the leader

	subjectEvent   = "e"  // e.<shard>.<account>.<function>: an accepted event
	subjectTimer   = "t"  // t.<shard>.at.<id>: an event waiting for its time; t.<shard>.due.<account>.<function>: its time has come
	subjectUsage   = "u"  // u.<worker>.<epoch>: a usage batch
	subjectApplied = "ua" // ua.<worker>.<epoch>: how far the ledger has come (core, not stored)
	subjectMark    = "um" // um.<worker>: asks for the mark of an epoch (core request)
	subjectCode    = "k"  // k.<worker>: asks for a piece of a code package (core request)
	subjectLog     = "l"  // l.<account>.<function>: log chunks
)

// How the storage budget is split, in percent. The rest is for what streams hold beside their
// messages. JetStream's own limit must not be below the budget, so that a stream's bound refuses
// (or, for logs, discards) before JetStream as a whole is full.
const (
	codeShare  = 45
	eventShare = 20
	timerShare = 20
	usageShare = 5
	logShare   = 8
)

// Bounds of the durable plane.
const (
	// MinStorageBytes is the smallest budget that EnsureStreams takes.
	MinStorageBytes = 64 << 20
	// MaxEventShards bounds the number of event streams.
	MaxEventShards = 16

	// eventAckWait is how long after a poller's death its events are handed to another; a living
	// poller renews every eventAckWait/3. JetStream's default, 30 s, would be the recovery time.
	eventAckWait = 10 * time.Second
	// eventDedup is how long a shard knows the ids of events, so that a publish may be repeated.
	eventDedup = 30 * time.Second
	// timerDedup must outlast the redelivery of an event whose poller died between storing the
	// retry and settling the original, and the attempt that follows.
	timerDedup = 2 * time.Minute
	// usageAckWait is how long a batch stays with a collector that is gone.
	usageAckWait = 5 * time.Second
	usageDedup   = 30 * time.Second
	// usagePending is how many batches one collector may hold.
	usagePending = 4096
)

// StreamsConfig says how large and how safe the durable plane is.
type StreamsConfig struct {
	// StorageBytes is split among the streams, each replica of which has to find its share on its
	// node. At least MinStorageBytes; at most the JetStream store limit of each node.
	StorageBytes int64
	// Replicas is 1, or 3 in a cluster.
	Replicas int
	// EventShards is the number of event streams; more than one so that a lost stream leader costs
	// a retry on another. Shards are added, never taken away: pollers must know all that hold events.
	EventShards int
}

func (c StreamsConfig) check() error {
	switch {
	case c.StorageBytes < MinStorageBytes:
		return fmt.Errorf("bus: storage budget of %d bytes is below the least, %d", c.StorageBytes, MinStorageBytes)
	case c.Replicas < 1 || c.Replicas > 5:
		return fmt.Errorf("bus: %d replicas: want 1 to 5", c.Replicas)
	case c.EventShards < 1 || c.EventShards > MaxEventShards:
		return fmt.Errorf("bus: %d event shards: want 1 to %d", c.EventShards, MaxEventShards)
	}
	return nil
}

// share is percent of the budget.
func (c StreamsConfig) share(percent int64) int64 { return c.StorageBytes / 100 * percent }

func eventStream(shard int) string { return fmt.Sprintf("EVENTS_%d", shard) }
func timerStream(shard int) string { return fmt.Sprintf("TIMERS_%d", shard) }

func eventSubject(shard int, account, function string) string {
	return fmt.Sprintf("%s.%d.%s.%s", subjectEvent, shard, token(account), token(function))
}

func dueSubject(shard int, account, function string) string {
	return fmt.Sprintf("%s.%d.due.%s.%s", subjectTimer, shard, token(account), token(function))
}

func logSubject(account, function string) string {
	return subjectLog + "." + token(account) + "." + token(function)
}

// token writes any string as one subject token, one to one: letters, digits, '-' and '_' stand for
// themselves, any other byte is =hh, and nothing at all is a lone '='.
func token(s string) string {
	if s == "" {
		return "="
	}
	clean := true
	for i := 0; i < len(s); i++ {
		if !plainToken(s[i]) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	const digits = "0123456789abcdef"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; plainToken(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('=')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}

func plainToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// EnsureStreams creates the streams and consumers of the durable plane, or brings existing ones to
// this configuration. Every control node calls it at its start; the result is the same in any order.
func (c *Conn) EnsureStreams(ctx context.Context, config StreamsConfig) error {
	if err := config.check(); err != nil {
		return err
	}
	replicas, err := c.replicas(ctx, codeStream, config.Replicas)
	if err != nil {
		return err
	}
	if _, err := c.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{
		Bucket:   codeBucket,
		Storage:  jetstream.FileStorage,
		Replicas: replicas,
		MaxBytes: config.share(codeShare),
	}); err != nil {
		return fmt.Errorf("bus: ensure the code store: %w", err)
	}
	for shard := range config.EventShards {
		if err := c.ensureEventShard(ctx, config, shard); err != nil {
			return err
		}
	}
	if err := c.ensureStream(ctx, jetstream.StreamConfig{
		Name:       usageStream,
		Subjects:   []string{subjectUsage + ".*.*"},
		Storage:    jetstream.FileStorage,
		Replicas:   config.Replicas,
		Retention:  jetstream.WorkQueuePolicy,
		Discard:    jetstream.DiscardNew, // the worker's journal keeps what is refused
		MaxBytes:   config.share(usageShare),
		Duplicates: usageDedup,
	}, &jetstream.ConsumerConfig{
		Durable:       ledgerConsumer,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       usageAckWait,
		MaxDeliver:    -1,
		MaxAckPending: usagePending,
	}); err != nil {
		return err
	}
	logBytes := config.share(logShare)
	return c.ensureStream(ctx, jetstream.StreamConfig{
		Name:     logStream,
		Subjects: []string{subjectLog + ".*.*"},
		Storage:  jetstream.FileStorage,
		Replicas: config.Replicas,
		Discard:  jetstream.DiscardOld,
		MaxBytes: logBytes,
		// One function holds half of the stream at the very most, whatever it writes.
		MaxMsgsPerSubject: min(max(logBytes/2/maxLogChunk, 16), 16384),
		AllowDirect:       true,
		// Log chunks carry no id; the shortest window keeps the server's table empty.
		Duplicates: time.Second,
	}, nil)
}

// HaveStreams is nil when the streams that EnsureStreams makes are there.
func (c *Conn) HaveStreams(ctx context.Context, config StreamsConfig) error {
	names := []string{codeStream, usageStream, logStream}
	for shard := range config.EventShards {
		names = append(names, eventStream(shard), timerStream(shard))
	}
	for _, name := range names {
		if _, err := c.js.Stream(ctx, name); err != nil {
			return fmt.Errorf("bus: look up stream %s: %w", name, err)
		}
	}
	return nil
}

// ensureEventShard makes one event stream and its timer stream.
func (c *Conn) ensureEventShard(ctx context.Context, config StreamsConfig, shard int) error {
	consumer := jetstream.ConsumerConfig{
		Durable:    pollerConsumer,
		AckPolicy:  jetstream.AckExplicitPolicy,
		AckWait:    eventAckWait,
		MaxDeliver: -1,
		// Events that a poller put off for a while count as pending: a bound here would let one
		// function's backlog close the stream for every other. What is really in a poller's hands
		// is bounded by how much it pulls.
		MaxAckPending: -1,
	}
	consumer.FilterSubject = fmt.Sprintf("%s.%d.*.*", subjectEvent, shard)
	if err := c.ensureStream(ctx, jetstream.StreamConfig{
		Name:        eventStream(shard),
		Subjects:    []string{consumer.FilterSubject},
		Storage:     jetstream.FileStorage,
		Replicas:    config.Replicas,
		Retention:   jetstream.WorkQueuePolicy,
		Discard:     jetstream.DiscardNew,
		MaxBytes:    config.share(eventShare) / int64(config.EventShards),
		Duplicates:  eventDedup,
		AllowDirect: true,
	}, &consumer); err != nil {
		return err
	}
	consumer.FilterSubject = fmt.Sprintf("%s.%d.due.*.*", subjectTimer, shard)
	return c.ensureStream(ctx, jetstream.StreamConfig{
		Name: timerStream(shard),
		// A schedule can only put a message on a subject of its own stream, so that events whose
		// time has come stay here and pollers draw from both streams.
		Subjects:  []string{fmt.Sprintf("%s.%d.at.*", subjectTimer, shard), consumer.FilterSubject},
		Storage:   jetstream.FileStorage,
		Replicas:  config.Replicas,
		Retention: jetstream.WorkQueuePolicy,
		// A stream with schedules cannot refuse when full, it could only discard accepted events.
		// So it has no bound of its own: RetryAt keeps it within the share.
		Discard:           jetstream.DiscardOld,
		MaxBytes:          -1,
		Duplicates:        timerDedup,
		AllowMsgSchedules: true,
		AllowRollup:       true,
		AllowDirect:       true,
		Metadata:          map[string]string{timerBoundKey: fmt.Sprint(config.share(timerShare) / int64(config.EventShards))},
	}, &consumer)
}

// replicas is how many copies a stream is to have: never fewer than it has, though servers may be away or
// removed.
func (c *Conn) replicas(ctx context.Context, stream string, want int) (int, error) {
	existing, err := c.js.Stream(ctx, stream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return want, nil
	case err != nil:
		return 0, fmt.Errorf("bus: look up stream %s: %w", stream, err)
	}
	return max(want, existing.CachedInfo().Config.Replicas), nil
}

func (c *Conn) ensureStream(ctx context.Context, stream jetstream.StreamConfig, consumer *jetstream.ConsumerConfig) (err error) {
	if stream.Replicas, err = c.replicas(ctx, stream.Name, stream.Replicas); err != nil {
		return err
	}
	if _, err := c.js.CreateOrUpdateStream(ctx, stream); err != nil {
		return fmt.Errorf("bus: ensure stream %s: %w", stream.Name, err)
	}
	if consumer == nil {
		return nil
	}
	if _, err := c.js.CreateOrUpdateConsumer(ctx, stream.Name, *consumer); err != nil {
		return fmt.Errorf("bus: ensure consumer %s of %s: %w", consumer.Durable, stream.Name, err)
	}
	return nil
}

// Error codes of the JetStream API that mean that a bound is reached.
const (
	codeStoreFailed  jetstream.ErrorCode = 10077 // "maximum bytes exceeded", among others
	codeNoResources  jetstream.ErrorCode = 10023
	codeStorageLimit jetstream.ErrorCode = 10047
	codeWrongLastSeq jetstream.ErrorCode = 10071
	// A stream of several replicas refuses with this one while another write of the subject is under way, and with the
	// next a repetition while the first is.
	codeWrongLastSeqCluster jetstream.ErrorCode = 10164
	codeInProcess           jetstream.ErrorCode = 10158
)

// isFull tells whether a publish was refused because a stream or the whole store is full.
func isFull(err error) bool {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch api.ErrorCode {
	case codeStoreFailed:
		return strings.Contains(api.Description, "maximum")
	case codeNoResources, codeStorageLimit:
		return true
	}
	return false
}

// isRefused tells whether the server answered a publish with a refusal: nothing was stored. Any
// other error leaves that open.
func isRefused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api)
}

// isConflict tells whether a publish was refused because its subject has moved on.
func isConflict(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == codeWrongLastSeq || api.ErrorCode == codeWrongLastSeqCluster)
}
