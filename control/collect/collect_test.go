package collect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/ledger"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// quorum is a ledger of one node, which can be away or lose its answer.
type quorum struct {
	mu       sync.Mutex
	ledger   *ledger.Ledger
	failures []error // the next answers
	lost     bool    // with an error it counts all the same
}

func (q *quorum) ProposeUsage(_ context.Context, batches []*dozev1.UsageBatch) ([]ledger.Applied, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var err error
	if len(q.failures) > 0 {
		err, q.failures = q.failures[0], q.failures[1:]
		if !q.lost {
			return nil, err
		}
	}
	applied := q.ledger.Apply(batches)
	if err != nil {
		return nil, err
	}
	return applied, nil
}

func (q *quorum) mark(epoch string) (uint64, error) { return q.ledger.Mark(epoch), nil }

func batch(epoch string, first uint64, records int) *dozev1.UsageBatch {
	b := &dozev1.UsageBatch{
		Epoch: epoch, FirstSequence: first,
		Functions: []*dozev1.FunctionKey{{Account: "000000000000", Function: "f", Version: "1"}},
	}
	at := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC).UnixMilli()
	for range records {
		b.Function = append(b.Function, 0)
		b.EndedAtMs = append(b.EndedAtMs, at)
		b.BilledMs = append(b.BilledMs, 10)
		b.MemoryMb = append(b.MemoryMb, 128)
		b.InitMs = append(b.InitMs, 0)
		b.Outcome = append(b.Outcome, 1)
		b.RequestIds = append(b.RequestIds, make([]byte, 16)...)
	}
	return b
}

