package gateway

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// world is a gateway over a real registry, with a code store in memory and an invoker and platform
// that a test can steer.
type world struct {
	t       *testing.T
	state   *registry.State
	code    *memoryCode
	invoker *scriptedInvoker
	clock   *clock
	gateway *Gateway
	server  *httptest.Server
	// settle makes proposals of new code and configuration take effect at once, as the settler of
	// the real control node does a moment later.
	settle bool
	// beforeUpdate runs before an UpdateConfig is applied.
	beforeUpdate func()
	// afterResolve runs after a version was looked up.
	afterResolve func()
}

// hookedState is the registry with the world's hook in it.
type hookedState struct {
	*registry.State
	w *world
}

func (h hookedState) Resolve(account, name, qualifier string) (*registry.Function, *registry.Version, bool) {
	f, v, ok := h.State.Resolve(account, name, qualifier)
	if h.w.afterResolve != nil {
		h.w.afterResolve()
	}
	return f, v, ok
}

func (h hookedState) Route(account, name, qualifier string, draw float64) (*registry.Function, *registry.Version, bool) {
	f, v, ok := h.State.Route(account, name, qualifier, draw)
	if h.w.afterResolve != nil {
		h.w.afterResolve()
	}
	return f, v, ok
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, state: registry.New(), settle: true,
		code:    &memoryCode{packages: map[string][]byte{}},
		invoker: &scriptedInvoker{},
		clock:   &clock{now: time.Date(2024, 5, 1, 12, 34, 56, 789e6, time.UTC)},
	}
	g, err := Open(Config{
		Registry: hookedState{w.state, w}, Proposer: w, Code: w.code, Invoker: w.invoker, Platform: shownPlatform{},
		Authenticator: Anyone{Account: DevAccount}, Cipher: plainCipher{}, BaseURL: "http://doze.example",
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Now: w.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.gateway = g
	w.server = httptest.NewUnstartedServer(nil)
	w.server.Config = g.HTTPServer()
	w.server.Start()
	t.Cleanup(w.server.Close)
	return w
}

// Propose implements Proposer.
func (w *world) Propose(_ context.Context, command registry.Command) (any, error) {
	if _, ok := command.(registry.UpdateConfig); ok && w.beforeUpdate != nil {
		w.beforeUpdate()
	}
	answer, err := w.state.Apply(command)
	if err != nil || !w.settle {
		return answer, err
	}
	switch c := command.(type) {
	case registry.CreateFunction:
		w.activate(c.Account, c.Name)
	case registry.UpdateCode:
		w.activate(c.Account, c.Name)
	case registry.UpdateConfig:
		w.activate(c.Account, c.Name)
	}
	return answer, err
}

// activate settles a function's $LATEST.
func (w *world) activate(account, name string) {
	f, ok := w.state.Function(account, name)
	if !ok {
		w.t.Errorf("settle: no function %s", name)
		return
	}
	if _, err := w.state.Apply(registry.Settle{
		Account: account, Name: name, Version: registry.Latest,
		Incarnation: f.Latest.Incarnation, RevisionID: newRevision(),
	}); err != nil {
		w.t.Errorf("settle: %v", err)
	}
}

// client is an unmodified AWS client.
func (w *world) client(options ...func(*lambda.Options)) *lambda.Client {
	return lambda.New(lambda.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(w.server.URL),
		Credentials:  credentials.NewStaticCredentialsProvider("any", "thing", ""),
		Retryer:      aws.NopRetryer{},
	}, options...)
}

// grpcClient is a client of the gRPC edge, over a real connection.
func (w *world) grpcClient() dozev1.LambdaClient {
	w.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.gateway.GRPC().Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = conn.Close()
		w.gateway.GRPC().Stop()
		if err := <-done; err != nil {
			w.t.Errorf("grpc: %v", err)
		}
	})
	return dozev1.NewLambdaClient(conn)
}

