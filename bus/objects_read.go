package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// A follower of the stream may answer a read before it has what the leader acknowledged: what
	// is not there is asked for again for so long.
	objectLag      = time.Second
	objectLagRetry = 20 * time.Millisecond
)

// Get returns a reader of an object's bytes and their number. The reader checks the hash: a read
// that came to io.EOF gave the whole object, unharmed. It reads as ctx allows, and holds no
// resources between reads.
//
// ErrObjectNotFound, here or, when it is deleted meanwhile, from Read; ErrObjectHash from Read.
func (o *Objects) Get(ctx context.Context, sha string) (io.ReadCloser, int64, error) {
	r, size, err := o.open(ctx, sha)
	if err != nil {
		return nil, 0, err
	}
	return newHashedReader(sha, r.chunk), size, nil
}

// open finds an object, and its size in bytes.
func (o *Objects) open(ctx context.Context, sha string) (*objectReader, int64, error) {
	if err := checkSHA(sha); err != nil {
		return nil, 0, err
	}
	stream, err := o.bind(ctx)
	if err != nil {
		return nil, 0, err
	}
	var found record
	err = patiently(ctx, stream, func() (bool, error) {
		found, err = o.record(ctx, stream, nameSubject(sha))
		return found.exists() || found.info.Deleted, err
	})
	if err != nil {
		return nil, 0, err
	}
	if !found.exists() {
		return nil, 0, ErrObjectNotFound
	}
	r := &objectReader{ctx: ctx, conn: o.c, stream: stream, subject: chunkSubject(found.info.NUID), left: found.info.Chunks}
	return r, int64(found.info.Size), nil
}

// patiently asks again while what it looks for may only not have reached the server that answers.
func patiently(ctx context.Context, stream jetstream.Stream, look func() (found bool, err error)) error {
	alone := stream.CachedInfo().Config.Replicas <= 1
	for begun := time.Now(); ; {
		found, err := look()
		if found || err != nil || alone || time.Since(begun) > objectLag {
			return err
		}
		select {
		case <-time.After(objectLagRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// objectReader fetches one chunk at a time, by direct reads: no consumer is made for it, so that
// fetching code works while the cluster's meta leader is away.
type objectReader struct {
	ctx     context.Context
	conn    *Conn
	stream  jetstream.Stream
	subject string
	next    uint64 // sequence from which to look for the next chunk
	left    uint32 // chunks
}

// chunk is the next one, io.EOF after the last.
func (r *objectReader) chunk() ([]byte, error) {
	if r.left == 0 {
		return nil, io.EOF
	}
	var msg *jetstream.RawStreamMsg
	err := patiently(r.ctx, r.stream, func() (bool, error) {
		var err error
		err = r.conn.insist(r.ctx, func(ctx context.Context) (err error) {
			msg, err = r.stream.GetMsg(ctx, max(r.next, 1), jetstream.WithGetMsgSubject(r.subject))
			return err
		})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("bus: read object: %w", err)
	}
	if msg == nil {
		return nil, ErrObjectNotFound
	}
	r.next = msg.Sequence + 1
	r.left--
	return msg.Data, nil
}
