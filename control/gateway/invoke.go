package gateway

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// pendingWait is how long a call waits for a function that is still being created, so that a
	// deploy that is at once followed by a call does not fail; pendingPoll is how often it looks.
	pendingWait = 2 * time.Second
	pendingPoll = 5 * time.Millisecond
	// maxClientContext bounds X-Amz-Client-Context, in bytes of base64 (AWS: 3583).
	maxClientContext = 3583
	// maxTrace bounds X-Amzn-Trace-Id.
	maxTrace = 512
)

// Types of an invocation.
const (
	typeRequestResponse = "RequestResponse"
	typeEvent           = "Event"
	typeDryRun          = "DryRun"
)

// invocation is one Invoke, from either edge, before its function is known.
type invocation struct {
	id            requestID
	caller        Identity
	name          string
	qualifier     string
	kind          string
	tail          bool
	clientContext string
	trace         string
	payload       []byte
}

// invoke resolves, checks and runs one invocation. The answer is nil unless it was a
// RequestResponse.
func (s *service) invoke(ctx context.Context, in *invocation) (*invoke.Answer, error) {
	t, err := s.invokeTarget(ctx, in)
	if err != nil {
		return nil, err
	}
	f, v, err := s.invocable(ctx, t)
	if err != nil {
		return nil, err
	}
	if in.kind == typeDryRun {
		return nil, nil
	}
	payload, err := checkPayload(in.payload)
	if err != nil {
		return nil, err
	}
	clientContext, err := decodeClientContext(in.clientContext)
	if err != nil {
		return nil, err
	}
	if len(in.trace) > maxTrace {
		in.trace = ""
	}
	if in.kind == typeEvent {
		event := &invoke.Event{
			RequestID: in.id, Function: f, Version: v, Qualifier: t.qualifier,
			Payload: payload, ClientContext: clientContext, TraceID: in.trace,
		}
		if err := s.config.Invoker.Enqueue(ctx, event); err != nil {
			return nil, s.invokeFault(in, err)
		}
		in.id = event.RequestID
		return nil, nil
	}
	answer, err := s.config.Invoker.Invoke(ctx, &invoke.Call{
		RequestID: in.id, Function: f, Version: v,
		InvokedARN: s.arn(t.account, t.name, t.qualifier), Qualifier: t.qualifier,
		Payload: payload, ClientContext: clientContext, TraceID: in.trace, Tail: in.tail,
	})
	if err != nil {
		return nil, s.invokeFault(in, err)
	}
	return answer, nil
}

// invokeTarget is target with a short way for plain names, and with a way to functions of other
// accounts whose policy allows it.
func (s *service) invokeTarget(ctx context.Context, in *invocation) (target, error) {
	if registry.IsName(in.name) {
		return target{account: in.caller.Account, name: in.name, qualifier: in.qualifier}, nil
	}
	t, err := s.named(ctx, in.name, in.qualifier)
	if err == nil && t.account != in.caller.Account {
		if in.caller.KeyID == "" {
			return t, s.notFound(t)
		}
		err = s.admit(in.caller, t)
	}
	return t, err
}

// invocable finds what to run, and waits a little while for one that is still being created.
func (s *service) invocable(ctx context.Context, t target) (*registry.Function, *registry.Version, error) {
	draw := rand.Float64()
	f, v, ok := s.config.Registry.Route(t.account, t.name, t.qualifier, draw)
	if ok && v.State == registry.StateActive {
		return f, v, nil
	}
	if !ok {
		// This node may be behind.
		if err := s.config.Confirm(ctx); err != nil {
			return nil, nil, err
		}
		f, v, ok = s.config.Registry.Resolve(t.account, t.name, t.qualifier)
	}
	if ok && v.State == registry.StatePending {
		f, v, ok = s.awaitActive(ctx, t, draw)
	}
	if !ok {
		if t.qualifier == "" {
			t.qualifier = registry.Latest
		}
		return nil, nil, s.notFound(t)
	}
	if v.State != registry.StateActive {
		return nil, nil, faultf(codeConflict, "The operation cannot be performed at this time. The function is currently in the following state: %s", v.State)
	}
	return f, v, nil
}

func (s *service) awaitActive(ctx context.Context, t target, draw float64) (*registry.Function, *registry.Version, bool) {
	deadline := time.NewTimer(pendingWait)
	defer deadline.Stop()
	poll := time.NewTicker(pendingPoll)
	defer poll.Stop()
	for {
		f, v, ok := s.config.Registry.Route(t.account, t.name, t.qualifier, draw)
		if !ok || v.State != registry.StatePending {
			return f, v, ok
		}
		select {
		case <-poll.C:
		case <-deadline.C:
			return f, v, ok
		case <-ctx.Done():
			return f, v, ok
		}
	}
}

// checkPayload holds a payload to JSON's grammar without building anything from it.
func checkPayload(payload []byte) ([]byte, error) {
	if len(payload) == 0 {
		return []byte("{}"), nil
	}
	switch {
	case !utf8.Valid(payload): // which json.Valid lets pass in strings
		return nil, faultf(codeInvalidContent, "Could not parse request body into json: Could not parse payload into json: Invalid UTF-8")
	case json.Valid(payload):
		return payload, nil
	}
	detail := "invalid JSON"
	var nothing json.RawMessage
	if err := json.Unmarshal(payload, &nothing); err != nil {
		detail = err.Error()
	}
	return nil, faultf(codeInvalidContent, "Could not parse request body into json: Could not parse payload into json: %s", detail)
}

