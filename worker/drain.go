package worker

import (
	"context"
	"errors"
	"sync"
)

// errRemoved is why a worker stops that was removed.
var errRemoved = errors.New("worker: an operator has removed this node from its cluster (doze node remove)")

// draining is the end of a worker's calls, which begins once: when an operator asks for it, or when the
// worker is closed.
type draining struct {
	once sync.Once
	// late cuts off what still runs.
	late  context.CancelFunc
	begun chan struct{}
	ended chan struct{} // closed when no instance is left
}

func newDraining() draining {
	return draining{late: func() {}, begun: make(chan struct{}), ended: make(chan struct{})}
}

// Drain has the worker take nothing new and lets what it has come to its end, without a bound. It does not
// wait. The worker goes on reporting, and answers who asks whether it is there: callers would take their
// calls for lost otherwise. Only Close ends it.
func (w *Worker) Drain() {
	w.drain.once.Do(func() {
		ctx, late := context.WithCancel(context.Background())
		w.drain.late = late
		close(w.drain.begun)
		go func() {
			defer close(w.drain.ended)
			if err := w.pool.Close(ctx); err != nil {
				w.config.Logger.Warn("drain", "err", err)
			}
		}()
		w.config.Logger.Info("draining: nothing new is taken, what runs may end")
		w.tell()
	})
}

// endCalls drains, and cuts off what still runs when ctx ends.
func (w *Worker) endCalls(ctx context.Context) error {
	w.Drain()
	select {
	case <-w.drain.ended:
	case <-ctx.Done():
		w.drain.late()
		<-w.drain.ended
	}
	return nil
}

// Failed is sent what keeps the worker from going on.
func (w *Worker) Failed() <-chan error { return w.failed }

func (w *Worker) isDraining() bool { return isClosed(w.drain.begun) }

// isDrained says that nothing is left: no instance, and no usage that the ledger does not have.
func (w *Worker) isDrained() bool { return isClosed(w.drain.ended) && w.meter.Lag() == 0 }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
