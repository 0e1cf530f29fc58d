package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

func newLogs(t testing.TB, s *store) *Logs {
	t.Helper()
	l, err := s.conn.Logs()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flushLogs(t, l) })
	return l
}

func flushLogs(t testing.TB, l *Logs) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	select {
	case <-l.js.PublishAsyncComplete():
	case <-ctx.Done():
		t.Error("log chunks were not acknowledged")
	}
}

func lines(at time.Time, texts ...string) []*dozev1.LogLine {
	var out []*dozev1.LogLine
	for i, text := range texts {
		out = append(out, &dozev1.LogLine{AtMs: at.UnixMilli() + int64(i), Stream: "2024/05/01/[$LATEST]00", Text: []byte(text)})
	}
	return out
}

func readLogs(t testing.TB, l *Logs, account, function string, since time.Time) []string {
	t.Helper()
	var got []string
	if err := l.ReadLogs(t.Context(), account, function, since, false, func(line *dozev1.LogLine) error {
		got = append(got, string(line.Text))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestLogsAreReadByFunctionAndTime(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	l := newLogs(t, s)
	now := time.Now()
	for _, chunk := range []*dozev1.LogChunk{
		{Account: "1", Function: "f", Lines: lines(now.Add(-time.Hour), "old")},
		{Account: "1", Function: "f", Lines: lines(now, "a", "", "b\x00\xff")},
		{Account: "1", Function: "f.g", Lines: lines(now, "other function")},
		{Account: "2", Function: "f", Lines: lines(now, "other account")},
		{Account: "1", Function: "f", Lines: lines(now.Add(time.Second), "c")},
		{Account: "1", Function: "f"},
	} {
		if !l.PublishLogs(chunk) {
			t.Error("dropped")
		}
	}
	flushLogs(t, l)
	for _, test := range []struct {
		account, function string
		since             time.Time
		want              []string
	}{
		{"1", "f", time.Time{}, []string{"old", "a", "", "b\x00\xff", "c"}},
		{"1", "f", now, []string{"a", "", "b\x00\xff", "c"}},
		{"1", "f", now.Add(time.Millisecond), []string{"", "b\x00\xff", "c"}},
		{"1", "f", now.Add(time.Hour), nil},
		{"1", "f.g", time.Time{}, []string{"other function"}},
		{"2", "f", time.Time{}, []string{"other account"}},
		{"1", "*", time.Time{}, nil},
		{"1", "nobody", time.Time{}, nil},
	} {
		if got := readLogs(t, l, test.account, test.function, test.since); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", test.want) {
			t.Errorf("%s/%s since %v: %q, want %q", test.account, test.function, test.since, got, test.want)
		}
	}
	enough := errors.New("enough")
	if err := l.ReadLogs(t.Context(), "1", "f", time.Time{}, true, func(*dozev1.LogLine) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the reader's error: %v", err)
	}
}

func TestLogsAreFollowed(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	l := newLogs(t, s)
	l.PublishLogs(&dozev1.LogChunk{Account: "1", Function: "f", Lines: lines(time.Now(), "0")})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan string, 100)
	var reader sync.WaitGroup
	reader.Go(func() {
		err := l.ReadLogs(ctx, "1", "f", time.Time{}, true, func(line *dozev1.LogLine) error {
			got <- string(line.Text)
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("follow: %v", err)
		}
	})
	for i := range 50 {
		select {
		case line := <-got:
			if line != fmt.Sprint(i) {
				t.Errorf("line %d is %q", i, line)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("line %d did not come", i)
		}
		l.PublishLogs(&dozev1.LogChunk{Account: "1", Function: "f", Lines: lines(time.Now(), fmt.Sprint(i+1))})
	}
	cancel()
	reader.Wait()
}

// A chatty function pushes out its own lines, not those of others.
func TestLogsAreBoundedPerFunction(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	l := newLogs(t, s)
	quiet := &dozev1.LogChunk{Account: "1", Function: "quiet", Lines: lines(time.Now(), "still here")}
	l.PublishLogs(quiet)
	flushLogs(t, l)
	line := strings.Repeat("x", 250<<10)
	for range 60 { // 15 MB into a stream of 5
		l.PublishLogs(&dozev1.LogChunk{Account: "1", Function: "chatty", Lines: lines(time.Now(), line)})
		flushLogs(t, l)
	}
	if got := readLogs(t, l, "1", "quiet", time.Time{}); len(got) != 1 {
		t.Errorf("the quiet function has %d lines", len(got))
	}
	if got := readLogs(t, l, "1", "chatty", time.Time{}); len(got) == 0 || len(got) > 16 {
		t.Errorf("the chatty function has %d lines", len(got))
	}
}

// Lines are cut into chunks, in order; a line over the bound is dropped and counted.
func TestLogChunksAreCut(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	l := newLogs(t, s)
	var texts []string
	for i := range 40 {
		texts = append(texts, fmt.Sprintf("%d %s", i, strings.Repeat("x", i*500)))
	}
	if !l.PublishLogs(&dozev1.LogChunk{Account: "1", Function: "f", Lines: lines(time.Now(), texts...)}) {
		t.Error("dropped")
	}
	flushLogs(t, l)
	if got := readLogs(t, l, "1", "f", time.Time{}); fmt.Sprint(got) != fmt.Sprint(texts) {
		t.Errorf("%d lines came back of %d", len(got), len(texts))
	}
	if l.PublishLogs(&dozev1.LogChunk{Account: "1", Function: "f", Lines: lines(time.Now(), strings.Repeat("x", 300<<10))}) {
		t.Error("a line over the bound was stored")
	}
	if l.Dropped() != 1 {
		t.Errorf("%d dropped, want 1", l.Dropped())
	}
}

// Without a store nothing waits and nothing piles up: chunks are dropped and counted.
func TestLogsDoNotWait(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	l, err := s.conn.Logs()
	if err != nil {
		t.Fatal(err)
	}
	s.server.inner.Load().Shutdown()
	text := strings.Repeat("x", 60<<10)
	chunk := &dozev1.LogChunk{Account: "1", Function: "f", Lines: lines(time.Now(), text)}
	begun := time.Now()
	const chunks = 3000
	for range chunks {
		l.PublishLogs(chunk)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if held := l.outstanding.Load(); held > logPendingBytes+maxLogChunk {
		t.Errorf("%d bytes are outstanding", held)
	}
	if l.Dropped() < chunks-logPendingBytes/(60<<10)-1 {
		t.Errorf("%d dropped", l.Dropped())
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: %v", err)
	}
}
