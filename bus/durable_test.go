package bus

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// store is a server with the durable plane in a folder, which can be stopped and started again.
type store struct {
	t      testing.TB
	dir    string
	config StreamsConfig
	server *Server
	conn   *Conn
}

func newStore(t testing.TB, config StreamsConfig) *store {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	if config.StorageBytes == 0 {
		config.StorageBytes = MinStorageBytes
	}
	if config.Replicas == 0 {
		config.Replicas = 1
	}
	if config.EventShards == 0 {
		config.EventShards = 1
	}
	s := &store{t: t, dir: t.TempDir(), config: config}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *store) start() {
	s.t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	if s.server, err = StartServer(ServerConfig{
		Name: "store", StoreDir: s.dir, MemoryBytes: 1 << 20, StoreBytes: s.config.StorageBytes, SyncInterval: time.Minute, Logger: log,
	}); err != nil {
		s.t.Fatal(err)
	}
	if s.conn, err = Connect(context.Background(), ConnConfig{Name: "store", Server: s.server, Logger: log}); err != nil {
		s.t.Fatal(err)
	}
	if err := s.conn.EnsureStreams(context.Background(), s.config); err != nil {
		s.t.Fatal(err)
	}
}

func (s *store) stop() {
	if s.conn == nil {
		return
	}
	_ = s.conn.Close()
	if err := s.server.Close(context.Background()); err != nil {
		s.t.Error(err)
	}
	s.conn = nil
}

func (s *store) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

func TestStreamBoundsFitTheBudget(t *testing.T) {
	if sum := codeShare + eventShare + timerShare + usageShare + logShare; sum > 100 {
		t.Errorf("shares add up to %d %%", sum)
	}
	for _, shards := range []int{1, 3} {
		s := newStore(t, StreamsConfig{EventShards: shards})
		// A second node, and a larger budget, come to streams that exist.
		for _, factor := range []int64{1, 1, 2, 1} {
			config := s.config
			config.StorageBytes *= factor
			err := s.conn.EnsureStreams(t.Context(), config)
			if factor == 1 && err != nil {
				t.Errorf("%d shards: again: %v", shards, err)
			}
			if factor == 2 && err == nil {
				t.Errorf("%d shards: twice JetStream's limit was reserved", shards)
			}
		}
		var reserved, timers int64
		streams := s.conn.js.ListStreams(t.Context())
		for info := range streams.Info() {
			if strings.HasPrefix(info.Config.Name, "TIMERS_") {
				var bound int64
				if _, err := fmt.Sscan(info.Config.Metadata[timerBoundKey], &bound); err != nil {
					t.Error(err)
				}
				timers += bound
				continue
			}
			if info.Config.MaxBytes <= 0 {
				t.Errorf("%s has no bound", info.Config.Name)
			}
			reserved += info.Config.MaxBytes
		}
		if err := streams.Err(); err != nil {
			t.Fatal(err)
		}
		if reserved+timers > s.config.StorageBytes {
			t.Errorf("%d shards: %d + %d bytes of a budget of %d", shards, reserved, timers, s.config.StorageBytes)
		}
	}
}

func TestStreamsConfigIsChecked(t *testing.T) {
	good := StreamsConfig{StorageBytes: MinStorageBytes, Replicas: 1, EventShards: 1}
	for name, change := range map[string]func(*StreamsConfig){
		"tiny":            func(c *StreamsConfig) { c.StorageBytes = 1 },
		"no replica":      func(c *StreamsConfig) { c.Replicas = 0 },
		"too many":        func(c *StreamsConfig) { c.Replicas = 6 },
		"no shard":        func(c *StreamsConfig) { c.EventShards = 0 },
		"too many shards": func(c *StreamsConfig) { c.EventShards = MaxEventShards + 1 },
	} {
		c := good
		change(&c)
		if c.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := good.check(); err != nil {
		t.Error(err)
	}
}

func FuzzToken(f *testing.F) {
	for _, seed := range []string{"", "a", "=", "=00", "a.b", "*", ">", "a b", "\x00", "ü", "my-function_1", "$LATEST"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := token(name)
		if got == "" || strings.ContainsAny(got, ".*> \t\r\n\x00") {
			t.Fatalf("token(%q) = %q is no subject token", name, got)
		}
		// One to one: it can be read back.
		var back []byte
		for i := 0; i < len(got); i++ {
			if got[i] != '=' {
				back = append(back, got[i])
				continue
			}
			if got == "=" {
				break
			}
			var c byte
			if _, err := fmt.Sscanf(got[i+1:i+3], "%02x", &c); err != nil {
				t.Fatal(err)
			}
			back = append(back, c)
			i += 2
		}
		if string(back) != name {
			t.Fatalf("token(%q) = %q reads back as %q", name, got, back)
		}
	})
}
