package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/bus/gossip"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/capacity"
	"github.com/doze-run/doze/worker/code"
	"github.com/doze-run/doze/worker/instance"
	"github.com/doze-run/doze/worker/pool"
	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
)

// server answers control nodes; it implements bus.WorkerServer.
type server Worker

// Host takes in an incarnation, or says why not.
func (s *server) Host(ctx context.Context, home string, request *dozev1.HostRequest) *dozev1.HostReply {
	w := (*Worker)(s)
	refuse := func(verdict dozev1.HostReply_Verdict, format string, args ...any) *dozev1.HostReply {
		return &dozev1.HostReply{Verdict: verdict, Reason: fmt.Sprintf(format, args...)}
	}
	if _, ok := w.runtime(request.Spec.Runtime); !ok {
		return refuse(dozev1.HostReply_NO_RUNTIME, "no interpreter for %s", request.Spec.Runtime)
	}
	if w.isDraining() {
		return refuse(dozev1.HostReply_UNAVAILABLE, "this worker is draining")
	}
	if err := w.meter.Healthy(); err != nil {
		return refuse(dozev1.HostReply_UNAVAILABLE, "usage cannot be journaled: %v", err)
	}
	if err := w.pool.Host(ctx, home, request.Spec); err != nil {
		return refuse(dozev1.HostReply_UNAVAILABLE, "%v", err)
	}
	w.parking.use(request.Spec)
	return &dozev1.HostReply{Verdict: dozev1.HostReply_HOSTING}
}

// Instances lists this worker's instances of an account.
func (s *server) Instances(_ context.Context, account string) []*dozev1.InstanceInfo {
	return s.pool.Instances(account)
}

// Retire lets the instances of what has been replaced or deleted end.
func (s *server) Retire(request *dozev1.RetireRequest) {
	s.pool.Retire(request.Account, request.Function, request.Version, request.Revision)
}

// Drain implements bus.WorkerServer.
func (s *server) Drain() { (*Worker)(s).Drain() }

// Stop implements bus.WorkerServer.
func (s *server) Stop() {
	if s.members != nil {
		s.members.Update(func(n *gossip.Node) { n.Removed = true })
	}
	select {
	case s.failed <- errRemoved:
	default: // it knows
	}
}

func (w *Worker) runtime(name string) (runtimes.Runtime, bool) {
	i := slices.IndexFunc(w.found, func(r runtimes.Runtime) bool { return r.Name == name })
	if i < 0 {
		return runtimes.Runtime{}, false
	}
	return w.found[i], true
}

// launcher starts instances for the pool; it implements pool.Launcher.
type launcher Worker

// environment is one running instance and what it holds of the worker.
type environment struct {
	*instance.Instance
	code   *code.Handle
	memory *capacity.Token
}

// Release implements pool.Instance.
func (e *environment) Release() {
	e.memory.Release()
	e.code.Release()
}

// MemoryBytes is what the instance uses now; the worker's capacity learns it too.
func (e *environment) MemoryBytes() int64 {
	used := e.Instance.MemoryBytes()
	e.memory.Observe(used)
	return used
}

// Launch implements pool.Launcher.
func (l *launcher) Launch(ctx context.Context, start *pool.Start, handler instance.Handler) (pool.Instance, error) {
	w, spec := (*Worker)(l), start.Spec
	found, ok := w.runtime(spec.Runtime)
	if !ok {
		return nil, fmt.Errorf("worker: no interpreter for %s", spec.Runtime)
	}
	request := capacity.Request{
		Kind: spec.Account + "/" + spec.Function + "/" + spec.Revision, LimitBytes: int64(spec.MemoryMb) << 20,
	}
	memory, err := w.capacity.Take(request)
	if err != nil && w.parking.shrink() {
		memory, err = w.capacity.Take(request) // functions go before what waits for functions
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", pool.ErrNoMemory, err)
	}
	package_, err := w.cache.Acquire(ctx, spec.CodeSha256, spec.CodeSize)
	if err != nil {
		memory.Release()
		return nil, fmt.Errorf("worker: code: %w", err)
	}
	start.Origin.CodeCached = package_.Cached
	started, err := instance.Start(ctx, &w.options, &instance.Launch{
		ID: start.ID, Spec: spec, Runtime: found, CodeDir: package_.Dir, RequestID: start.RequestID,
		Start:       w.parking.starter(found, spec, package_.Dir, &start.Origin.Parked),
		Credentials: instance.Credentials{AccessKeyID: "DOZE" + start.ID[:8], SecretAccessKey: "none", SessionToken: "none"},
	}, handler)
	if err != nil {
		memory.Release()
		package_.Release()
		if errors.Is(err, sandbox.ErrNoMemory) {
			return nil, fmt.Errorf("%w: %w", pool.ErrNoMemory, err)
		}
		if errors.Is(err, sandbox.ErrNoEgress) {
			return nil, fmt.Errorf("%w: %w", pool.ErrNoEgress, err)
		}
		return nil, err
	}
	return &environment{Instance: started, code: package_, memory: memory}, nil
}

// objects is the code store as the cache sees it.
type objects struct{ *bus.Code }

func (o objects) GetCode(ctx context.Context, sha256 string) (io.ReadCloser, int64, error) {
	return o.Code.Get(ctx, sha256)
}
