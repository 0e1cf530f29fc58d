package meter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("METER_TEST_CHILD"); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// openTest opens a meter with segments small enough that tests fill some.
func openTest(t testing.TB, dir string, ledger Stream, change func(*Config)) *Meter {
	t.Helper()
	config := Config{Dir: dir, Stream: ledger, Logger: quiet(), segmentBytes: 4 << 10, MaxBytes: 1 << 20}
	if change != nil {
		change(&config)
	}
	m, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustAppend(t testing.TB, m *Meter, n int) uint64 {
	t.Helper()
	sequence, err := m.Append(sample(n))
	if err != nil {
		t.Fatalf("append %d: %v", n, err)
	}
	return sequence
}

// empty fails the test if the folder holds anything but the lock.
func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != lockName {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

// closeNow closes without time for shipping, as close to a kill as a test in one process comes.
func closeNow(m *Meter) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = m.Close(ctx)
}

func TestShipsInOrderTrimsAndRetires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, ledger := t.TempDir(), newLedger()
		m := openTest(t, dir, ledger, nil)
		const total = 1000
		for n := range total {
			if got := mustAppend(t, m, n); got != uint64(n+1) {
				t.Fatalf("sequence %d, want %d", got, n+1)
			}
			if n%50 == 0 {
				synctest.Wait() // lets the keeper make the next segment
			}
		}
		time.Sleep(2 * flushAfter)
		synctest.Wait()
		if got := ledger.count(m.Epoch()); got != total {
			t.Errorf("the ledger has %d records before Close, want %d", got, total)
		}
		if files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix)); err != nil || len(files) > 2 {
			t.Errorf("%d segments are left of what was applied, want the current and the spare (%v)", len(files), err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, got := range ledger.counted[m.Epoch()] {
			if got != billOf(sample(i)) {
				t.Fatalf("record %d is %+v, want %+v", i, got, billOf(sample(i)))
			}
		}
		if !ledger.retired[m.Epoch()] {
			t.Error("the epoch was not retired")
		}
		ledger.check(t)
		empty(t, dir)
		if _, err := m.Append(sample(1)); !errors.Is(err, ErrClosed) {
			t.Errorf("append after close: %v, want ErrClosed", err)
		}
		if err := m.Reserve(); !errors.Is(err, ErrClosed) {
			t.Errorf("reserve after close: %v, want ErrClosed", err)
		}
	})
}

func TestEpochWithoutRecordsSaysNothing(t *testing.T) {
	dir, ledger := t.TempDir(), newLedger()
	m := openTest(t, dir, ledger, nil)
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(ledger.batches) != 0 {
		t.Errorf("published %v", ledger.batches)
	}
	empty(t, dir)
}

func TestBatchesGoWhenOldOrFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ledger := newLedger()
		m := openTest(t, t.TempDir(), ledger, func(c *Config) { c.segmentBytes, c.MaxBytes = 1<<20, 8<<20 })
		defer m.Close(context.Background())
		mustAppend(t, m, 0)
		time.Sleep(flushAfter / 2)
		mustAppend(t, m, 1)
		synctest.Wait()
		if n := ledger.count(m.Epoch()); n != 0 {
			t.Errorf("%d records went after half the wait", n)
		}
		time.Sleep(flushAfter / 2)
		synctest.Wait()
		if n := ledger.count(m.Epoch()); n != 2 {
			t.Errorf("%d records went after the wait, want 2", n)
		}
		for n := range batchRecords {
			mustAppend(t, m, n+2)
		}
		synctest.Wait()
		if n := ledger.count(m.Epoch()); n != batchRecords+2 {
			t.Errorf("%d records went when the batch was full, want all at once", n)
		}
		if n := len(ledger.batches); n != 2 {
			t.Errorf("%d batches, want 2", n)
		}
	})
}

func TestAppendFromManyGoroutines(t *testing.T) {
	dir, ledger := t.TempDir(), newLedger()
	m := openTest(t, dir, ledger, func(c *Config) { c.segmentBytes, c.MaxBytes = 256<<10, 16<<20 })
	const workers, each = 8, 500
	seen := make([]bool, workers*each+1)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				sequence, err := m.Append(sample(w*each + i))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[sequence] {
					t.Errorf("sequence %d twice", sequence)
				}
				seen[sequence] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := ledger.count(m.Epoch()); n != workers*each {
		t.Errorf("%d records, want %d", n, workers*each)
	}
	ledger.check(t)
}

func TestLostAnnouncementsAreAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, ledger := t.TempDir(), newLedger()
		ledger.mute = true
		m := openTest(t, dir, ledger, nil)
		mustAppend(t, m, 0)
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(ledger.batches) != 2 {
			t.Errorf("%d batches, want the record and the last: nothing was to be sent again", len(ledger.batches))
		}
		empty(t, dir)
	})
}

func TestUnappliedIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, ledger := t.TempDir(), newLedger()
		ledger.stalled = true
		m := openTest(t, dir, ledger, nil)
		mustAppend(t, m, 0)
		time.Sleep(flushAfter + resendAfter/2)
		mustAppend(t, m, 1)
		time.Sleep(flushAfter)
		synctest.Wait()
		if n := len(ledger.batches); n != 2 {
			t.Fatalf("%d batches, want 2", n)
		}
		ledger.set(func(f *fakeLedger) { f.stalled = false })
		time.Sleep(2 * resendAfter)
		synctest.Wait()
		if n := ledger.count(m.Epoch()); n != 2 {
			t.Errorf("the ledger has %d records, want both", n)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		ledger.check(t)
		empty(t, dir)
	})
}

func TestOutageOfTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, ledger := t.TempDir(), newLedger()
		ledger.down = true
		m := openTest(t, dir, ledger, nil)
		for n := range 300 {
			mustAppend(t, m, n)
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		ledger.set(func(f *fakeLedger) { f.down = false })
		time.Sleep(retryAtMost + flushAfter)
		synctest.Wait()
		if n := ledger.count(m.Epoch()); n != 300 {
			t.Errorf("%d records after the outage, want 300", n)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		ledger.check(t)
	})
}

func TestCloseIsBoundedAndTheNextStartShips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, ledger := t.TempDir(), newLedger()
		ledger.down = true
		m := openTest(t, dir, ledger, nil)
		for n := range 100 {
			mustAppend(t, m, n)
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if err := m.Close(ctx); !errors.Is(err, errUnapplied) {
			t.Errorf("close: %v, want errUnapplied", err)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("close took %v, want its 3s", took)
		}
		ledger.set(func(f *fakeLedger) { f.down = false })
		m2 := openTest(t, dir, ledger, nil)
		mustAppend(t, m2, 0)
		if err := m2.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := ledger.count(m.Epoch()); n != 100 || !ledger.retired[m.Epoch()] {
			t.Errorf("the first epoch has %d records, retired %v", n, ledger.retired[m.Epoch()])
		}
		if n := ledger.count(m2.Epoch()); n != 1 || !ledger.retired[m2.Epoch()] {
			t.Errorf("the second epoch has %d records, retired %v", n, ledger.retired[m2.Epoch()])
		}
		ledger.check(t)
		empty(t, dir)
	})
}

func TestFullDiskStopsCallsAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, ledger := t.TempDir(), newLedger()
		inner, err := openFolder(filepath.Join(dir, "inner"))
		if err != nil {
			t.Fatal(err)
		}
		defer inner.close()
		d := &faultyDisk{disk: inner, full: true}
		var told []error
		var mu sync.Mutex
		m := openTest(t, dir, ledger, func(c *Config) {
			c.disk = d
			c.OnHealth = func(err error) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, err)
			}
		})
		synctest.Wait()
		if err := m.Reserve(); !errors.Is(err, ErrNoRoom) {
			t.Fatalf("reserve on a full disk: %v, want ErrNoRoom", err)
		}
		if _, err := m.Append(sample(0)); !errors.Is(err, ErrNoRoom) {
			t.Fatalf("append on a full disk: %v, want ErrNoRoom", err)
		}
		d.set(func(d *faultyDisk) { d.full = false })
		time.Sleep(2 * makeAgainAfter)
		synctest.Wait()
		if err := m.Reserve(); err != nil {
			t.Fatalf("reserve with room again: %v", err)
		}
		// Full again: what Reserve promised holds until the allocated room is used.
		d.set(func(d *faultyDisk) { d.full = true })
		appended := 0
		for m.Reserve() == nil {
			mustAppend(t, m, appended)
			appended++
			synctest.Wait()
		}
		for range 10 { // those that were running meanwhile
			mustAppend(t, m, appended)
			appended++
		}
		synctest.Wait()
		d.set(func(d *faultyDisk) { d.full = false })
		time.Sleep(2 * makeAgainAfter)
		synctest.Wait()
		if err := m.Healthy(); err != nil {
			t.Errorf("healthy with room again: %v", err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := ledger.count(m.Epoch()); n != appended {
			t.Errorf("the ledger has %d records, want %d", n, appended)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(told) < 4 || told[0] == nil || told[1] != nil || told[2] == nil || told[3] != nil {
			t.Errorf("told %v, want bad, good, bad, good", told)
		}
		ledger.check(t)
	})
}

func TestLedgerAwayTooLongIsNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ledger := newLedger()
		ledger.down = true
		m := openTest(t, t.TempDir(), ledger, func(c *Config) { c.MaxBytes = 16 << 10 })
		n := 0
		for ; m.Reserve() == nil; n++ {
			mustAppend(t, m, n)
			synctest.Wait()
		}
		if err := m.Healthy(); !errors.Is(err, ErrNoRoom) || !errors.Is(err, errBudget) {
			t.Errorf("healthy: %v, want ErrNoRoom because of the budget", err)
		}
		ledger.set(func(f *fakeLedger) { f.down = false })
		time.Sleep(retryAtMost + makeAgainAfter)
		synctest.Wait()
		if err := m.Healthy(); err != nil {
			t.Errorf("healthy after the ledger came back: %v", err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := ledger.count(m.Epoch()); got != n {
			t.Errorf("the ledger has %d records, want %d", got, n)
		}
	})
}

func TestFailedWriteLeavesNoGap(t *testing.T) {
	for bad := 1; bad <= 2; bad++ {
		for _, cut := range []int{0, 1, 30, 47, 48, 70, 1 << 20} {
			t.Run(fmt.Sprintf("%d writes cut at %d", bad, cut), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					dir, ledger := t.TempDir(), newLedger()
					ledger.down = true
					inner, err := openFolder(filepath.Join(dir, "inner"))
					if err != nil {
						t.Fatal(err)
					}
					defer inner.close()
					d := &faultyDisk{disk: inner, badBytes: cut}
					change := func(c *Config) { c.disk = d }
					m := openTest(t, dir, ledger, change)
					var want []bill
					for n := range 20 {
						if n == 10 {
							d.set(func(d *faultyDisk) { d.badWrites = bad })
						}
						sequence, err := m.Append(sample(n))
						if err == nil {
							want = append(want, billOf(sample(n)))
							if sequence != uint64(len(want)) {
								t.Errorf("sequence %d, want %d", sequence, len(want))
							}
						}
						synctest.Wait()
					}
					if len(want) != 21-bad {
						t.Errorf("%d appends succeeded of 20", len(want))
					}
					// Neither this process nor the next sees what the failed writes left.
					closeNow(m)
					ledger.set(func(f *fakeLedger) { f.down = false })
					m2 := openTest(t, dir, ledger, change)
					if err := m2.Close(t.Context()); err != nil {
						t.Fatal(err)
					}
					got := ledger.counted[m.Epoch()]
					if len(got) != len(want) {
						t.Fatalf("the ledger has %d records, want %d", len(got), len(want))
					}
					for i := range got {
						if got[i] != want[i] {
							t.Errorf("record %d is %+v, want %+v", i+1, got[i], want[i])
						}
					}
					ledger.check(t)
					empty(t, filepath.Join(dir, "inner"))
				})
			})
		}
	}
}

