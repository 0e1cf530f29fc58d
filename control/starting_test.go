package control

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Who connects to a node that starts is served when it serves.
func TestStartingHolds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := answerStarting(l, time.Hour)
	answer := make(chan error, 1)
	go func() {
		r, err := http.Get("http://" + l.Addr().String())
		if err == nil {
			_ = r.Body.Close()
			if r.StatusCode != http.StatusOK {
				err = errors.New(r.Status)
			}
		}
		answer <- err
	}()
	s.end()
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if err := <-answer; err != nil {
		t.Error(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != http.ErrServerClosed {
		t.Error(err)
	}
}

// A node that starts for long refuses, and its listener is as good as new when it serves.
func TestStartingRefuses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	s := answerStarting(l, 0)
	for range 3 {
		if status, body := ask("/2015-03-31/functions"); status != http.StatusServiceUnavailable || !strings.Contains(body, refusing) {
			t.Errorf("while it starts: %d %s", status, body)
		}
	}
	if status, _ := ask("/healthz"); status != http.StatusOK {
		t.Errorf("health: %d", status)
	}
	s.end()
	s.end()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") })}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	if status, body := ask("/"); status != http.StatusOK || body != "served" {
		t.Errorf("afterwards: %d %s", status, body)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != http.ErrServerClosed {
		t.Error(err)
	}
}
