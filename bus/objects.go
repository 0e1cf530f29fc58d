package bus

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Errors of the code store.
var (
	// ErrObjectNotFound: no object has this hash.
	ErrObjectNotFound = errors.New("bus: object not found")
	// ErrObjectHash: the bytes do not have the hash they are stored under.
	ErrObjectHash = errors.New("bus: object does not match its hash")
	// ErrObjectTooLarge: the object is over MaxObjectBytes.
	ErrObjectTooLarge = errors.New("bus: object too large")
	// ErrObjectsFull: the code store is at its bound; nothing was stored.
	ErrObjectsFull = errors.New("bus: the code store is full")
)

const (
	// MaxObjectBytes bounds one object: AWS's 250 MB, the most that a package may unpack to.
	MaxObjectBytes = 250 << 20
	// objectChunk is how an object is cut; a chunk is one message.
	objectChunk = 256 << 10
	// objectTries bounds how often a record is written against a subject that moves on.
	objectTries = 8
)

// Objects holds code packages and layers under the lower-case hex SHA-256 of their bytes. An object
// is written once and never overwritten: whoever reads it is not disturbed by another Put.
//
// It keeps to the layout of JetStream's object store, so that NATS's own tools can list and fetch,
// but writes by itself: the client's Put replaces an object of the same name and breaks its readers.
type Objects struct {
	c *Conn

	mu     sync.Mutex
	stream jetstream.Stream // bound on first use
}

// Objects returns the code store, which EnsureStreams has made.
func (c *Conn) Objects() *Objects { return &Objects{c: c} }

// Object is one stored object.
type Object struct {
	SHA256 string
	Size   int64
	// StoredAt is when it was last put, by the store's clock.
	StoredAt time.Time
}

// record is the newest message on an object's name: its description, or that it was deleted.
type record struct {
	info     jetstream.ObjectInfo
	sequence uint64 // 0: there is none
	at       time.Time
}

func (r record) exists() bool { return r.sequence != 0 && !r.info.Deleted }

func nameSubject(sha string) string {
	return "$O." + codeBucket + ".M." + base64.URLEncoding.EncodeToString([]byte(sha))
}

func chunkSubject(id string) string { return "$O." + codeBucket + ".C." + id }

