package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/doze-run/doze/bus/nodetls"
)

// Bounds of the embedded server that differ from its defaults.
const (
	// maxPayload holds the largest asynchronous event (1 MB) with its envelope and headers; larger
	// bodies travel in chunks (see transfer.go). NATS's default is 1 MB.
	maxPayload = 2 << 20
	// maxPending is how much may wait for one slow connection before the server cuts it off.
	// NATS's default, 64 MB, is eleven full-size answers.
	maxPending = 256 << 20
	// startLimit bounds how long an embedded server may take to accept connections.
	startLimit = 10 * time.Second
	// tlsLimit is how long one who connects may take to show its certificate, in seconds.
	tlsLimit = 5.0
)

// ServerConfig configures the embedded NATS server.
type ServerConfig struct {
	// Name is unique in the cluster.
	Name string
	// StoreDir holds the durable plane's streams. It is the caller's to create and to lock.
	StoreDir string
	// MemoryBytes bounds the call plane's queues, StoreBytes the durable plane's streams.
	MemoryBytes, StoreBytes int64
	// SyncInterval is how often file streams are synced to disk: what a power loss may take.
	// 0 means every message.
	SyncInterval time.Duration
	// Listen is host:port for connections of other processes, "" for none.
	Listen string
	// Advertise is Listen as others reach it, "" for the same.
	Advertise string
	// TLS has everybody who connects show a certificate of the cluster's, which says what they may
	// (permit.go); nil: whoever connects may do everything.
	TLS *nodetls.Node
	// Streams is whether the server has the durable plane, which workers see other parts of than of
	// the call plane.
	Streams bool
	// Cluster makes the server one of several that keep streams together; nil: it is alone.
	Cluster *ServerCluster
	Logger  *slog.Logger
}

// ServerCluster is a server's part in a cluster.
type ServerCluster struct {
	// Name is the same on every member.
	Name string
	// Listen is host:port for the other members, Advertise the same as they reach it.
	Listen, Advertise string
	// Routes are the Advertise of all members, this one included. Their number is what the cluster
	// takes a majority of when it is new.
	Routes []string
}

// Server is an embedded NATS server with JetStream.
type Server struct {
	config ServerConfig
	// password is what this process's own connections show, where others show certificates or nothing.
	password string
	inner    atomic.Pointer[server.Server]
}

// StartServer starts an embedded server. Connections are made in process, and over TCP if it listens.
// It returns when the server is ready for them.
func StartServer(config ServerConfig) (*Server, error) {
	s := &Server{config: config, password: rand.Text()}
	return s, s.start()
}

func (s *Server) start() error {
	options := &server.Options{
		ServerName:         s.config.Name,
		DontListen:         s.config.Listen == "",
		NoSigs:             true,
		JetStream:          true,
		StoreDir:           s.config.StoreDir,
		JetStreamMaxMemory: s.config.MemoryBytes,
		JetStreamMaxStore:  s.config.StoreBytes,
		SyncInterval:       s.config.SyncInterval,
		SyncAlways:         s.config.SyncInterval == 0,
		MaxPayload:         maxPayload,
		MaxPending:         maxPending,
		// Awake functions each own a consumer; the default cap is far below a busy node's number.
		JetStreamLimits:        server.JSLimitOpts{DefaultMaxConsumers: 100_000},
		DisableJetStreamBanner: true,
		// A publisher is never slowed for the sake of a slow reader: the bounds refuse instead.
		NoFastProducerStall: true,
	}
	if err := s.config.network(options); err != nil {
		return err
	}
	if s.config.Cluster != nil {
		if err := s.users(options); err != nil {
			return err
		}
	}
	gate := &gate{password: s.password, streams: s.config.Streams, log: s.config.Logger}
	if s.config.TLS != nil {
		options.CustomClientAuthentication = gate
	}
	inner, err := server.NewServer(options)
	if err != nil {
		return fmt.Errorf("bus: configure server: %w", err)
	}
	inner.SetLoggerV2(serverLog{s.config.Logger}, false, false, false)
	gate.open(inner)
	inner.Start()
	if !inner.ReadyForConnections(startLimit) {
		inner.Shutdown()
		return fmt.Errorf("bus: embedded NATS server did not become ready within %v", startLimit)
	}
	if !inner.JetStreamEnabled() {
		inner.Shutdown()
		return errors.New("bus: JetStream did not start; the log says why (is the data folder writable and the disk not full?)")
	}
	if s.config.TLS != nil {
		if err := gate.share(inner); err != nil {
			inner.Shutdown()
			return err
		}
	}
	s.inner.Store(inner)
	return nil
}

