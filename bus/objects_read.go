package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
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
	return &objectReader{
		ctx: ctx, conn: o.c, stream: stream, subject: chunkSubject(found.info.NUID),
		left: found.info.Chunks, sha: sha, digest: sha256.New(),
	}, int64(found.info.Size), nil
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
	rest    []byte // of the chunk at hand
	sha     string
	digest  hash.Hash
	err     error
}

func (r *objectReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		r.err = r.fetch()
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *objectReader) fetch() error {
	if r.left == 0 {
		if hex.EncodeToString(r.digest.Sum(nil)) != r.sha {
			return ErrObjectHash
		}
		return io.EOF
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
		return fmt.Errorf("bus: read object: %w", err)
	}
	if msg == nil {
		return ErrObjectNotFound
	}
	r.next, r.rest = msg.Sequence+1, msg.Data
	r.left--
	r.digest.Write(msg.Data)
	return nil
}

// Close ends reading.
func (r *objectReader) Close() error {
	r.rest, r.err = nil, errors.New("bus: read of a closed object")
	return nil
}
