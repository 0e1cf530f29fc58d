package quorum

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// deadline is a context for calls that must come back; it is never waited for.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func openOne(t testing.TB, dir string, change ...func(*Config)) *Node {
	t.Helper()
	cfg := Config{NodeID: "n1", DataDir: dir, Bootstrap: true, Logger: quiet()}
	for _, f := range change {
		f(&cfg)
	}
	n, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.WaitReady(deadline(t)); err != nil {
		t.Fatal(err)
	}
	return n
}

func create(name string) registry.CreateFunction {
	return registry.CreateFunction{Account: "000000000000", Name: name, Version: registry.Version{
		RevisionID: "rev-" + name, LastModified: 1, Config: registry.Config{Timeout: 3, MemorySize: 128},
		Code: registry.Code{SHA256: "00ff", Size: 10},
	}}
}

func usage(epoch string, first uint64, n int, last bool) *dozev1.UsageBatch {
	b := &dozev1.UsageBatch{Epoch: epoch, FirstSequence: first, Last: last,
		Functions: []*dozev1.FunctionKey{{Account: "000000000000", Function: "f", Version: "$LATEST"}}}
	for range n {
		b.Function = append(b.Function, 0)
		b.EndedAtMs = append(b.EndedAtMs, 1_700_000_000_000)
		b.BilledMs = append(b.BilledMs, 10)
		b.MemoryMb = append(b.MemoryMb, 128)
		b.InitMs = append(b.InitMs, 0)
		b.Outcome = append(b.Outcome, 1)
	}
	b.RequestIds = make([]byte, 16*n)
	return b
}

func TestProposeAnswersTheCommandsOwnAnswer(t *testing.T) {
	n := openOne(t, t.TempDir())
	ctx := deadline(t)
	answer, err := n.Propose(ctx, create("f"))
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := answer.(*registry.Version); !ok || v.State != registry.StatePending {
		t.Fatalf("answer = %#v", answer)
	}
	if _, ok := n.Registry().Function("000000000000", "f"); !ok {
		t.Fatal("acknowledged, not visible")
	}
	if _, err := n.Propose(ctx, create("f")); !errors.Is(err, registry.ErrExists) {
		t.Fatalf("second create: %v", err)
	}
	if err := n.Read(ctx); err != nil {
		t.Fatal(err)
	}
	index, err := n.ReadIndex(ctx)
	if err != nil || index != n.AppliedIndex() {
		t.Fatalf("ReadIndex = %d, %v; applied %d", index, err, n.AppliedIndex())
	}
}

func TestProposeRefusesWhatIsTooLarge(t *testing.T) {
	n := openOne(t, t.TempDir())
	cmd := create("f")
	cmd.Version.Config.Description = string(make([]byte, registry.MaxCommand))
	if _, err := n.Propose(deadline(t), cmd); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("err = %v", err)
	}
}

func TestProposeUsageAnswersForEachBatch(t *testing.T) {
	n := openOne(t, t.TempDir())
	broken := usage("e2", 1, 2, false)
	broken.BilledMs = broken.BilledMs[:1]
	applied, err := n.ProposeUsage(deadline(t), []*dozev1.UsageBatch{
		usage("e1", 1, 3, false), broken, usage("e1", 2, 4, false), usage("e1", 9, 1, false),
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		seq uint64
		err error
	}{{3, nil}, {0, ledger.ErrBatch}, {5, nil}, {5, ledger.ErrGap}} {
		if applied[i].Sequence != want.seq || !errors.Is(applied[i].Err, want.err) {
			t.Errorf("batch %d: %+v, want %+v", i, applied[i], want)
		}
	}
	s, err := n.Ledger().Statement("000000000000", ledger.MonthOf(1_700_000_000_000), ledger.DefaultPrices(), 1)
	if err != nil || len(s.Functions) != 1 || s.Functions[0].Requests != 5 {
		t.Fatalf("statement = %+v, %v", s, err)
	}
}

func TestOneVoterLeadsAtOnce(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"fresh", "again"} {
		t.Run(name, func(t *testing.T) {
			// With timers of a minute, nothing but standNow can make it lead.
			n := openOne(t, dir, func(c *Config) { c.Timing.Heartbeat = time.Minute })
			if !n.IsLeader() {
				t.Fatal("ready and not the leader")
			}
			if id, _ := n.Leader(); id != "n1" {
				t.Fatalf("leader = %q", id)
			}
		})
	}
}

