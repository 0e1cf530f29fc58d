package logship

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

type store struct {
	mu     sync.Mutex
	chunks int
	lines  map[string][]string
}

func (s *store) PublishLogs(chunk *dozev1.LogChunk) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks++
	if s.lines == nil {
		s.lines = map[string][]string{}
	}
	for _, l := range chunk.Lines {
		s.lines[chunk.Function] = append(s.lines[chunk.Function], string(l.Text))
	}
	return true
}

func open(s *store) *Shipper {
	return Open(Config{Publisher: s, Logger: slog.New(slog.DiscardHandler)})
}

func spec(function string) *dozev1.FunctionSpec {
	return &dozev1.FunctionSpec{Account: "1", Function: function}
}

func TestLinesArriveInOrderAndInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		shipper := open(s)
		text := []byte("a")
		shipper.Lines(spec("f"), "i1", 1, [][]byte{text, []byte("b")})
		text[0] = 'x' // the sink keeps no slice
		shipper.Lines(spec("f"), "i2", 2, [][]byte{[]byte("c"), nil})
		shipper.Lines(spec("g"), "i3", 2, [][]byte{[]byte("other")})
		time.Sleep(flushEvery + time.Millisecond)
		synctest.Wait()
		if got := strings.Join(s.lines["f"], ","); got != "a,b,c," || s.chunks != 2 {
			t.Errorf("%q in %d chunks", got, s.chunks)
		}
		shipper.Lines(spec("f"), "i1", 3, [][]byte{[]byte("last")})
		if err := shipper.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		shipper.Lines(spec("f"), "i1", 4, [][]byte{[]byte("too late")})
		if got := strings.Join(s.lines["f"], ","); got != "a,b,c,,last" {
			t.Errorf("after Close %q", got)
		}
		if err := shipper.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestChattyFunctionDropsItsOwnLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		shipper := open(s)
		long := bytes.Repeat([]byte("x"), 1000)
		for range 5000 {
			shipper.Lines(spec("chatty"), "i", 1, [][]byte{long})
		}
		shipper.Lines(spec("quiet"), "i", 1, [][]byte{[]byte("heard")})
		if err := shipper.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		kept := s.lines["chatty"]
		if len(kept) > functionBytes/1000+1 || !strings.Contains(kept[len(kept)-1], "log lines were dropped") {
			t.Errorf("%d lines, the last is %q", len(kept), kept[len(kept)-1])
		}
		if len(s.lines["quiet"]) != 1 {
			t.Errorf("quiet has %q", s.lines["quiet"])
		}
	})
}

func BenchmarkLines(b *testing.B) {
	shipper := open(&store{})
	defer func() { _ = shipper.Close(context.Background()) }()
	lines := [][]byte{bytes.Repeat([]byte("s"), 60), bytes.Repeat([]byte("e"), 50), bytes.Repeat([]byte("r"), 140)}
	f := spec("f")
	b.ReportAllocs()
	for b.Loop() {
		shipper.Lines(f, "2026/11/23/[$LATEST]0123456789abcdef", 1, lines)
	}
}
