package bus

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// A worker asks control nodes for code, piece by piece, and not the object store: whoever may read that may
// read all packages, while a control node gives a package only to who knows its SHA-256, and a worker is
// told the SHA-256 of what it is to host.
//
// A request is the hash in hex and a sequence, 8 bytes. 0 asks for the head: size and number of chunks, 8
// bytes each. Any other asks for the first chunk from there on, and the answer is where to go on, 8 bytes,
// and the chunk.
const (
	shaHexLen = 2 * sha256.Size
	// codeServing bounds how many requests one control node works on at once.
	codeServing = 64
	// codeTry is how long one control node may take for a piece, codePause the wait between two tries.
	codeTry   = 3 * time.Second
	codePause = 50 * time.Millisecond
	// codeGroup is the control nodes: one of them answers.
	codeGroup = "code"
	// codeGone is the code of a refusal: there is no such object.
	codeGone = "gone"
)

// ServeCode answers workers until stop, which waits for what runs. Each control node does.
func (c *Conn) ServeCode() (stop func() error, err error) {
	objects := c.Objects()
	ctx, cancel := context.WithCancel(context.Background())
	room := make(chan struct{}, codeServing)
	var running sync.WaitGroup
	sub, err := c.nc.QueueSubscribe(subjectCode+".*", codeGroup, func(m *nats.Msg) {
		room <- struct{}{}
		running.Go(func() {
			defer func() { <-room }()
			try, cancel := context.WithTimeout(ctx, codeTry)
			defer cancel()
			reply := nats.NewMsg(m.Reply)
			var err error
			if reply.Data, err = objects.piece(try, m.Data); err != nil {
				reply.Header.Set(headerError, err.Error())
				if errors.Is(err, ErrObjectNotFound) {
					reply.Header.Set(headerCode, codeGone)
				}
			}
			if err := m.RespondMsg(reply); err != nil {
				c.log.Warn("bus: give code", "err", err)
			}
		})
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("bus: serve code: %w", err)
	}
	return func() error {
		err := sub.Unsubscribe()
		cancel()
		running.Wait()
		return err
	}, nil
}

// piece answers one request.
func (o *Objects) piece(ctx context.Context, request []byte) ([]byte, error) {
	if len(request) != shaHexLen+8 {
		return nil, errors.New("bus: malformed request for code")
	}
	object, size, err := o.open(ctx, string(request[:shaHexLen]))
	if err != nil {
		return nil, err
	}
	object.next = binary.BigEndian.Uint64(request[shaHexLen:])
	if object.next == 0 {
		head := binary.BigEndian.AppendUint64(nil, uint64(size))
		return binary.BigEndian.AppendUint64(head, uint64(object.left)), nil
	}
	if object.left == 0 {
		return nil, ErrObjectNotFound
	}
	chunk, err := object.chunk()
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint64(nil, object.next), chunk...), nil
}

// Code is the object store as a worker sees it: what it knows the hash of. Its methods may be called from
// many goroutines.
type Code struct{ c *Conn }

// Code returns the way to the code that control nodes give.
func (c *Conn) Code() *Code { return &Code{c} }

// Get returns a reader of an object's bytes and their number, as Objects.Get does.
func (k *Code) Get(ctx context.Context, sha string) (io.ReadCloser, int64, error) {
	if err := checkSHA(sha); err != nil {
		return nil, 0, err
	}
	head, err := k.piece(ctx, sha, 0)
	if err != nil {
		return nil, 0, err
	}
	if len(head) != 16 {
		return nil, 0, errors.New("bus: malformed answer about code")
	}
	size, chunks := binary.BigEndian.Uint64(head), binary.BigEndian.Uint64(head[8:])
	if size > MaxObjectBytes {
		return nil, 0, ErrObjectTooLarge
	}
	r := &codeReader{ctx: ctx, code: k, sha: sha, next: 1, chunks: chunks, left: int64(size)}
	return newHashedReader(sha, r.chunk), int64(size), nil
}

// piece asks until there is an answer, for as long as a stream may be without a leader.
func (k *Code) piece(ctx context.Context, sha string, sequence uint64) ([]byte, error) {
	request := binary.BigEndian.AppendUint64([]byte(sha), sequence)
	for begun := time.Now(); ; {
		try, cancel := context.WithTimeout(ctx, codeTry)
		m, err := k.c.nc.RequestWithContext(try, subjectCode+"."+k.c.name, request)
		cancel()
		if err == nil {
			text := m.Header.Get(headerError)
			switch {
			case text == "":
				return m.Data, nil
			case m.Header.Get(headerCode) == codeGone:
				return nil, ErrObjectNotFound
			}
			err = errors.New(text)
		}
		if ctx.Err() != nil || time.Since(begun) > leaderPatience {
			return nil, fmt.Errorf("bus: ask for code: %w", err)
		}
		select {
		case <-time.After(codePause):
		case <-ctx.Done():
			return nil, fmt.Errorf("bus: ask for code: %w", err)
		}
	}
}

// codeReader asks for one chunk at a time.
type codeReader struct {
	ctx    context.Context
	code   *Code
	sha    string
	next   uint64
	chunks uint64 // that are to come
	left   int64  // bytes
}

// chunk is the next one, io.EOF after the last.
func (r *codeReader) chunk() ([]byte, error) {
	if r.chunks == 0 {
		if r.left != 0 {
			return nil, ErrObjectHash
		}
		return nil, io.EOF
	}
	answer, err := r.code.piece(r.ctx, r.sha, r.next)
	if err != nil {
		return nil, err
	}
	if len(answer) < 8 || int64(len(answer)-8) > r.left {
		return nil, ErrObjectHash
	}
	r.next = binary.BigEndian.Uint64(answer)
	r.chunks--
	r.left -= int64(len(answer) - 8)
	return answer[8:], nil
}
