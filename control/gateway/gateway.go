// Package gateway is Doze's edge: the AWS Lambda API over REST and the same operations over gRPC.
//
// It knows AWS's wire: paths, members, statuses, error texts. It reads the registry's local state,
// proposes changes, and hands calls to an Invoker. It must not know Raft, NATS, workers or how a
// call finds an instance: what it needs of those is in its own small interfaces.
package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Registry is the local copy of the replicated state; *registry.State is one.
type Registry interface {
	Function(account, name string) (*registry.Function, bool)
	// Resolve answers the function alone, and false, when only the qualifier does not resolve.
	Resolve(account, name, qualifier string) (*registry.Function, *registry.Version, bool)
	// Route is Resolve for a call: draw, from [0, 1), chooses between the two versions of an alias.
	Route(account, name, qualifier string, draw float64) (*registry.Function, *registry.Version, bool)
	List(account, after string, max int) (page []*registry.Function, more bool)
	Usage(account string) registry.Usage
	UnreservedConcurrency(account string) int
	AccessKey(id string) (*registry.AccessKey, bool)
	// AccessKeys are an account's, everybody's for "", by id.
	AccessKeys(account string) []*registry.AccessKey
}

// Proposer changes the replicated state. When Propose answers without error the change is
// durable and the local Registry shows it. The error of a refused command is (in the sense of
// errors.Is) one of package registry's; the answer is what the command documents.
type Proposer interface {
	Propose(ctx context.Context, command registry.Command) (any, error)
}

// CodeStore keeps code packages by the lower-case hex of their SHA-256.
type CodeStore interface {
	// Put stores a package. Storing one that is there already changes nothing and is no error.
	Put(ctx context.Context, sha256 string, zip []byte) error
	// Get opens a package; the size is in bytes. The caller closes it.
	Get(ctx context.Context, sha256 string) (io.ReadCloser, int64, error)
}

// Invoker runs calls and accepts events. See package invoke for its errors.
type Invoker interface {
	// Invoke runs one call to its end. When ctx ends the caller has gone: a call that was not yet
	// granted to a worker is withdrawn; one that runs goes on, and what the invoker keeps about it
	// is kept until it ends.
	Invoke(ctx context.Context, call *invoke.Call) (*invoke.Answer, error)
	// Enqueue answers when the event is stored durably.
	Enqueue(ctx context.Context, event *invoke.Event) error
}

// Platform is what Doze's own operations show.
type Platform interface {
	Instances(ctx context.Context, account string) ([]*dozev1.Instance, error)
	Runtimes(ctx context.Context) ([]*dozev1.Runtime, error)
	// Bill is the statement of a month, "2024-05", in UTC.
	Bill(ctx context.Context, account, month string) (*dozev1.Bill, error)
	// Status tells the hash of the replicated state, too, if asked.
	Status(ctx context.Context, stateHash bool) (*dozev1.Status, error)
	// Nodes lists the cluster's nodes, as this one sees them.
	Nodes(ctx context.Context) ([]*dozev1.Node, error)
	// Drain tells a node to take nothing new; Remove takes one out of the cluster, with force one that is
	// there. They refuse with a *Fault.
	Drain(ctx context.Context, name string) error
	Remove(ctx context.Context, name string, force bool) error
	// Logs hands over a function's lines in order, from since (the zero time: all that is kept) until
	// there are no more, or, with follow, until ctx ends. An error of fn ends it.
	Logs(ctx context.Context, account, function string, since time.Time, follow bool, fn func(*dozev1.LogRecord) error) error
}

// DevAccount is the account of `doze dev`.
const DevAccount = "000000000000"

// Config is what a gateway is made of. All interfaces are required.
type Config struct {
	Registry      Registry
	Proposer      Proposer
	Code          CodeStore
	Invoker       Invoker
	Platform      Platform
	Authenticator Authenticator
	// Archive backs up and restores; nil: neither is offered.
	Archive Archive
	// Cipher seals the secrets of new access keys.
	Cipher Cipher
	// Region is the one that ARNs of functions here carry; "us-east-1" when empty.
	Region string
	// BaseURL is how clients reach the HTTP side, for links that are asked for over gRPC.
	BaseURL string
	// Metrics serves the figures of this node; nil for none.
	Metrics http.Handler
	// Ready answers nil when calls can be served, else why not. nil means always.
	Ready func() error
	// Confirm returns when the Registry holds every change that was acknowledged before; nil when it
	// always does. Its error should be an *Outage.
	Confirm func(ctx context.Context) error
	// BodyMemory bounds the bytes of large request bodies held at once; 512 MB when 0.
	BodyMemory int64
	// Logger is required.
	Logger *slog.Logger
	// Now is the wall clock; time.Now when nil.
	Now func() time.Time
}