// do sends one raw request and answers status, headers and body.
func (w *world) do(method, path, body string, headers ...string) (*http.Response, string) {
	w.t.Helper()
	r, err := http.NewRequest(method, w.server.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer, string(text)
}

// create makes a function over the API.
func (w *world) create(name string, change ...func(*lambda.CreateFunctionInput)) *lambda.CreateFunctionOutput {
	w.t.Helper()
	in := createInput(name)
	for _, c := range change {
		c(in)
	}
	out, err := w.client().CreateFunction(w.t.Context(), in)
	if err != nil {
		w.t.Fatalf("create %s: %v", name, err)
	}
	return out
}

type memoryCode struct {
	mu       sync.Mutex
	packages map[string][]byte
}

func (m *memoryCode) Put(_ context.Context, sha string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.packages[sha] = bytes.Clone(data)
	return nil
}

func (m *memoryCode) Get(_ context.Context, sha string) (io.ReadCloser, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.packages[sha]
	if !ok {
		return nil, 0, errors.New("no such package")
	}
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
}

// scriptedInvoker echoes, unless the test says otherwise, and keeps what it was given.
type scriptedInvoker struct {
	mu     sync.Mutex
	run    func(context.Context, *invoke.Call) (*invoke.Answer, error)
	accept func(*invoke.Event) error
	calls  []*invoke.Call
	events []*invoke.Event
}

func (s *scriptedInvoker) Invoke(ctx context.Context, call *invoke.Call) (*invoke.Answer, error) {
	s.mu.Lock()
	s.calls = append(s.calls, call)
	run := s.run
	s.mu.Unlock()
	if run != nil {
		return run(ctx, call)
	}
	return &invoke.Answer{
		ExecutedVersion: call.Version.Version, Payload: call.Payload, LogTail: []byte("START\nEND\n"), Cold: true,
		Queue: 1500 * time.Microsecond, Claim: 20 * time.Microsecond, Mount: 900 * time.Microsecond, Init: 20 * time.Millisecond, Handler: 3 * time.Millisecond, Instance: "i-1",
	}, nil
}

func (s *scriptedInvoker) Enqueue(_ context.Context, event *invoke.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accept != nil {
		return s.accept(event)
	}
	s.events = append(s.events, event)
	return nil
}

func (s *scriptedInvoker) lastCall(t *testing.T) *invoke.Call {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.calls) == 0 {
		t.Fatal("nothing was invoked")
	}
	return s.calls[len(s.calls)-1]
}

// plainCipher seals nothing.
type plainCipher struct{}

func (plainCipher) Seal(plain []byte, _ string) []byte           { return plain }
func (plainCipher) Open(sealed []byte, _ string) ([]byte, error) { return sealed, nil }

// shownPlatform shows fixed things.
type shownPlatform struct{}

func (shownPlatform) Instances(_ context.Context, account string) ([]*dozev1.Instance, error) {
	return []*dozev1.Instance{{Id: "i-1", Function: "f", Version: "$LATEST", State: "idle", CreatedAt: "2024-05-01T12:00:00Z", IdleMs: 5, MemoryBytes: 1 << 40}}, nil
}

func (shownPlatform) Runtimes(context.Context) ([]*dozev1.Runtime, error) { return nil, nil }

func (shownPlatform) Bill(_ context.Context, account, month string) (*dozev1.Bill, error) {
	return &dozev1.Bill{Month: month, TotalNanoUsd: 1 << 53, AlwaysOnNanoUsd: 14880000000}, nil
}

func (shownPlatform) Status(context.Context, bool) (*dozev1.Status, error) {
	return &dozev1.Status{Version: "test", Ready: true}, nil
}

func (shownPlatform) Nodes(context.Context) ([]*dozev1.Node, error) { return nil, nil }

func (shownPlatform) Drain(_ context.Context, name string) error {
	if name == "last" {
		return Refused("%s is the last.", name)
	}
	return nil
}

func (shownPlatform) Remove(_ context.Context, name string, force bool) error {
	if !force {
		return Refused("%s is there.", name)
	}
	return nil
}

func (shownPlatform) Logs(ctx context.Context, account, function string, since time.Time, follow bool, fn func(*dozev1.LogRecord) error) error {
	for _, line := range []string{"first", "second \"quoted\""} {
		if err := fn(&dozev1.LogRecord{AtMs: since.UnixMilli(), Stream: "s", Message: line}); err != nil {
			return err
		}
	}
	if follow {
		<-ctx.Done()
	}
	return nil
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// zipOf makes a package of name, content pairs.
func zipOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		f, err := z.Create(files[i])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
