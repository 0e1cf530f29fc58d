package gateway

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// localConn is a client connection to the service in this process. It runs the interceptor that
// the network server runs too, which grpc-gateway's in-process registration does not, and moves
// the request without copying: a code package is large.
type localConn struct {
	server    dozev1.LambdaServer
	intercept grpc.UnaryServerInterceptor
}

// Invoke implements grpc.ClientConnInterface.
func (c *localConn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	name := method[strings.LastIndexByte(method, '/')+1:]
	for i := range dozev1.Lambda_ServiceDesc.Methods {
		desc := &dozev1.Lambda_ServiceDesc.Methods[i]
		if desc.MethodName != name {
			continue
		}
		decode := func(any) error { return nil }
		// The generated handler makes an empty request; the interceptor puts ours in its place.
		answer, err := desc.Handler(c.server, ctx, decode,
			func(ctx context.Context, _ any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
				return c.intercept(ctx, args, info, handler)
			})
		if err != nil {
			return err
		}
		proto.Merge(reply.(proto.Message), answer.(proto.Message))
		return nil
	}
	return status.Errorf(codes.Unimplemented, "no method %s", method)
}

// NewStream implements grpc.ClientConnInterface. The streaming operation's REST face is a handler of
// its own, so nothing asks for one.
func (c *localConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams in process")
}