func decodeClientContext(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxClientContext {
		return nil, faultf(codeInvalidContent, "Client context must be no more than %d bytes.", maxClientContext)
	}
	decoded, err := base64.StdEncoding.DecodeString(text)
	var object map[string]json.RawMessage
	if err != nil || json.Unmarshal(decoded, &object) != nil {
		return nil, &Fault{Code: codeInvalidContent, Message: "Client context must be a valid Base64-encoded JSON object."}
	}
	return decoded, nil
}

// invokeFault words the invoker's refusals as AWS does.
func (s *service) invokeFault(in *invocation, err error) error {
	var throttled *invoke.Throttled
	var noRuntime *invoke.InvalidRuntime
	var noEgress *invoke.NoEgress
	var unavailable *invoke.Unavailable
	switch {
	case errors.As(err, &throttled):
		return &Fault{Code: codeTooMany, Message: messageRate, Reason: throttled.Reason, RetryAfter: throttled.RetryAfter}
	case errors.As(err, &noRuntime):
		return &Fault{Code: codeInvalidRuntime, Message: noRuntime.Message}
	case errors.As(err, &noEgress):
		s.config.Logger.LogAttrs(context.Background(), slog.LevelWarn, "call failed",
			slog.String("requestId", in.id.String()), slog.String("function", in.name), slog.Any("error", noEgress.Err))
		return &Fault{Code: codeNetwork, Message: "The worker has no network that reaches outside, which the function is to have (Network: egress). `doze status` tells what it lacks."}
	case errors.Is(err, invoke.ErrEventsFull):
		return &Fault{Code: codeTooMany, Message: messageRate, Reason: invoke.ReasonConcurrent, RetryAfter: time.Second}
	case errors.As(err, &unavailable):
		s.config.Logger.LogAttrs(context.Background(), slog.LevelWarn, "call failed",
			slog.String("requestId", in.id.String()), slog.String("function", in.name), slog.Bool("ran", unavailable.Ran), slog.Any("error", unavailable.Err))
		if outage := (*Outage)(nil); errors.As(err, &outage) {
			return err
		}
		if unavailable.Ran {
			return &Fault{Code: codeService, Message: "The platform lost the call while the function may have been running."}
		}
		return &Fault{Code: codeService, Message: "The platform could not run the call; the function has not seen it."}
	}
	return err
}

// Invoke implements dozev1.LambdaServer: the gRPC face.
func (s *service) Invoke(ctx context.Context, r *dozev1.InvokeRequest) (*dozev1.InvokeResponse, error) {
	if err := refuseInvokeMembers(r); err != nil {
		return nil, err
	}
	x := exchangeOf(ctx)
	in := &invocation{
		id: x.id, caller: x.caller, name: r.GetFunctionName(), qualifier: r.GetQualifier(),
		kind: r.GetInvocationType(), tail: r.GetLogType() == "Tail",
		clientContext: r.GetClientContext(), payload: r.GetPayload(),
	}
	if in.kind == "" {
		in.kind = typeRequestResponse
	}
	if limit := payloadLimit(in.kind); len(in.payload) > limit {
		return nil, payloadTooLarge(limit)
	}
	answer, err := s.invoke(ctx, in)
	if err != nil {
		return nil, err
	}
	x.id = in.id
	switch in.kind {
	case typeDryRun:
		return &dozev1.InvokeResponse{StatusCode: ptr(int32(http.StatusNoContent))}, nil
	case typeEvent:
		return &dozev1.InvokeResponse{StatusCode: ptr(int32(http.StatusAccepted))}, nil
	}
	// Beside AWS's members: where the time went. It fails only when headers were sent already.
	_ = grpc.SetHeader(ctx, metadata.Pairs(
		"x-doze-cold", strconv.FormatBool(answer.Cold),
		"x-doze-timing", timing(answer),
		"x-doze-instance", answer.Instance,
	))
	out := &dozev1.InvokeResponse{
		StatusCode:      ptr(int32(http.StatusOK)),
		ExecutedVersion: &answer.ExecutedVersion,
		FunctionError:   optional(answer.FunctionError),
		Payload:         answer.Payload,
	}
	if in.tail {
		out.LogResult = ptr(base64.StdEncoding.EncodeToString(answer.LogTail))
	}
	return out, nil
}

func refuseInvokeMembers(r *dozev1.InvokeRequest) error {
	switch {
	case r.DurableExecutionName != nil:
		return notOffered("DurableExecutionName", "durable executions")
	case r.TenantId != nil:
		return notOffered("TenantId", "tenant isolation")
	}
	return nil
}

func payloadLimit(kind string) int {
	if kind == typeEvent {
		return maxInvokeEvent
	}
	return maxInvoke
}

func payloadTooLarge(limit int) error {
	return faultf(codeTooLarge, "Request must be smaller than %d bytes for the InvokeFunction operation", limit)
}
