package bus

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"
)

// clustered starts servers that keep streams together.
func clustered(t *testing.T, n int) []*Server {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	address := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	var routes []string
	for range n {
		routes = append(routes, address())
	}
	servers := make([]*Server, n)
	failed := make(chan error, n)
	for i := range n {
		config := ServerConfig{
			Name: fmt.Sprint("c", i+1), StoreDir: t.TempDir(), StoreBytes: MinStorageBytes, SyncInterval: time.Minute, Listen: address(), Logger: log,
			Cluster: &ServerCluster{Name: "test", Listen: routes[i], Advertise: routes[i], Routes: routes},
		}
		go func() {
			var err error
			servers[i], err = StartServer(config)
			failed <- err
		}()
	}
	for range n {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, s := range servers {
			_ = s.Close(context.Background()) // some are closed
		}
	})
	return servers
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for begun := time.Now(); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > 30*time.Second {
			t.Fatalf("not within 30s: %s", what)
		}
	}
}

// A server hands over all that it leads; one that is gone is taken out, though none of the others has to have
// seen it, and the rest goes on.
func TestStepDownAndRemovePeer(t *testing.T) {
	servers := clustered(t, 3)
	conn, err := Connect(t.Context(), ConnConfig{Name: "test", Server: servers[0], Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, "the streams are there", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return conn.EnsureStreams(ctx, StreamsConfig{StorageBytes: MinStorageBytes, Replicas: 3, EventShards: 3}) == nil
	})
	whole := func() bool {
		led := 0
		for _, s := range servers {
			n, err := s.Leads()
			if err != nil || s.Behind() > 0 {
				return false
			}
			led += n
		}
		return led > 0
	}
	eventually(t, "every server has everything", whole)
	for i, s := range servers {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		begun := time.Now()
		if err := s.StepDown(ctx); err != nil {
			t.Errorf("c%d: %v", i+1, err)
		}
		led, err := s.Leads()
		if err != nil || led > 0 {
			t.Errorf("c%d leads %d after it stepped down (%v)", i+1, led, err)
		}
		t.Logf("c%d stepped down after %v", i+1, time.Since(begun))
	}

	if err := servers[2].Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // once more is no error
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := servers[0].RemovePeer(ctx, "c3"); err != nil {
			t.Error(err)
		}
	}
	servers = servers[:2]
	eventually(t, "the two that are left have everything", whole)
	if err := conn.Events(3).PublishEvent(t.Context(), testEvent("f", []byte("{}"))); err != nil {
		t.Error(err)
	}
}