func TestOneVoterOverTCPLeadsAtOnceOnAnotherPort(t *testing.T) {
	dir := t.TempDir()
	var addrs []string
	for range 2 {
		func() {
			n, err := Open(Config{NodeID: "n1", DataDir: dir, Bootstrap: true, Logger: quiet(),
				Listener: listen(t), Timing: Timing{Heartbeat: time.Minute}})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			if err := n.WaitReady(deadline(t)); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Propose(deadline(t), create(fmt.Sprint("f", len(addrs)))); err != nil {
				t.Fatal(err)
			}
			_, addr := n.Leader()
			addrs = append(addrs, addr)
		}()
	}
	if addrs[0] == addrs[1] {
		t.Fatalf("addresses = %v", addrs)
	}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRestartFindsEverything(t *testing.T) {
	dir := t.TempDir()
	n := openOne(t, dir)
	ctx := deadline(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if _, err := n.Propose(ctx, create(fmt.Sprintf("f%d", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := n.ProposeUsage(ctx, []*dozev1.UsageBatch{usage("e", 1, 5, true)}); err != nil {
		t.Fatal(err)
	}
	index, sum := n.StateHash()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Propose(ctx, create("late")); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
	m := openOne(t, dir)
	if i, s := m.StateHash(); i != index || s != sum {
		t.Fatalf("state at %d, was at %d, equal %v", i, index, s == sum)
	}
}

func TestSnapshotCutsTheLogAndRestores(t *testing.T) {
	dir := t.TempDir()
	small := func(c *Config) { c.Timing.TrailingLogs = 4 }
	n := openOne(t, dir, small)
	ctx := deadline(t)
	if err := n.Snapshot(ctx); err != nil {
		t.Fatalf("nothing to snapshot: %v", err)
	}
	for i := range 50 {
		if _, err := n.Propose(ctx, create(fmt.Sprintf("f%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Snapshot(ctx); err != nil {
		t.Fatal(err)
	}
	first, err := n.store.FirstIndex()
	if err != nil || first < 40 {
		t.Fatalf("log begins at %d, %v; want it cut", first, err)
	}
	if _, err := n.Propose(ctx, create("behind")); err != nil {
		t.Fatal(err)
	}
	index, sum := n.StateHash()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	m := openOne(t, dir, small)
	if i, s := m.StateHash(); i != index || s != sum {
		t.Fatalf("state at %d, was at %d, equal %v", i, index, s == sum)
	}
	if u := m.Registry().Usage("000000000000"); u.FunctionCount != 51 || u.TotalCodeSize != 510 {
		t.Fatalf("usage = %+v", u)
	}
}

func TestOpenRefusesForeignFolders(t *testing.T) {
	open := func(dir, id string) error {
		n, err := Open(Config{NodeID: id, DataDir: dir, Bootstrap: true, Logger: quiet()})
		if err == nil {
			n.Close()
		}
		return err
	}
	dir := t.TempDir()
	if err := open(dir, "n1"); err != nil {
		t.Fatal(err)
	}
	if err := open(dir, "n2"); !errors.Is(err, ErrNodeID) {
		t.Fatalf("other node: %v", err)
	}
	for name, content := range map[string]string{
		"newer":   `{"format":"doze-raft","version":2,"node":"n1"}`,
		"foreign": `{"format":"consul"}`,
		"junk":    "\x00\x01",
		"huge":    string(make([]byte, maxMark+1)),
	} {
		if err := os.WriteFile(filepath.Join(dir, markFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := open(dir, "n1"); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, markFile)); err != nil {
		t.Fatal(err)
	}
	if err := open(dir, "n1"); !errors.Is(err, ErrFormat) {
		t.Errorf("no mark: %v", err)
	}
}

func TestUnknownEntryHaltsTheNode(t *testing.T) {
	dir := t.TempDir()
	n := openOne(t, dir)
	ctx := deadline(t)
	if _, err := n.Propose(ctx, create("before")); err != nil {
		t.Fatal(err)
	}
	_, sum := n.StateHash()
	if _, err := n.propose(ctx, []byte{forRegistry, 250, '{', '}'}); !errors.Is(err, ErrHalted) {
		t.Fatalf("unknown command: %v", err)
	}
	<-n.Failed()
	if _, err := n.Propose(ctx, create("after")); !errors.Is(err, ErrHalted) {
		t.Fatalf("after it: %v", err)
	}
	if err := n.WaitApplied(ctx, 1<<40); !errors.Is(err, ErrHalted) {
		t.Fatalf("wait: %v", err)
	}
	if _, s := n.StateHash(); s != sum {
		t.Fatal("state changed")
	}
}

func TestProposeEndsWithItsContext(t *testing.T) {
	n := openOne(t, t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := n.Propose(ctx, create("f")); !errors.Is(err, context.Canceled) {
		t.Fatalf("err = %v", err)
	}
	if _, ok := n.Registry().Function("000000000000", "f"); ok {
		t.Fatal("applied")
	}
}

func TestNodeNobodyAddedHasNoLeader(t *testing.T) {
	n, err := Open(Config{NodeID: "n1", DataDir: t.TempDir(), Logger: quiet(), Listener: listen(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	ctx := deadline(t)
	var nl *NotLeaderError
	if _, err := n.Propose(ctx, create("f")); !errors.Is(err, ErrNotLeader) || !errors.As(err, &nl) || nl.ID != "" {
		t.Fatalf("propose: %v", err)
	}
	if err := n.Read(ctx); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("read: %v", err)
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	if err := n.WaitReady(short); !errors.Is(err, context.Canceled) {
		t.Fatalf("ready: %v", err)
	}
}

// BenchmarkPropose is one write to the disk each; BenchmarkProposeTogether shows that many
// proposers share them.
func BenchmarkPropose(b *testing.B) {
	n := openOne(b, b.TempDir())
	ctx := context.Background()
	for i := 0; b.Loop(); i++ {
		if _, err := n.Propose(ctx, create(fmt.Sprintf("f%d", i))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkProposeTogether(b *testing.B) {
	n := openOne(b, b.TempDir())
	ctx := context.Background()
	var next atomic.Int64
	b.SetParallelism(128)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := n.Propose(ctx, create(fmt.Sprintf("f%d", next.Add(1)))); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	n := openOne(b, b.TempDir())
	ctx := context.Background()
	for b.Loop() {
		if err := n.Read(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