func (o *Objects) bind(ctx context.Context) (jetstream.Stream, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stream == nil {
		var stream jetstream.Stream
		err := o.c.insist(ctx, func(ctx context.Context) (err error) {
			stream, err = o.c.js.Stream(ctx, codeStream)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("bus: look up the code store: %w", err)
		}
		o.stream = stream
	}
	return o.stream, nil
}

func checkSHA(sha string) error {
	if b, err := hex.DecodeString(sha); err != nil || len(b) != sha256.Size || hex.EncodeToString(b) != sha {
		return fmt.Errorf("bus: %q is no lower-case hex SHA-256", sha)
	}
	return nil
}

// record reads the newest message on an object's name.
func (o *Objects) record(ctx context.Context, stream jetstream.Stream, subject string) (record, error) {
	var msg *jetstream.RawStreamMsg
	err := o.c.insist(ctx, func(ctx context.Context) (err error) {
		msg, err = stream.GetLastMsgForSubject(ctx, subject)
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("bus: look up object: %w", err)
	}
	r := record{sequence: msg.Sequence, at: msg.Time}
	if err := json.Unmarshal(msg.Data, &r.info); err != nil {
		return record{}, fmt.Errorf("bus: decode object record: %w", err)
	}
	return r, nil
}

// write replaces the record if it is still the one of the sequence, and returns the new sequence.
func (o *Objects) write(ctx context.Context, subject string, info jetstream.ObjectInfo, sequence uint64) (uint64, error) {
	data, err := json.Marshal(info)
	if err != nil {
		return 0, fmt.Errorf("bus: encode object record: %w", err)
	}
	msg := nats.NewMsg(subject)
	msg.Data = data
	msg.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	// The id lets the server know a repetition of what it has stored and could not say so.
	msg.Header.Set(jetstream.MsgIDHeader, nuid.Next())
	var ack *jetstream.PubAck
	err = o.c.insist(ctx, func(ctx context.Context) (err error) {
		ack, err = o.c.js.PublishMsg(ctx, msg, jetstream.WithExpectLastSequencePerSubject(sequence))
		return err
	})
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// Put stores what r gives under its hash, and returns when it is stored. An object that is there
// already stays as it is, only counts as stored now (see Collect), and r is not read. Two Puts of one
// hash at once both succeed.
//
// ErrObjectHash, ErrObjectTooLarge, ErrObjectsFull, an error of r, or one of the store.
func (o *Objects) Put(ctx context.Context, sha string, r io.Reader) error {
	if err := checkSHA(sha); err != nil {
		return err
	}
	stream, err := o.bind(ctx)
	if err != nil {
		return err
	}
	subject := nameSubject(sha)
	var mine *jetstream.ObjectInfo
	for range objectTries {
		current, err := o.record(ctx, stream, subject)
		if err != nil {
			return err
		}
		info := current.info
		if !current.exists() {
			if mine == nil {
				if mine, err = o.upload(ctx, stream, sha, r); err != nil {
					return err
				}
			}
			info = *mine
		}
		_, err = o.write(ctx, subject, info, current.sequence)
		switch {
		case err == nil:
			if mine != nil && info.NUID != mine.NUID {
				o.purge(ctx, stream, chunkSubject(mine.NUID))
			}
			return nil
		case isConflict(err):
			continue // somebody else put or collected it meanwhile
		case isFull(err) && current.exists():
			return nil // it is there; only its time could not be renewed
		case isFull(err):
			o.purge(ctx, stream, chunkSubject(info.NUID))
			return ErrObjectsFull
		default:
			// It may be stored: the chunks must stay. Collect finds them if nothing names them.
			return fmt.Errorf("bus: store object: %w", err)
		}
	}
	return fmt.Errorf("bus: object %s is put and collected over and over", sha)
}

// upload stores the chunks of an object, which nothing names yet.
func (o *Objects) upload(ctx context.Context, stream jetstream.Stream, sha string, r io.Reader) (*jetstream.ObjectInfo, error) {
	id := nuid.Next()
	info := &jetstream.ObjectInfo{
		ObjectMeta: jetstream.ObjectMeta{Name: sha, Opts: &jetstream.ObjectMetaOptions{ChunkSize: objectChunk}},
		Bucket:     codeBucket,
		NUID:       id,
	}
	digest := sha256.New()
	chunk := make([]byte, objectChunk)
	err := func() error {
		for {
			n, readErr := io.ReadFull(r, chunk)
			if n > 0 {
				if info.Size += uint64(n); info.Size > MaxObjectBytes {
					return ErrObjectTooLarge
				}
				digest.Write(chunk[:n])
				name := jetstream.WithMsgID(fmt.Sprintf("%s-%d", id, info.Chunks))
				err := o.c.insist(ctx, func(ctx context.Context) error {
					_, err := o.c.js.Publish(ctx, chunkSubject(id), chunk[:n], name)
					return err
				})
				if isFull(err) {
					return ErrObjectsFull
				}
				if err != nil {
					return fmt.Errorf("bus: store object: %w", err)
				}
				info.Chunks++
			}
			switch {
			case readErr == nil:
			case errors.Is(readErr, io.EOF), errors.Is(readErr, io.ErrUnexpectedEOF):
				if hex.EncodeToString(digest.Sum(nil)) != sha {
					return ErrObjectHash
				}
				return nil
			default:
				return fmt.Errorf("bus: read object: %w", readErr)
			}
		}
	}()
	if err != nil {
		o.purge(ctx, stream, chunkSubject(id))
		return nil, err
	}
	info.Digest = "SHA-256=" + base64.URLEncoding.EncodeToString(digest.Sum(nil))
	return info, nil
}

// purge removes what is on a subject, as well as it can: what it must leave, Collect finds. It
// works for a caller whose ctx has ended, too.
func (o *Objects) purge(ctx context.Context, stream jetstream.Stream, subject string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
		o.c.log.Warn("chunks of an object left behind for the collector", "subject", subject, "err", err)
	}
}
