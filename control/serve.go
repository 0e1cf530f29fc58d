package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/doze-run/doze/bus"
)

// serve answers on both listeners until Close.
func (c *Control) serve() error {
	c.http, c.grpc = c.gateway.HTTPServer(), c.gateway.GRPC()
	c.running.Go(func() {
		if err := c.http.Serve(c.config.HTTP); !errors.Is(err, http.ErrServerClosed) {
			c.fail(fmt.Errorf("control: http: %w", err))
		}
	})
	c.running.Go(func() {
		if err := c.grpc.Serve(c.config.GRPC); err != nil {
			c.fail(fmt.Errorf("control: grpc: %w", err))
		}
	})
	return nil
}

// fail reports what keeps the node from going on; the first is what counts.
func (c *Control) fail(err error) {
	select {
	case c.failed <- err:
	default:
	}
}

// Failed is sent what keeps the node from going on.
func (c *Control) Failed() <-chan error { return c.failed }

// Name is this node's name.
func (c *Control) Name() string {
	if c.config.Cluster != nil {
		return c.config.Cluster.Name
	}
	return aloneName
}

// Bus is the embedded server, for a worker in the same process.
func (c *Control) Bus() *bus.Server { return c.streams }

// WaitWorker returns when a worker takes calls.
func (c *Control) WaitWorker(ctx context.Context) error {
	if err := c.placement.WaitWorker(ctx); err != nil {
		return fmt.Errorf("control: no worker reported: %w", err)
	}
	return nil
}

// StopTraffic takes no more requests and lets those that run end, until ctx does. Events are kept
// for later. A worker in the same process is closed after this and before Close.
//
// A node of a cluster drains first, and goes on taking requests for the notice that load balancers need;
// at its end nothing is left in its queues and it leads nothing.
func (c *Control) StopTraffic(ctx context.Context) error {
	c.Drain()
	if c.members != nil {
		select {
		case <-time.After(c.config.Cluster.Notice):
		case <-ctx.Done():
		}
	}
	quiesce(c.config.HTTP, c.config.GRPC)
	c.waitRead(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.grpc.GracefulStop()
	}()
	err := errors.Join(c.http.Shutdown(ctx), c.pollers.Stop(ctx))
	select {
	case <-stopped:
	case <-ctx.Done():
		c.grpc.Stop()
		<-stopped
	}
	if c.members == nil {
		return err
	}
	if err := c.waitEmpty(ctx); err != nil {
		c.config.Logger.Warn("calls are left in this node's queues: who asked publishes them elsewhere", "err", err)
	}
	if err := c.handOver(ctx); err != nil {
		c.config.Logger.Warn("this node stops and leads something yet: others will find out", "err", err)
	}
	return err
}

const (
	// readLimit bounds how long connections without a request are waited for: what is sent over one of them
	// after that is lost. readPause is how often they are counted.
	readLimit = time.Second
	readPause = 2 * time.Millisecond
)

// waitRead returns when every connection has its request handled, which is its last, or after a while.
func (c *Control) waitRead(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	for c.gateway.Unread() > 0 && ctx.Err() == nil {
		time.Sleep(readPause)
	}
}

// Close ends the node, last what everything else stands on. Errors of connections that were still
// open are not errors.
func (c *Control) Close(ctx context.Context) error {
	if c.http != nil {
		_ = c.http.Close()
		c.grpc.Stop()
	}
	return c.unwind(ctx)
}

func (c *Control) unwind(ctx context.Context) error {
	c.stop()
	c.running.Wait()
	var failures []error
	for i := len(c.closers) - 1; i >= 0; i-- {
		failures = append(failures, c.closers[i](ctx))
	}
	c.closers = nil
	return errors.Join(failures...)
}

// codeStore hands the gateway its code packages.
type codeStore struct{ *bus.Objects }

func (s codeStore) Put(ctx context.Context, sha256 string, zip []byte) error {
	return s.Objects.Put(ctx, sha256, bytes.NewReader(zip))
}
