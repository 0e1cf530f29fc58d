package meter

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// verify checks that every epoch's acknowledged records are at the ledger exactly once, in order.
// An epoch may have one more record than was acknowledged: the one that was being written.
func verify(t testing.TB, ledger *fakeLedger, acked map[string][]bill) {
	t.Helper()
	ledger.check(t)
	for epoch, want := range acked {
		got := ledger.counted[epoch]
		if len(got) != len(want) && len(got) != len(want)+1 {
			t.Errorf("epoch %s: the ledger has %d records, acknowledged were %d", epoch, len(got), len(want))
			continue
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("epoch %s: record %d is %+v, want %+v", epoch, i+1, got[i], want[i])
			}
		}
		if len(want) > 0 && !ledger.retired[epoch] {
			t.Errorf("epoch %s was not retired", epoch)
		}
	}
	for epoch, got := range ledger.counted {
		if _, ok := acked[epoch]; !ok && len(got) > 1 {
			t.Errorf("epoch %s is nobody's", epoch)
		}
	}
}

// TestCrashAtEveryOperation lets the process die at each operation on the disk in turn, with
// different parts of the write done, and starts it again.
func TestCrashAtEveryOperation(t *testing.T) {
	for _, cut := range []int{0, 1, 63, 64, 1 << 20} {
		for dieAt := 1; ; dieAt++ {
			survived := false
			synctest.Test(t, func(t *testing.T) {
				survived = crashOnce(t, dieAt, cut)
			})
			if t.Failed() {
				t.Fatalf("at operation %d, write cut at %d", dieAt, cut)
			}
			if survived {
				break
			}
		}
	}
}

// crashOnce reports whether the process came to its end without dying.
func crashOnce(t *testing.T, dieAt, cut int) bool {
	dir, ledger := t.TempDir(), newLedger()
	inner, err := openFolder(filepath.Join(dir, "inner"))
	if err != nil {
		t.Fatal(err)
	}
	defer inner.close()
	acked := map[string][]bill{}
	d := &faultyDisk{disk: inner, dieAt: dieAt, cutAt: cut}
	small := func(c *Config) { c.disk, c.segmentBytes = d, 1<<10 }
	// Opening may be where it dies.
	if m, err := Open(Config{Dir: dir, Stream: ledger, Logger: quiet(), segmentBytes: 1 << 10, MaxBytes: 1 << 20, disk: d}); err == nil {
		for n := range 60 {
			if _, err := m.Append(sample(n)); err != nil {
				break
			}
			acked[m.Epoch()] = append(acked[m.Epoch()], billOf(sample(n)))
			if n%20 == 0 {
				time.Sleep(flushAfter)
			}
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_ = m.Close(ctx)
	}
	survived := !d.dead
	d = &faultyDisk{disk: inner}
	m := openTest(t, dir, ledger, small)
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
	verify(t, ledger, acked)
	empty(t, filepath.Join(dir, "inner"))
	return survived
}

// TestTornTailAtEveryByte cuts a journal at every length, and writes garbage behind the cut.
func TestTornTailAtEveryByte(t *testing.T) {
	dir, ledger := t.TempDir(), newLedger()
	ledger.down = true
	m := openTest(t, dir, ledger, nil)
	ends := []int64{}
	for n := range 12 {
		mustAppend(t, m, n)
		s, _ := m.journal.locate(uint64(n + 1))
		ends = append(ends, s.end)
	}
	closeNow(m)
	files, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for size := 0; size <= len(whole); size++ {
		for _, tail := range []string{"", "\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
			if size == len(whole) && tail != "" {
				continue
			}
			want := 0
			for _, end := range ends {
				if int64(size) >= end {
					want++
				}
			}
			if err := os.WriteFile(files[0], append(whole[:size:size], tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			d := &folder{path: dir}
			found, err := findLeftovers(d)
			if err != nil {
				t.Fatalf("size %d: %v", size, err)
			}
			if len(found) != 1 {
				t.Fatalf("size %d: %d epochs", size, len(found))
			}
			r, err := found[0].load(d, quiet())
			if err != nil {
				t.Fatalf("size %d: %v", size, err)
			}
			// A last byte that is zero is there even when it has been cut off.
			if got := int(r.next - 1); got != want && !(tail != "" && tail[0] == 0 && got == want+1) {
				t.Fatalf("size %d, tail %q: %d records, want %d", size, tail, got, want)
			}
		}
	}
}

// TestAnyCrashesBillOnce is the property: whatever crashes, restarts and losses there are, the
// ledger has each acknowledged record once.
func TestAnyCrashesBillOnce(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { anyCrashes(t, seed) })
		})
	}
}

