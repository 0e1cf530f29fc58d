package logship

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStream keeps what is published, as the stream would: by copying it.
type fakeStream struct {
	mu      sync.Mutex
	chunks  []*dozev1.LogChunk
	at      []time.Time
	refuses bool
	tries   int
}

func (f *fakeStream) PublishLogs(c *dozev1.LogChunk) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	if f.refuses {
		return false
	}
	f.chunks = append(f.chunks, proto.Clone(c).(*dozev1.LogChunk))
	f.at = append(f.at, time.Now())
	return true
}

func (f *fakeStream) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.chunks)
}

func (f *fakeStream) refuse(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuses = yes
}

// texts returns a function's lines, joined chunk by chunk.
func (f *fakeStream) texts(function string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, c := range f.chunks {
		if c.Function == function {
			for _, l := range c.Lines {
				all = append(all, string(l.Text))
			}
		}
	}
	return all
}

func open(f *fakeStream, maxBytes int) *Shipper {
	return Open(Config{Publisher: f, Logger: slog.New(slog.DiscardHandler), MaxBytes: maxBytes})
}

func spec(function string) *dozev1.FunctionSpec {
	return &dozev1.FunctionSpec{Account: "000000000000", Function: function}
}

func TestLinesGoAfterAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stream := &fakeStream{}
		s := open(stream, 0)
		start := time.Now()
		text := []byte("first")
		s.Lines(spec("f"), "stream-a", 7, [][]byte{text, []byte("")})
		copy(text, "XXXXX") // the caller uses it again
		time.Sleep(flushAfter / 2)
		s.Lines(spec("f"), "stream-b", 8, [][]byte{[]byte("third")})
		s.Lines(spec("g"), "stream-c", 9, [][]byte{[]byte("other")})
		time.Sleep(flushAfter)
		synctest.Wait()
		if n := stream.count(); n != 2 {
			t.Fatalf("%d chunks, want one for each function", n)
		}
		stream.mu.Lock()
		for i, c := range stream.chunks {
			if d := stream.at[i].Sub(start); d != flushAfter {
				t.Errorf("published after %v, want %v", d, flushAfter)
			}
			if c.Account != "000000000000" {
				t.Errorf("account %q", c.Account)
			}
			if c.Function == "f" {
				want := &dozev1.LogChunk{Account: "000000000000", Function: "f", Lines: []*dozev1.LogLine{
					{AtMs: 7, Stream: "stream-a", Text: []byte("first")}, {AtMs: 7, Stream: "stream-a", Text: []byte{}},
					{AtMs: 8, Stream: "stream-b", Text: []byte("third")},
				}}
				if !proto.Equal(c, want) {
					t.Errorf("chunk %v, want %v", c, want)
				}
			}
		}
		stream.mu.Unlock()
		// Quiet, then again.
		time.Sleep(time.Hour)
		s.Lines(spec("f"), "s", 1, [][]byte{[]byte("later")})
		time.Sleep(flushAfter)
		synctest.Wait()
		if got := stream.texts("f"); len(got) != 4 || got[3] != "later" {
			t.Errorf("lines %q", got)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestFullChunksGoAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stream := &fakeStream{}
		s := open(stream, 0)
		start := time.Now()
		var want []string
		for i := range 200 {
			text := fmt.Sprintf("%03d %s", i, strings.Repeat("x", 1000))
			want = append(want, text)
			s.Lines(spec("f"), "s", 1, [][]byte{[]byte(text)})
		}
		synctest.Wait()
		if n := stream.count(); n < 2 || time.Since(start) != 0 {
			t.Errorf("%d chunks after %v, want some at once", n, time.Since(start))
		}
		time.Sleep(flushAfter)
		synctest.Wait()
		if got := stream.texts("f"); strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%d lines came, not the %d that were written in order", len(got), len(want))
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
		for _, c := range stream.chunks {
			if n := proto.Size(c); n > 64<<10 {
				t.Errorf("a chunk of %d bytes", n)
			}
		}
	})
}

func TestLongLineIsCut(t *testing.T) {
	stream := &fakeStream{}
	s := open(stream, 0)
	s.Lines(spec("f"), "s", 1, [][]byte{make([]byte, maxLineBytes+5), []byte("next")})
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := stream.texts("f"); len(got) != 2 || len(got[0]) != maxLineBytes || got[1] != "next" {
		t.Errorf("%d lines", len(got))
	}
}

func TestChattyFunctionDropsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const maxBytes = 1 << 20
		stream := &fakeStream{refuses: true}
		s := open(stream, maxBytes)
		text := []byte(strings.Repeat("x", 952))
		for range 10 {
			for range 1000 {
				s.Lines(spec("chatty"), "s", 5, [][]byte{text})
			}
			synctest.Wait()
			s.Lines(spec("quiet"), "s", 6, [][]byte{[]byte("one")})
			if s.mu.Lock(); s.bytes > maxBytes {
				t.Fatalf("%d bytes held", s.bytes)
			}
			s.mu.Unlock()
		}
		stream.refuse(false)
		time.Sleep(2 * retryAtMost)
		synctest.Wait()
		if got := stream.texts("quiet"); len(got) != 10 {
			t.Errorf("the quiet function has %d lines, want all 10: %q", len(got), got)
		}
		lines, dropped, notes := 0, 0, 0
		for _, text := range stream.texts("chatty") {
			var n, b int
			if _, err := fmt.Sscanf(text, "[doze] %d log lines were dropped here (%d bytes)", &n, &b); err == nil {
				dropped += n
				notes++
				if b != 952*n {
					t.Errorf("%d lines of %d bytes", n, b)
				}
				continue
			}
			lines++
		}
		if lines+dropped != 10_000 || notes == 0 || notes > 2 {
			t.Errorf("%d lines and %d dropped in %d notes, want 10000 in all", lines, dropped, notes)
		}
		// It is over.
		s.Lines(spec("chatty"), "s", 5, [][]byte{[]byte("fine again")})
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := stream.texts("chatty"); got[len(got)-1] != "fine again" {
			t.Errorf("last line %q", got[len(got)-1])
		}
		if s.bytes != 0 {
			t.Errorf("%d bytes are counted and gone", s.bytes)
		}
	})
}

func TestOneFunctionCannotFloodTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stream := &fakeStream{}
		s := open(stream, 0)
		text := []byte(strings.Repeat("x", 1000-lineBytes))
		for range 3 {
			for range 5000 {
				s.Lines(spec("chatty"), "s", 1, [][]byte{text})
				synctest.Wait()
			}
			time.Sleep(2 * flushAfter)
		}
		s.Lines(spec("quiet"), "s", 1, [][]byte{[]byte("heard")})
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		kept := 0
		for _, text := range stream.texts("chatty") {
			if !strings.HasPrefix(text, "[doze]") {
				kept++
			}
		}
		if most := functionBytes / 1000; kept != 3*most {
			t.Errorf("%d lines kept, want %d in each of three flushes", kept, most)
		}
		if got := stream.texts("quiet"); len(got) != 1 {
			t.Errorf("the quiet function has %q", got)
		}
	})
}

func TestRefusedChunksAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stream := &fakeStream{refuses: true}
		s := open(stream, 0)
		s.Lines(spec("f"), "s", 1, [][]byte{[]byte("a")})
		time.Sleep(time.Minute)
		stream.mu.Lock()
		if stream.tries < 25 || stream.tries > 40 {
			t.Errorf("%d tries in a minute", stream.tries)
		}
		stream.mu.Unlock()
		stream.refuse(false)
		time.Sleep(retryAtMost)
		synctest.Wait()
		if got := stream.texts("f"); len(got) != 1 {
			t.Errorf("lines %q, want the one", got)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stream := &fakeStream{refuses: true}
		s := open(stream, 0)
		s.Lines(spec("f"), "s", 1, [][]byte{[]byte("a"), []byte("b")})
		s.Lines(spec("g"), "s", 1, [][]byte{[]byte("c")})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := s.Close(ctx); err == nil || !strings.Contains(err.Error(), "3 log lines") {
			t.Errorf("close: %v, want that 3 lines are lost", err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("close took %v", d)
		}
		s.Lines(spec("f"), "s", 1, [][]byte{[]byte("too late")})
	})
}

func BenchmarkLines(b *testing.B) {
	s := open(&fakeStream{}, 0)
	s.config.Publisher = nothing{}
	defer s.Close(context.Background())
	var functions []*dozev1.FunctionSpec
	for i := range 256 {
		functions = append(functions, spec(fmt.Sprint(i)))
	}
	lines := [][]byte{
		[]byte("START RequestId: 5a0ee0ac-7d6f-4b77-8b4c-4a2ddc9a1f00 Version: $LATEST"),
		[]byte("END RequestId: 5a0ee0ac-7d6f-4b77-8b4c-4a2ddc9a1f00"),
		[]byte("REPORT RequestId: 5a0ee0ac-7d6f-4b77-8b4c-4a2ddc9a1f00\tDuration: 3.01 ms\tBilled Duration: 4 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t"),
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Lines(functions[i%len(functions)], "2024/05/01/[$LATEST]5a0ee0ac7d6f4b778b4c4a2ddc9a1f00", 1, lines)
	}
}

type nothing struct{}

func (nothing) PublishLogs(*dozev1.LogChunk) bool { return true }
