//go:build linux

package bench

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// against runs a load on a server with this handler.
func against(t *testing.T, l Load, handler http.HandlerFunc) *Sample {
	t.Helper()
	server := httptest.NewServer(handler)
	defer server.Close()
	l.Addr = server.Listener.Addr().String()
	request, err := buildRequest(t.Context(), l.Addr, "/call", echoPayload, echoCredentials)
	if err != nil {
		t.Fatal(err)
	}
	l.Request = request
	s, err := l.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func echoOf(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }

func TestClosedLoop(t *testing.T) {
	var served atomic.Int64
	s := against(t, Load{Connections: 4, Calls: 200, Window: time.Minute, Expect: echoPayload}, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256") || r.Header.Get("X-Amz-Date") == "" {
			t.Errorf("the request is not signed: %v", r.Header)
		}
		served.Add(1)
		echoOf(w, r)
	})
	if s.Calls != 200 || s.Everything != 200 || s.Errors != 0 || served.Load() != 200 || s.Latency.TotalCount() != 200 {
		t.Errorf("%d served, %+v", served.Load(), s)
	}
	if s.Elapsed <= 0 || s.GeneratorCPU <= 0 {
		t.Errorf("took %v, %v of CPU", s.Elapsed, s.GeneratorCPU)
	}
}

// A server that stalls once hurts one call of a closed loop with one connection, but every call
// that was due meanwhile.
func TestOpenLoopIsFreeOfCoordinatedOmission(t *testing.T) {
	stall := func() http.HandlerFunc {
		var n atomic.Int64
		return func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) == 10 {
				time.Sleep(300 * time.Millisecond)
			}
			echoOf(w, r)
		}
	}
	closed := against(t, Load{Connections: 1, Calls: 200, Window: time.Minute}, stall())
	if late := late(closed); late < 1 || late > 5 { // more than one only on a machine that stalls by itself
		t.Errorf("closed loop: %d late calls, want 1", late)
	}
	open := against(t, Load{Connections: 1, Window: 800 * time.Millisecond, PerSecond: 250, Drain: 10 * time.Second}, stall())
	if open.Errors != 0 || open.Calls < 199 || open.Calls > 202 {
		t.Errorf("open loop: %d calls, %d errors: %s", open.Calls, open.Errors, open.FirstError)
	}
	if late := late(open); late < 45 { // due in the first 200 ms of the stall, less what is in doubt
		t.Errorf("open loop: %d late calls, want about 50", late)
	}
}

// late counts calls of at least 100 ms.
func late(s *Sample) (n int64) {
	for _, bar := range s.Latency.Distribution() {
		if bar.From >= int64(100*time.Millisecond) {
			n += bar.Count
		}
	}
	return n
}

func TestLoadCountsErrors(t *testing.T) {
	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"status", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTooManyRequests) }, "status 429"},
		{"function error", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Amz-Function-Error", "Unhandled")
			echoOf(w, r)
		}, "function error"},
		{"other answer", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }, "want"},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, "closed by the server"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := against(t, Load{Connections: 2, Calls: 6, Window: time.Minute, Expect: echoPayload}, tt.handler)
			if s.Errors != 6 || s.Calls != 0 || !strings.Contains(s.FirstError, tt.want) {
				t.Errorf("%d errors, %d calls, %q", s.Errors, s.Calls, s.FirstError)
			}
		})
	}
}

func TestLoadOpensClosedConnectionsAnew(t *testing.T) {
	s := against(t, Load{Connections: 2, Calls: 20, Window: time.Minute, Expect: echoPayload}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		echoOf(w, r)
	})
	if s.Calls != 20 || s.Errors != 0 {
		t.Errorf("%d calls, %d errors: %s", s.Calls, s.Errors, s.FirstError)
	}
}

func TestLoadGivesUpOnUnansweredCalls(t *testing.T) {
	release := make(chan struct{})
	var n atomic.Int64
	handler := func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) > 2 {
			<-release
		}
		echoOf(w, r)
	}
	server := httptest.NewServer(http.HandlerFunc(handler))
	defer server.Close()
	defer close(release)
	request, err := buildRequest(t.Context(), "x", "/", echoPayload, echoCredentials)
	if err != nil {
		t.Fatal(err)
	}
	s, err := (&Load{Addr: server.Listener.Addr().String(), Request: request, Connections: 3, Window: 50 * time.Millisecond, Drain: 50 * time.Millisecond}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Errors != 3 || s.FirstError != errUnanswered.Error() || s.Calls != 2 {
		t.Errorf("%d calls, %d errors: %s", s.Calls, s.Errors, s.FirstError)
	}
}

func TestLoadCannotRun(t *testing.T) {
	if _, err := (&Load{Addr: "127.0.0.1:1", Connections: 1, Window: time.Second}).Run(t.Context()); err == nil {
		t.Error("nobody listens, and no error")
	}
	if _, err := (&Load{Addr: "127.0.0.1:1", Connections: 1, Request: make([]byte, maxRequest+1)}).Run(t.Context()); err == nil {
		t.Error("a request that is too large, and no error")
	}
	server := httptest.NewServer(http.HandlerFunc(echoOf))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&Load{Addr: server.Listener.Addr().String(), Connections: 1, Window: time.Hour}).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("ctx has ended: %v", err)
	}
}

func BenchmarkGenerator(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(echoOf))
	defer server.Close()
	addr := server.Listener.Addr().String()
	request, err := buildRequest(b.Context(), addr, "/", echoPayload, echoCredentials)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	if _, err := (&Load{Addr: addr, Request: request, Expect: echoPayload, Connections: 16, Calls: int64(b.N), Window: time.Hour}).Run(b.Context()); err != nil {
		b.Fatal(err)
	}
}