// rig is a usage stream on a real server, with marks heard and a quorum to collect for.
type rig struct {
	usage  *bus.Usage
	quorum *quorum
	heard  chan *dozev1.UsageApplied
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	log := slog.New(slog.DiscardHandler)
	server, err := bus.StartServer(bus.ServerConfig{
		Name: "test", StoreDir: t.TempDir(), MemoryBytes: 1 << 20, StoreBytes: bus.MinStorageBytes, SyncInterval: time.Minute, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close(context.Background()) })
	conn, err := bus.Connect(t.Context(), bus.ConnConfig{Name: "test", Server: server, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.EnsureStreams(t.Context(), bus.StreamsConfig{StorageBytes: bus.MinStorageBytes, Replicas: 1, EventShards: 1}); err != nil {
		t.Fatal(err)
	}
	r := &rig{usage: conn.Usage(), quorum: &quorum{ledger: ledger.New()}, heard: make(chan *dozev1.UsageApplied, 1000)}
	stop, err := r.usage.OnApplied(func(a *dozev1.UsageApplied) { r.heard <- a })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return r
}

func (r *rig) publish(t testing.TB, batches ...*dozev1.UsageBatch) {
	t.Helper()
	for _, b := range batches {
		if err := r.usage.PublishUsage(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

// run collects in the background until stop.
func (r *rig) run(t testing.TB) (c *Collector, stop func()) {
	t.Helper()
	c = New(r.usage, r.quorum, r.quorum.mark, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := c.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	return c, stop
}

// await waits until a mark has been heard for each epoch.
func (r *rig) await(t testing.TB, want map[string]uint64) {
	t.Helper()
	for len(want) > 0 {
		select {
		case a := <-r.heard:
			if a.Sequence >= want[a.Epoch] {
				delete(want, a.Epoch)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("not heard: %v", want)
		}
	}
}

// check looks up what has been billed: every record is of 10 ms at 128 MB.
func (r *rig) check(t testing.TB, records uint64) {
	t.Helper()
	month, err := ledger.ParseMonth("2024-05")
	if err != nil {
		t.Fatal(err)
	}
	statement, err := r.quorum.ledger.Statement("000000000000", month, ledger.DefaultPrices(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if lines := statement.Functions; len(lines) != 1 || lines[0].Requests != records || lines[0].MBMs != records*1280 {
		t.Errorf("in the ledger: %+v; want %d records", lines, records)
	}
}

func TestCollectCountsEachRecordOnce(t *testing.T) {
	for _, test := range []struct {
		name    string
		batches []*dozev1.UsageBatch
		marks   map[string]uint64
		records uint64
	}{
		{"in order", []*dozev1.UsageBatch{batch("a", 1, 10), batch("a", 11, 5), batch("b", 1, 1)}, map[string]uint64{"a": 15, "b": 1}, 16},
		{"overlapping", []*dozev1.UsageBatch{batch("a", 1, 10), batch("a", 1, 25), batch("a", 5, 3), batch("a", 20, 10)}, map[string]uint64{"a": 29}, 29},
		{"out of order", []*dozev1.UsageBatch{batch("a", 11, 5), batch("a", 16, 5), batch("a", 1, 10)}, map[string]uint64{"a": 20}, 20},
		{"with the last", []*dozev1.UsageBatch{batch("a", 1, 3), {Epoch: "a", FirstSequence: 4, Last: true}}, map[string]uint64{"a": 3}, 3},
		{"beside junk", []*dozev1.UsageBatch{batch("a", 1, 3), {Epoch: "a", FirstSequence: 4, Function: []uint32{7}}, batch("a", 4, 3)}, map[string]uint64{"a": 6}, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			r.publish(t, test.batches...)
			_, stop := r.run(t)
			r.await(t, test.marks)
			stop()
			r.check(t, test.records)
		})
	}
}

// A quorum that is away, or whose answer is lost, costs time and nothing else.
func TestCollectSurvivesTheQuorum(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprint("counted all the same: ", lost), func(t *testing.T) {
			r := newRig(t)
			r.quorum.lost = lost
			r.quorum.failures = []error{errors.New("no leader"), errors.New("no leader"), errors.New("no leader")}
			for i := range uint64(20) {
				r.publish(t, batch("a", 1+10*i, 10))
			}
			_, stop := r.run(t)
			r.await(t, map[string]uint64{"a": 200})
			stop()
			r.check(t, 200)
		})
	}
}

// The next leader goes on where the last one was, and two at once do no harm.
func TestCollectChangesHands(t *testing.T) {
	r := newRig(t)
	_, stopFirst := r.run(t)
	_, stopSecond := r.run(t)
	for i := range uint64(50) {
		r.publish(t, batch("a", 1+2*i, 2))
		if i == 25 {
			stopFirst()
		}
	}
	r.await(t, map[string]uint64{"a": 100})
	stopSecond()
	r.check(t, 100)
}

// A batch whose forerunner never came stays in the stream, and the worker hears from where to ship.
func TestCollectTellsOfAGap(t *testing.T) {
	r := newRig(t)
	c, stop := r.run(t)
	r.publish(t, batch("a", 1, 10))
	r.await(t, map[string]uint64{"a": 10})
	r.publish(t, batch("a", 21, 10))
	r.await(t, map[string]uint64{"a": 10})
	if mark, err := r.usage.AppliedMark(t.Context(), "a"); mark != 10 || err != nil {
		t.Errorf("mark %d, %v", mark, err)
	}
	if s := c.Stats(); s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
	r.publish(t, batch("a", 11, 10))
	r.await(t, map[string]uint64{"a": 30})
	stop()
	r.check(t, 30)
	if _, err := r.usage.AppliedMark(t.Context(), "a"); !errors.Is(err, bus.ErrNoCollector) {
		t.Errorf("a collector that has ended answers: %v", err)
	}
}

// What can never be counted does not come again and again.
func TestCollectDropsWhatIsRefused(t *testing.T) {
	r := newRig(t)
	r.publish(t, batch("a", 1, 3), &dozev1.UsageBatch{Epoch: "a", FirstSequence: 4, Last: true}, batch("a", 4, 3),
		&dozev1.UsageBatch{Epoch: "a", FirstSequence: 0}, batch("b", 1, 1))
	c, stop := r.run(t)
	r.await(t, map[string]uint64{"b": 1})
	stop()
	r.check(t, 4)
	if s := c.Stats(); s.Dropped != 2 || s.Batches != 3 {
		t.Errorf("%+v", s)
	}
}
