package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	echoPath  = "/echo"
	sleepPath = "/sleep100"
	echoReady = "echo ready http="
)

// ServeEcho is baseline (a), a plain net/http server in a process of its own: it answers a POST
// with its body, under sleepPath after 100 ms. It writes one line with its address to ready, and
// ends with ctx.
func ServeEcho(ctx context.Context, ready io.Writer) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("echo server: %w", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(echo), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if _, err := fmt.Fprintln(ready, echoReady+listener.Addr().String()); err != nil {
		_ = server.Close()
		<-served
		return fmt.Errorf("echo server: %w", err)
	}
	select {
	case err = <-served:
	case <-ctx.Done():
		_ = server.Close()
		err = <-served
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("echo server: %w", err)
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		http.Error(w, "body too large or cut off", http.StatusBadRequest)
		return
	}
	if r.URL.Path == sleepPath {
		select {
		case <-time.After(sleepTime):
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}