const (
	defaultRegion     = "us-east-1"
	defaultBodyMemory = 512 << 20
	// maxMessage is gRPC's bound on a message: a code package with room for the rest.
	maxMessage = 72 << 20
	// maxStreams bounds the calls at once on one gRPC connection.
	maxStreams = 1000
	// headerTimeout is how long a client may take over its request's headers.
	headerTimeout = 10 * time.Second
	// idleTimeout is how long a connection may wait for its next request.
	idleTimeout = 120 * time.Second
	// maxHeader bounds a request's headers in bytes.
	maxHeader = 64 << 10
)

// Gateway serves both edges. It holds no state that must survive it.
type Gateway struct {
	config     Config
	service    *service
	validator  *validator
	router     *router
	mux        *runtime.ServeMux
	grpcServer *grpc.Server
	health     *health.Server
	memory     *bodyMemory
	leaving    atomic.Bool
	// connections are the open ones over HTTP, requests those of them whose request is being handled.
	connections, requests atomic.Int64
}

// Open makes a gateway. Nothing listens yet: see Handler, HTTPServer and GRPC.
func Open(config Config) (*Gateway, error) {
	switch {
	case config.Registry == nil || config.Proposer == nil || config.Code == nil:
		return nil, errors.New("gateway: needs a registry, a proposer and a code store")
	case config.Invoker == nil || config.Platform == nil || config.Authenticator == nil || config.Cipher == nil || config.Logger == nil:
		return nil, errors.New("gateway: needs an invoker, a platform, an authenticator, a cipher and a logger")
	}
	if config.Region == "" {
		config.Region = defaultRegion
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.BodyMemory == 0 {
		config.BodyMemory = defaultBodyMemory
	}
	if config.Confirm == nil {
		config.Confirm = func(context.Context) error { return nil }
	}
	if config.Ready == nil {
		config.Ready = func() error { return nil }
	}
	descriptor := dozev1.File_doze_v1_api_proto.Services().ByName("Lambda")
	validator, err := newValidator(descriptor)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	router, err := newRouter(descriptor)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g := &Gateway{config: config, validator: validator, router: router, memory: newBodyMemory(config.BodyMemory)}
	g.service = &service{config: config, linkKey: make([]byte, 32)}
	_, _ = rand.Read(g.service.linkKey)
	g.service.runtimes = validator.shapes[dozev1.Shape_SHAPE_RUNTIME].GetValues()

	g.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, awsJSON{}),
		runtime.SetQueryParameterParser(boundByUs{}),
		runtime.WithErrorHandler(g.handleError),
		runtime.WithRoutingErrorHandler(g.handleRoutingError),
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithWriteContentLength(),
	)
	local := &localConn{server: g.service, intercept: g.unaryLocal}
	if err := dozev1.RegisterLambdaHandlerClient(context.Background(), g.mux, dozev1.NewLambdaClient(local)); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}

	g.grpcServer = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(headerTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.ChainUnaryInterceptor(g.unaryNetwork),
		grpc.ChainStreamInterceptor(g.stream),
	)
	dozev1.RegisterLambdaServer(g.grpcServer, g.service)
	g.health = health.NewServer()
	g.health.SetServingStatus(dozev1.Lambda_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(g.grpcServer, g.health)
	reflection.Register(g.grpcServer)
	return g, nil
}

// Handler is the HTTP side, for a server of the caller's.
func (g *Gateway) Handler() http.Handler { return http.HandlerFunc(g.serveHTTP) }

// HTTPServer is a server for Handler with the limits a public edge needs: time to send headers, their
// size, idle connections. How long a body may take is the handler's to say, per operation.
func (g *Gateway) HTTPServer() *http.Server {
	return &http.Server{
		Handler:                      g.Handler(),
		ReadHeaderTimeout:            headerTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ConnState:                    g.connState,
		ErrorLog:                     slog.NewLogLogger(g.config.Logger.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if tcp, ok := c.(*net.TCPConn); ok {
				// A client that vanished without a word must not hold a long call's connection for ever.
				_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6})
			}
			return ctx
		},
	}
}

// GRPC is the gRPC side: the service, health and reflection. The caller serves and stops it.
func (g *Gateway) GRPC() *grpc.Server { return g.grpcServer }

func (g *Gateway) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		g.connections.Add(1)
	case http.StateClosed, http.StateHijacked:
		g.connections.Add(-1)
	}
}

// Unread is how many HTTP connections are open without a request being handled. net/http answers nothing to a
// request that it reads once it is being shut down: the caller waits for these before, a while.
func (g *Gateway) Unread() int64 { return g.connections.Load() - g.requests.Load() }

// Leave makes health answer "not serving" and has clients ask for a new connection with their next
// request, so that they and balancers look elsewhere. Requests are answered as before; the caller stops
// the servers.
func (g *Gateway) Leave() {
	g.leaving.Store(true)
	g.health.Shutdown()
}
