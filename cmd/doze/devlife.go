package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"syscall"
	"time"

	"github.com/doze-run/doze/control/datadir"
)

// platform is all of Doze in one process, as its life cycle sees it.
type platform interface {
	// Failed is sent the error that keeps the platform from going on.
	Failed() <-chan error
	// Close ends it in order: no new calls, running ones end, usage is shipped. When ctx ends it
	// stops waiting. After it returns nothing of the platform runs.
	Close(ctx context.Context) error
}

// parts are what a platform is built from. The platform owns the listeners once it was opened; the
// folder stays the caller's.
type parts struct {
	settings   *devSettings
	dir        *datadir.Dir
	http, grpc net.Listener
	stderr     io.Writer
	log        *slog.Logger
}

// openFunc builds a platform that is ready when it returns. ctx bounds the building.
type openFunc func(ctx context.Context, p parts) (platform, error)

// errAtOnce is how a life ends that a second signal cut short.
var errAtOnce = errors.New("stopped at once, as a second signal asked for: running calls were cut off")

// signalEcho is how long after the first signal another one counts as the same. timeout(1) and shells
// send to the process and to its group, and nobody's second Ctrl-C comes as soon.
const signalEcho = 200 * time.Millisecond

// life runs a platform from its first file to its last.
type life struct {
	settings *devSettings
	open     openFunc
	// signals brings SIGINT and SIGTERM: the first ends the life in order, the second at once, unless
	// it is an echo of the first.
	signals <-chan os.Signal
	stdout  io.Writer
	stderr  io.Writer
	log     *slog.Logger
}

// run lives. nil means that it ended in order because it was asked to.
func (l *life) run(ctx context.Context) (err error) {
	dir, err := datadir.Open(l.settings.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()

	// The addresses are taken first: that somebody else has them is the commonest fault, and should
	// be told before anything is built.
	p := parts{settings: l.settings, dir: dir, stderr: l.stderr, log: l.log}
	ready := "doze ready"
	if l.settings.Listen != "" { // a worker has no API
		if p.http, err = listen("--listen", l.settings.Listen); err != nil {
			return err
		}
		defer p.http.Close()
		if p.grpc, err = listen("--grpc-listen", l.settings.GRPCListen); err != nil {
			return err
		}
		defer p.grpc.Close()
		ready += fmt.Sprintf(" http=%s grpc=%s", p.http.Addr(), p.grpc.Addr())
	}
	if l.settings.PprofListen != "" {
		stop, err := l.servePprof()
		if err != nil {
			return err
		}
		defer stop()
	}

	running, err := l.start(ctx, p)
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the disk of %s is full: free some room, or choose another folder with --data-dir: %w", l.settings.DataDir, err)
	}
	if err != nil || running == nil {
		return err
	}
	if l.settings.Name != "" {
		ready += " name=" + l.settings.Name
	}
	if _, err := fmt.Fprintln(l.stdout, ready); err != nil {
		l.log.Warn("nobody reads the ready line", "error", err)
	}
	select {
	case s := <-l.signals:
		l.log.Info("stopping: running calls may end; a second signal stops at once", "signal", s.String(), "bound", l.settings.ShutdownTimeout)
	case <-ctx.Done():
		l.log.Info("stopping: running calls may end", "bound", l.settings.ShutdownTimeout)
	case cause := <-running.Failed():
		return errors.Join(fmt.Errorf("doze cannot go on: %w", cause), l.stop(ctx, running))
	}
	return l.stop(ctx, running)
}

// start builds the platform; a signal meanwhile gives that up, and then both results are nil.
func (l *life) start(ctx context.Context, p parts) (platform, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type opened struct {
		platform platform
		err      error
	}
	result := make(chan opened, 1)
	go func() {
		built, err := l.open(ctx, p)
		result <- opened{built, err}
	}()
	select {
	case o := <-result:
		return o.platform, o.err
	case s := <-l.signals:
		l.log.Info("stopping before it was ready", "signal", s.String())
		cancel()
	}
	asked := time.Now()
	for {
		select {
		case o := <-result:
			if o.err != nil {
				return nil, nil // the building was given up, as asked
			}
			return nil, l.stop(ctx, o.platform)
		case <-l.signals:
			if time.Since(asked) >= signalEcho {
				return nil, errAtOnce
			}
		}
	}
}

// stop ends the platform within the bound, or at once when another signal comes. It does not
// wait for a Close that does not heed its context: the process ends, and the kernel ends the rest.
func (l *life) stop(ctx context.Context, p platform) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.settings.ShutdownTimeout)
	defer cancel()
	start := time.Now()
	closed := make(chan error, 1)
	go func() { closed <- p.Close(ctx) }()
	// What is over the bound gets a moment to let go of what it holds.
	late := time.NewTimer(l.settings.ShutdownTimeout + 5*time.Second)
	defer late.Stop()
	for {
		select {
		case err := <-closed:
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("running calls were cut off after %s: %w", l.settings.ShutdownTimeout, err)
			}
			l.log.Info("stopped", "took", time.Since(start).Round(time.Millisecond))
			return err
		case <-l.signals:
			if time.Since(start) >= signalEcho {
				return errAtOnce
			}
		case <-late.C:
			return fmt.Errorf("did not stop within %s", l.settings.ShutdownTimeout)
		}
	}
}

// listen takes an address, and says which flag changes it when it cannot be had.
func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s %s is in use by another process: stop that one, or choose another address with %s (port 0 takes any free one)", flag, address, flag)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s %s is not allowed to this user: choose a port above 1023", flag, address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s %s is not an address of this machine", flag, address)
	}
	return nil, fmt.Errorf("%s %s: %w", flag, address, err)
}

// servePprof serves profiles until the function it answers is called.
func (l *life) servePprof() (stop func(), err error) {
	listener, err := listen("--pprof-listen", l.settings.PprofListen)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			l.log.Error("profiles can no longer be fetched", "error", err)
		}
	}()
	l.log.Info("profiles", "address", "http://"+listener.Addr().String()+"/debug/pprof/")
	return func() {
		server.Close()
		<-done
	}, nil
}
