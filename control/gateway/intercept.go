package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// metadataRequestID is the response header that carries the request's id over gRPC.
const metadataRequestID = "x-amzn-requestid"

// unary is what every operation runs through, whichever edge it came from: binding of what REST
// has outside the body, validation, and no panic that ends the process.
func (g *Gateway) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
	x := exchangeOf(ctx)
	defer func() {
		if p := recover(); p != nil {
			g.config.Logger.Error("operation panicked", "method", info.FullMethod, "requestId", x.id.String(), "panic", p, "stack", string(debug.Stack()))
			answer, err = nil, fmt.Errorf("panic: %v", p)
		}
	}()
	m, ok := request.(proto.Message)
	if !ok {
		return handler(ctx, request)
	}
	if x.route != nil {
		if err := x.bind(m.ProtoReflect()); err != nil {
			return nil, err
		}
	}
	x.operation = path.Base(info.FullMethod)
	if err := g.service.authorize(x.caller, x.operation, m); err != nil {
		return nil, err
	}
	if err := g.validator.check(m); err != nil {
		return nil, err
	}
	if readsState(info.FullMethod) {
		if err := g.config.Confirm(ctx); err != nil {
			return nil, err
		}
	}
	return handler(ctx, request)
}

// readsState tells whether an operation is about functions: then it must see what was acknowledged by
// any node. Invoke goes by what this node knows, and asks only before it says that there is no such
// function; the platform's own operations say how this node sees things.
func readsState(method string) bool {
	switch method {
	case dozev1.Lambda_Invoke_FullMethodName, dozev1.Lambda_GetStatus_FullMethodName, dozev1.Lambda_ListInstances_FullMethodName,
		dozev1.Lambda_ListRuntimes_FullMethodName, dozev1.Lambda_GetBill_FullMethodName:
		return false
	}
	return true
}

// unaryLocal serves REST: the front has made the exchange, and faults go back as they are.
func (g *Gateway) unaryLocal(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	return g.unary(ctx, request, info, handler)
}

// unaryNetwork serves gRPC: it makes the exchange and turns faults into statuses.
func (g *Gateway) unaryNetwork(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if _, ours := info.Server.(*service); !ours {
		return handler(ctx, request) // health, reflection
	}
	ctx, x, err := g.accept(ctx, info.FullMethod)
	if err != nil {
		return nil, g.statusError(info.FullMethod, x, err)
	}
	answer, err := g.unary(ctx, request, info, handler)
	// After the operation, which may have come to another id (a stored event's). It fails only when
	// headers were sent already, which none were.
	_ = grpc.SetHeader(ctx, metadata.Pairs(metadataRequestID, x.id.String()))
	if err != nil {
		return nil, g.statusError(info.FullMethod, x, err)
	}
	return answer, nil
}

// stream serves gRPC's streaming operations. Their one request is checked when it is received.
func (g *Gateway) stream(server any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	if _, ours := server.(*service); !ours {
		return handler(server, ss)
	}
	ctx, x, err := g.accept(ss.Context(), info.FullMethod)
	if err != nil {
		return g.statusError(info.FullMethod, x, err)
	}
	defer func() {
		if p := recover(); p != nil {
			g.config.Logger.Error("operation panicked", "method", info.FullMethod, "requestId", x.id.String(), "panic", p, "stack", string(debug.Stack()))
			err = g.statusError(info.FullMethod, x, fmt.Errorf("panic: %v", p))
		}
	}()
	_ = ss.SetHeader(metadata.Pairs(metadataRequestID, x.id.String()))
	if err := handler(server, &checkedStream{ServerStream: ss, ctx: ctx, gateway: g, operation: path.Base(info.FullMethod)}); err != nil {
		return g.statusError(info.FullMethod, x, err)
	}
	return nil
}

// checkedStream authorizes and validates what it receives.
type checkedStream struct {
	grpc.ServerStream
	ctx       context.Context
	gateway   *Gateway
	operation string
}

// Context implements grpc.ServerStream.
func (s *checkedStream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if m, ok := m.(proto.Message); ok {
		x := exchangeOf(s.ctx)
		x.operation = s.operation
		if err := s.gateway.service.authorize(x.caller, x.operation, m); err != nil {
			return err
		}
		return s.gateway.validator.check(m)
	}
	return nil
}

// accept makes the exchange of a gRPC request and asks who calls. x is there even with an error.
func (g *Gateway) accept(ctx context.Context, method string) (context.Context, *exchange, error) {
	x := &exchange{id: newRequestID(), baseURL: g.config.BaseURL}
	caller, err := g.config.Authenticator.GRPC(ctx, method)
	if err != nil {
		return ctx, x, err
	}
	x.caller = caller
	return withExchange(ctx, x), x, nil
}

// statusError is err as a gRPC status with an ErrorDetail; the platform's own failures are logged.
func (g *Gateway) statusError(method string, x *exchange, err error) error {
	f, known := faultOf(err)
	if !known {
		g.logFailure(method, x, err)
	}
	return f.status(x.id).Err()
}

func (g *Gateway) logFailure(operation string, x *exchange, err error) {
	g.config.Logger.LogAttrs(context.Background(), slog.LevelError, "operation failed",
		slog.String("operation", operation), slog.String("requestId", x.id.String()), slog.String("account", x.caller.Account), slog.Any("error", err))
}
