package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// caller makes one call at a time over one keep-alive connection: for cold calls, where the
// connection must not be part of the figure.
type caller struct {
	conn net.Conn
	in   []byte
}

func dialCaller(ctx context.Context, addr string) (*caller, error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &caller{conn: conn, in: make([]byte, 0, 16<<10)}, nil
}

func (c *caller) close() { _ = c.conn.Close() }

// call sends a request and waits for its answer, for at most longest. body is valid until the next call.
func (c *caller) call(ctx context.Context, request []byte) (r response, took time.Duration, err error) {
	end := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer end()
	start := time.Now()
	if err := c.conn.SetDeadline(start.Add(longest)); err != nil {
		return r, 0, err
	}
	if _, err := c.conn.Write(request); err != nil {
		return r, 0, err
	}
	c.in = c.in[:0]
	for {
		if len(c.in) == cap(c.in) {
			c.in = append(c.in, make([]byte, cap(c.in))...)[:len(c.in)]
		}
		n, err := c.conn.Read(c.in[len(c.in):cap(c.in)])
		c.in = c.in[:len(c.in)+n]
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return r, 0, fmt.Errorf("call: %w", err)
		}
		r, used, err := parseResponse(c.in)
		if err != nil {
			return r, 0, err
		}
		if used > 0 {
			return r, time.Since(start), nil
		}
	}
}

// get is a bare GET, to have the connection warm before a call that is timed.
func (c *caller) get(ctx context.Context, host, path string) (response, error) {
	r, _, err := c.call(ctx, fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host))
	return r, err
}
