package gateway

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/grpc"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// writeTimeout is how long one write to a client may take that does not read.
const writeTimeout = 30 * time.Second

// ListInstances implements dozev1.LambdaServer.
func (s *service) ListInstances(ctx context.Context, _ *dozev1.InstancesRequest) (*dozev1.InstancesResponse, error) {
	instances, err := s.config.Platform.Instances(ctx, exchangeOf(ctx).caller.Account)
	return &dozev1.InstancesResponse{Instances: instances}, err
}

// ListRuntimes implements dozev1.LambdaServer.
func (s *service) ListRuntimes(ctx context.Context, _ *dozev1.RuntimesRequest) (*dozev1.RuntimesResponse, error) {
	runtimes, err := s.config.Platform.Runtimes(ctx)
	return &dozev1.RuntimesResponse{Runtimes: runtimes}, err
}

// GetBill implements dozev1.LambdaServer.
func (s *service) GetBill(ctx context.Context, r *dozev1.GetBillRequest) (*dozev1.Bill, error) {
	month := r.GetMonth()
	if month == "" {
		month = s.config.Now().UTC().Format("2006-01")
	}
	return s.config.Platform.Bill(ctx, exchangeOf(ctx).caller.Account, month)
}

// GetStatus implements dozev1.LambdaServer.
func (s *service) GetStatus(ctx context.Context, r *dozev1.GetStatusRequest) (*dozev1.Status, error) {
	status, err := s.config.Platform.Status(ctx, r.GetStateHash())
	if caller := exchangeOf(ctx).caller; err == nil && caller.Role != registry.RoleRoot {
		status.Functions = int64(s.config.Registry.Usage(caller.Account).FunctionCount)
	}
	return status, err
}

// ListNodes implements dozev1.LambdaServer.
func (s *service) ListNodes(ctx context.Context, _ *dozev1.ListNodesRequest) (*dozev1.ListNodesResponse, error) {
	nodes, err := s.config.Platform.Nodes(ctx)
	return &dozev1.ListNodesResponse{Nodes: nodes}, err
}

// DrainNode implements dozev1.LambdaServer.
func (s *service) DrainNode(ctx context.Context, r *dozev1.DrainNodeRequest) (*dozev1.DrainNodeResponse, error) {
	return &dozev1.DrainNodeResponse{}, s.config.Platform.Drain(ctx, r.GetName())
}

// RemoveNode implements dozev1.LambdaServer.
func (s *service) RemoveNode(ctx context.Context, r *dozev1.RemoveNodeRequest) (*dozev1.RemoveNodeResponse, error) {
	return &dozev1.RemoveNodeResponse{}, s.config.Platform.Remove(ctx, r.GetName(), r.GetForce())
}

// TailLogs implements dozev1.LambdaServer.
func (s *service) TailLogs(r *dozev1.TailLogsRequest, stream grpc.ServerStreamingServer[dozev1.LogRecord]) error {
	return s.tail(stream.Context(), r, stream.Send)
}

// tail hands a function's log lines to send, in order.
func (s *service) tail(ctx context.Context, r *dozev1.TailLogsRequest, send func(*dozev1.LogRecord) error) error {
	t, err := s.target(ctx, r.GetFunctionName(), "")
	if err != nil {
		return err
	}
	if err := s.config.Confirm(ctx); err != nil {
		return err
	}
	if _, err := s.function(t); err != nil {
		return err
	}
	since, err := s.since(r)
	if err != nil {
		return err
	}
	return s.config.Platform.Logs(ctx, t.account, t.name, since, r.GetFollow(), send)
}

func (s *service) since(r *dozev1.TailLogsRequest) (time.Time, error) {
	now := s.config.Now()
	if r.Since == nil {
		if r.GetFollow() {
			return now, nil
		}
		return time.Time{}, nil
	}
	if back, err := time.ParseDuration(r.GetSince()); err == nil && back >= 0 {
		return now.Add(-back), nil
	}
	at, err := time.Parse(time.RFC3339Nano, r.GetSince())
	if err != nil {
		return at, faultf(codeInvalidParameter, "Value '%s' at 'since' must be a time as in RFC 3339 or a duration like 10m.", cut(r.GetSince()))
	}
	return at, nil
}

// logsRoute lets exchange.bind treat the logs' plain handler like the other operations.
func logsRoute() *route { return &route{operation: "TailLogs", verb: http.MethodGet, own: true} }

// serveLogs is the REST face of TailLogs: one JSON object a line, flushed as it comes.
func (g *Gateway) serveLogs(w http.ResponseWriter, r *http.Request, x *exchange) {
	segments, err := splitPath(r.URL.EscapedPath())
	if err == nil && len(segments) != 5 {
		err = &Fault{Code: codeUnknownOperation, Message: "No operation has this path."}
	}
	if err != nil {
		g.fail(w, "TailLogs", x, err)
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		g.fail(w, "TailLogs", x, faultf(codeValidation, "The query string is malformed: %v.", err))
		return
	}
	x.route, x.query, x.operation = logsRoute(), query, "TailLogs"
	x.params = map[string]string{"functionName": segments[3]} // the member has its JSON name there
	b := &body{r: r, control: http.NewResponseController(w), memory: g.memory, limit: maxOtherRequest, operation: "TailLogs"}
	defer b.release()
	if err := b.prove(x); err != nil {
		g.fail(w, "TailLogs", x, err)
		return
	}
	request := &dozev1.TailLogsRequest{}
	if err := x.bind(request.ProtoReflect()); err != nil {
		g.fail(w, "TailLogs", x, err)
		return
	}
	if err := g.service.authorize(x.caller, "TailLogs", request); err != nil {
		g.fail(w, "TailLogs", x, err)
		return
	}
	if err := g.validator.check(request); err != nil {
		g.fail(w, "TailLogs", x, err)
		return
	}
	control := http.NewResponseController(w)
	started := false
	start := func() {
		if !started {
			started = true
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.WriteHeader(http.StatusOK)
		}
	}
	var line []byte
	send := func(record *dozev1.LogRecord) error {
		start()
		line = append(appendMessage(line[:0], record.ProtoReflect()), '\n')
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := w.Write(line); err != nil {
			return err
		}
		if request.GetFollow() {
			return control.Flush()
		}
		return nil
	}
	ctx := withExchange(r.Context(), x)
	err = g.service.tail(ctx, request, send)
	switch {
	case err == nil:
		start()
	case !started:
		g.fail(w, "TailLogs", x, err)
	case ctx.Err() == nil:
		// Too late for a status: the missing end of the chunked body tells the client.
		g.logFailure("TailLogs", x, err)
		panic(http.ErrAbortHandler)
	}
}