func anyCrashes(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	dir, ledger := t.TempDir(), newLedger()
	ledger.chaos = rand.New(rand.NewPCG(seed, 2))
	inner, err := openFolder(filepath.Join(dir, "inner"))
	if err != nil {
		t.Fatal(err)
	}
	defer inner.close()
	acked := map[string][]bill{}
	n := 0
	for range 1 + rng.IntN(6) {
		d := &faultyDisk{disk: inner, cutAt: rng.IntN(120), badBytes: rng.IntN(120)}
		if rng.IntN(3) > 0 {
			d.dieAt = 1 + rng.IntN(200)
		}
		m, err := Open(Config{Dir: dir, Stream: ledger, Logger: quiet(), segmentBytes: 1 << 10, MaxBytes: 1 << 20, disk: d})
		if err != nil {
			if !d.dead {
				t.Fatal(err)
			}
			continue
		}
		for range rng.IntN(150) {
			switch rng.IntN(20) {
			case 0:
				d.set(func(d *faultyDisk) { d.badWrites = rng.IntN(3) })
			case 1:
				d.set(func(d *faultyDisk) { d.full = !d.full })
			case 2:
				time.Sleep(time.Duration(rng.IntN(10_000)) * time.Millisecond)
			}
			n++
			if _, err := m.Append(sample(n)); err == nil {
				acked[m.Epoch()] = append(acked[m.Epoch()], billOf(sample(n)))
			} else if acked[m.Epoch()] == nil {
				acked[m.Epoch()] = []bill{}
			}
			if rng.IntN(4) == 0 {
				synctest.Wait()
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(3000))*time.Millisecond)
		_ = m.Close(ctx)
		cancel()
	}
	m := openTest(t, dir, ledger, func(c *Config) { c.disk = inner })
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
	verify(t, ledger, acked)
	empty(t, filepath.Join(dir, "inner"))
}

// child is the process that TestKill9 kills: it appends as fast as it can and says so.
func child(dir string) {
	ledger := newLedger()
	ledger.down = true
	m, err := Open(Config{Dir: dir, Stream: ledger, Logger: quiet(), segmentBytes: 64 << 10, MaxBytes: 64 << 20})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println("epoch", m.Epoch())
	for n := 0; ; n++ {
		if _, err := m.Append(sample(n)); err != nil {
			fmt.Println("error", err)
			return
		}
		fmt.Println("acked", n)
	}
}

func TestKill9(t *testing.T) {
	for round, after := range []int{1, 300, 2500} {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "METER_TEST_CHILD="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var epoch string
		acked := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			switch word, rest, _ := strings.Cut(lines.Text(), " "); word {
			case "epoch":
				epoch = rest
			case "acked":
				acked++
				if acked == after {
					if err := cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				}
			case "error":
				t.Fatal(rest)
			}
		}
		_ = cmd.Wait() // killed, as told
		if acked < after {
			t.Fatalf("round %d: the child ended after %d records", round, acked)
		}
		ledger := newLedger()
		m := openTest(t, dir, ledger, nil)
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []bill{}
		for n := range acked {
			want = append(want, billOf(sample(n)))
		}
		// More may have been journaled than was said.
		got := ledger.counted[epoch]
		if len(got) < len(want) {
			t.Fatalf("round %d: %d records of %d acknowledged", round, len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("round %d: record %d is %+v, want %+v", round, i+1, got[i], want[i])
			}
		}
		ledger.check(t)
		empty(t, dir)
	}
}