func TestRecordOutOfBounds(t *testing.T) {
	m := openTest(t, t.TempDir(), newLedger(), nil)
	defer m.Close(context.Background())
	for name, spoil := range map[string]func(*Record){
		"long name":      func(r *Record) { r.Function = strings.Repeat("f", MaxNameBytes+1) },
		"no name":        func(r *Record) { r.Account = "" },
		"strange name":   func(r *Record) { r.Version = "1\xff" },
		"before 1970":    func(r *Record) { r.EndedAtMs = -1 },
		"after 9999":     func(r *Record) { r.EndedAtMs = MaxEndedAtMs + 1 },
		"more than 1 TB": func(r *Record) { r.MemoryMB = MaxMemoryMB + 1 },
	} {
		r := sample(0)
		spoil(r)
		if _, err := m.Append(r); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v, want ErrRecord", name, err)
		}
	}
	if err := m.Healthy(); err != nil {
		t.Errorf("a bad record made the journal unhealthy: %v", err)
	}
	if got := mustAppend(t, m, 0); got != 1 {
		t.Errorf("sequence %d after refused records, want 1", got)
	}
}

func TestOneOwnerAtATime(t *testing.T) {
	dir := t.TempDir()
	m := openTest(t, dir, newLedger(), nil)
	defer m.Close(context.Background())
	if _, err := Open(Config{Dir: dir, Stream: newLedger(), Logger: quiet()}); !errors.Is(err, ErrInUse) {
		t.Errorf("second open: %v, want ErrInUse", err)
	}
}

func TestOtherVersionIsRefused(t *testing.T) {
	dir, ledger := t.TempDir(), newLedger()
	ledger.down = true
	m := openTest(t, dir, ledger, nil)
	mustAppend(t, m, 0)
	closeNow(m)
	files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[8] = formatVersion + 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir, Stream: ledger, Logger: quiet()}); !errors.Is(err, ErrVersion) {
		t.Errorf("open: %v, want ErrVersion", err)
	}
	// The refusal let go of the folder and changed nothing.
	b[8] = formatVersion
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	ledger.down = false
	m2 := openTest(t, dir, ledger, nil)
	if err := m2.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := ledger.count(m.Epoch()); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}

func TestLostSegmentSetsTheRestAside(t *testing.T) {
	dir, ledger := t.TempDir(), newLedger()
	synctest.Test(t, func(t *testing.T) {
		ledger.down = true
		m := openTest(t, dir, ledger, nil)
		for n := range 300 {
			mustAppend(t, m, n)
			synctest.Wait()
		}
		closeNow(m)
		files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		if err != nil || len(files) < 4 {
			t.Fatalf("files %v, %v", files, err)
		}
		if err := os.Remove(files[1]); err != nil {
			t.Fatal(err)
		}
		ledger.set(func(f *fakeLedger) { f.down = false })
		m2 := openTest(t, dir, ledger, nil)
		if err := m2.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := ledger.count(m.Epoch())
		if got == 0 || got >= 300 || !ledger.retired[m.Epoch()] {
			t.Errorf("%d records shipped, retired %v; want those before the gap", got, ledger.retired[m.Epoch()])
		}
		aside, err := filepath.Glob(filepath.Join(dir, "*"+damagedSuffix))
		if err != nil || len(aside) != len(files)-2 {
			t.Errorf("set aside %v, want %d files (%v)", aside, len(files)-2, err)
		}
		ledger.check(t)
	})
}

func TestNamesBoundABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ledger := newLedger()
		m := openTest(t, t.TempDir(), ledger, func(c *Config) { c.segmentBytes, c.MaxBytes = 4<<20, 64<<20 })
		const total = 3000
		for n := range total {
			r := sample(n)
			r.Function = fmt.Sprintf("%0*d", MaxNameBytes, n)
			r.Account, r.Version = r.Function, r.Function
			if _, err := m.Append(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := ledger.count(m.Epoch()); n != total {
			t.Errorf("%d records, want %d", n, total)
		}
		for _, b := range ledger.batches {
			if n := proto.Size(b); n > 900<<10 {
				t.Errorf("a batch of %d bytes does not fit a message", n)
			}
		}
	})
}

func TestAnnouncementsOfOthersAreDropped(t *testing.T) {
	ledger := newLedger()
	m := openTest(t, t.TempDir(), ledger, nil)
	defer m.Close(context.Background())
	for n := range 10 {
		m.ship.marks.announce(fmt.Sprint(n), 5)
	}
	m.ship.marks.mu.Lock()
	defer m.ship.marks.mu.Unlock()
	if n := len(m.ship.marks.applied); n != 1 {
		t.Errorf("%d epochs watched, want 1", n)
	}
}