// network fills in what the server has to do with others.
func (c *ServerConfig) network(options *server.Options) error {
	if c.Listen == "" {
		return nil
	}
	var err error
	if options.Host, options.Port, err = hostPort(c.Listen); err != nil {
		return err
	}
	options.ClientAdvertise = c.Advertise
	options.PingInterval, options.MaxPingsOut = pingEvery, pingsOut
	options.WriteDeadline = 2 * time.Second
	if c.TLS != nil {
		options.TLS, options.TLSVerify, options.TLSTimeout = true, true, tlsLimit
		options.TLSConfig = c.TLS.Server(nodetls.Control, nodetls.Worker)
		// Who has no certificate learns nothing, not even the server's name.
		options.TLSHandshakeFirst = true
	}
	if c.Cluster == nil {
		return nil
	}
	cluster := &options.Cluster
	if cluster.Host, cluster.Port, err = hostPort(c.Cluster.Listen); err != nil {
		return err
	}
	cluster.Name, cluster.Advertise = c.Cluster.Name, c.Cluster.Advertise
	cluster.PingInterval, cluster.MaxPingsOut = pingEvery, pingsOut
	if c.TLS != nil {
		cluster.TLSConfig, cluster.TLSTimeout = c.TLS.Both(nodetls.Control), tlsLimit
	}
	for _, route := range c.Cluster.Routes {
		options.Routes = append(options.Routes, &url.URL{Scheme: "nats", Host: route})
	}
	return nil
}

// hostPort splits an address to listen on. That somebody else listens there already is an error here: the server
// would only log it, and then not become ready.
func hostPort(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil {
		return "", 0, fmt.Errorf("bus: listen address %q: %w", address, err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", 0, fmt.Errorf("bus: %w", err)
	}
	return host, port, l.Close()
}

// InProcessConn implements nats.InProcessConnProvider: a client that lost its connection to a
// restart finds the new server.
func (s *Server) InProcessConn() (net.Conn, error) { return s.inner.Load().InProcessConn() }

// Healthy is nil while every stream can be written. A stream that met a failing write, for lack of
// room most likely, takes nothing more until Restart. It reads folders: ask once a second, not for
// each request.
func (s *Server) Healthy() error {
	inner := s.inner.Load()
	if !inner.Running() {
		return errors.New("bus: NATS server has stopped")
	}
	for {
		// In a cluster a leader that is being elected is not this server's to mend.
		health := inner.Healthz(&server.HealthzOptions{JSEnabledOnly: s.config.Cluster != nil})
		switch {
		case health.StatusCode == http.StatusOK:
			return nil
		case !strings.HasSuffix(health.Error, notLooked):
			return fmt.Errorf("bus: %s", health.Error)
		}
	}
}

// notLooked is how nats-server (v2.15) ends its complaint when the millisecond that it gives its listeners had
// passed before it looked at the first of them, as happens on a busy machine: it names none.
const notLooked = "failed to be ready for connections after 1ms: "

// Restart ends the server and starts it anew on its files. Connections come back by themselves; of
// what was on its way that moment some may be lost. So are the call queues, which are in memory:
// EnsureCallPlane makes them again, and then each Asker is to Republish what waits.
//
// It restarts all of the server because JetStream alone (nats-server v2.15), shut down and enabled
// again, handles each request twice.
//
// A server that does not stop is ErrStuck: only a new process helps then.
func (s *Server) Restart() error {
	if err := s.stop(); err != nil {
		return err
	}
	return s.start()
}

// ErrStuck: the embedded server does not stop. A nats-server whose disk was full was seen to wait for itself for ever.
var ErrStuck = errors.New("bus: the embedded NATS server does not stop")

// stopLimit is how long a server may take to close its files.
const stopLimit = 20 * time.Second

// Close stops the server and waits until its files are closed, or answers ErrStuck.
func (s *Server) Close(context.Context) error { return s.stop() }

func (s *Server) stop() error {
	inner := s.inner.Load()
	stopped := make(chan struct{})
	go func() { // outlives this call only when the server is stuck, which the process does not survive
		defer close(stopped)
		inner.Shutdown()
		inner.WaitForShutdown()
	}()
	select {
	case <-stopped:
		return nil
	case <-time.After(stopLimit):
		return ErrStuck
	}
}

// serverLog hands the server's log lines to slog: its notices are our debug, since an operator of
// Doze did not ask for NATS's start-up story.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Warnf(format string, v ...any) {
	// nodetls checks certificates itself, by role and authority, which NATS cannot know.
	if strings.HasPrefix(format, "TLS certificate chain and hostname of solicited routes will not be verified") {
		return
	}
	l.log.Warn(fmt.Sprintf(format, v...))
}
func (l serverLog) Errorf(format string, v ...any) { l.log.Error(fmt.Sprintf(format, v...)) }
func (l serverLog) Fatalf(format string, v ...any) { l.log.Error(fmt.Sprintf(format, v...)) }
func (l serverLog) Debugf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l serverLog) Tracef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }
