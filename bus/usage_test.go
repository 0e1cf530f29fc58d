package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

func testBatch(epoch string, first uint64, records int) *dozev1.UsageBatch {
	b := &dozev1.UsageBatch{
		Epoch: epoch, FirstSequence: first,
		Functions: []*dozev1.FunctionKey{{Account: "000000000000", Function: "f", Version: "$LATEST"}},
	}
	for range records {
		b.Function = append(b.Function, 0)
		b.EndedAtMs = append(b.EndedAtMs, 1)
		b.BilledMs = append(b.BilledMs, 1)
		b.MemoryMb = append(b.MemoryMb, 128)
		b.InitMs = append(b.InitMs, 0)
		b.Outcome = append(b.Outcome, 1)
		b.RequestIds = append(b.RequestIds, make([]byte, 16)...)
	}
	return b
}

// collect consumes in the background until stop.
func collect(t testing.TB, u *Usage, handler func([]*UsageDelivery)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		err := u.ConsumeUsage(ctx, func(_ context.Context, batches []*UsageDelivery) { handler(batches) })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("consume: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	return stop
}

func TestUsageComesInOrderAndTogether(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	u := s.conn.Usage()
	const batches = 100
	for i := range uint64(batches) {
		if err := u.PublishUsage(t.Context(), testBatch("e.1", 1+10*i, 10)); err != nil {
			t.Fatal(err)
		}
	}
	s.restart()
	u = s.conn.Usage()
	got := make(chan *dozev1.UsageBatch, batches)
	calls := 0
	stop := collect(t, u, func(deliveries []*UsageDelivery) {
		calls++
		for _, d := range deliveries {
			if err := d.Ack(); err != nil {
				t.Error(err)
			}
			got <- d.Batch
		}
	})
	for i := range uint64(batches) {
		select {
		case b := <-got:
			if b.FirstSequence != 1+10*i || len(b.Function) != 10 {
				t.Errorf("batch %d begins at %d", i, b.FirstSequence)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("batch %d did not come", i)
		}
	}
	stop()
	if calls > batches/8 {
		t.Errorf("%d batches came in %d calls", batches, calls)
	}
}

func TestUsageIsStoredOnce(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	u := s.conn.Usage()
	last := testBatch("e", 1, 10)
	last.Last = true
	for _, b := range []*dozev1.UsageBatch{
		testBatch("e", 1, 10), testBatch("e", 1, 10), // published again: once
		testBatch("e", 1, 25), // cut anew after a restart: not the same
		last,                  // nor is the one that ends the epoch
		testBatch("e2", 1, 10),
	} {
		if err := u.PublishUsage(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := s.conn.js.Stream(t.Context(), usageStream)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 4 {
		t.Errorf("%d of 5 batches are stored, want 4", n)
	}
}

func TestUsageNotSettledComesAgain(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	u := s.conn.Usage()
	for i := range uint64(3) {
		if err := u.PublishUsage(t.Context(), testBatch("e", i+1, 1)); err != nil {
			t.Fatal(err)
		}
	}
	seen := make(chan uint64, 100)
	var mu sync.Mutex
	times := map[uint64]int{}
	collect(t, u, func(deliveries []*UsageDelivery) {
		mu.Lock()
		defer mu.Unlock()
		for _, d := range deliveries {
			n := d.Batch.FirstSequence
			times[n]++
			// The first is settled at once, the second left, the third given back once.
			switch {
			case n == 1, times[n] == 2:
				if err := d.Ack(); err != nil {
					t.Error(err)
				}
				seen <- n
			case n == 3:
				if err := d.Nak(10 * time.Millisecond); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 3 {
		select {
		case <-seen:
		case <-time.After(20 * time.Second):
			t.Fatal("not all came")
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(times) != "map[1:1 2:2 3:2]" {
		t.Errorf("came %v times", times)
	}
}

func TestUsageRefusesWhenFull(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	u := s.conn.Usage()
	for i := range uint64(1000) {
		err := u.PublishUsage(t.Context(), testBatch("e", i*20000, 20000))
		if errors.Is(err, ErrUsageFull) {
			if i == 0 {
				t.Error("the first was refused")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Error("no bound")
}

func TestUsageBatchIsBounded(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	if err := s.conn.Usage().PublishUsage(t.Context(), testBatch("e", 1, 60000)); err == nil || errors.Is(err, ErrUsageFull) {
		t.Errorf("a batch over the bound: %v", err)
	}
}

func TestAppliedMarks(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	u := s.conn.Usage()
	if _, err := u.AppliedMark(t.Context(), "e"); !errors.Is(err, ErrNoCollector) {
		t.Errorf("without a collector: %v", err)
	}
	broken := errors.New("not the leader any more")
	stopAnswer, err := u.AnswerApplied(func(epoch string) (uint64, error) {
		switch epoch {
		case "e.*":
			return 42, nil
		case "broken":
			return 0, broken
		}
		return 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for epoch, want := range map[string]uint64{"e.*": 42, "unknown": 0} {
		if got, err := u.AppliedMark(t.Context(), epoch); got != want || err != nil {
			t.Errorf("mark of %q: %d, %v", epoch, got, err)
		}
	}
	if _, err := u.AppliedMark(t.Context(), "broken"); err == nil {
		t.Error("an error came as a mark")
	}
	var mu sync.Mutex
	var heard []string
	done := make(chan struct{})
	stopHear, err := u.OnApplied(func(a *dozev1.UsageApplied) {
		mu.Lock()
		defer mu.Unlock()
		if heard = append(heard, fmt.Sprint(a.Epoch, a.Sequence)); len(heard) == 2 {
			close(done)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	announce := func(epoch string, sequence uint64) {
		if err := u.AnnounceApplied("store", &dozev1.UsageApplied{Epoch: epoch, Sequence: sequence}); err != nil {
			t.Error(err)
		}
		if err := s.conn.nc.Flush(); err != nil {
			t.Error(err)
		}
	}
	announce("e.*", 7)
	announce("other", 8)
	<-done
	stopHear()
	announce("e.*", 9)
	if fmt.Sprint(heard) != "[e.*7 other8]" {
		t.Errorf("heard %v", heard)
	}
	if err := stopAnswer(); err != nil {
		t.Error(err)
	}
}
