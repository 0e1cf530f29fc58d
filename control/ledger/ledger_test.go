package ledger

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

var update = flag.Bool("update", false, "write the golden files of the current format anew")

const acct = "000000000000"

// now is 2026-11-15T12:00:00Z.
const now = 1_794_744_000_000

// record is one row of a batch.
type record struct {
	account, function, version string
	ended                      int64
	billed, memory, init       uint32
	outcome                    uint32
}

func batch(epoch string, first uint64, last bool, records ...record) *dozev1.UsageBatch {
	b := &dozev1.UsageBatch{Epoch: epoch, FirstSequence: first, Last: last, RequestIds: make([]byte, 16*len(records))}
	table := map[key]uint32{}
	for _, r := range records {
		k := key{r.account, r.function, r.version}
		n, ok := table[k]
		if !ok {
			n = uint32(len(b.Functions))
			table[k] = n
			b.Functions = append(b.Functions, &dozev1.FunctionKey{Account: r.account, Function: r.function, Version: r.version})
		}
		b.Function = append(b.Function, n)
		b.EndedAtMs = append(b.EndedAtMs, r.ended)
		b.BilledMs = append(b.BilledMs, r.billed)
		b.MemoryMb = append(b.MemoryMb, r.memory)
		b.InitMs = append(b.InitMs, r.init)
		b.Outcome = append(b.Outcome, r.outcome)
	}
	return b
}

func rec(function string) record {
	return record{acct, function, "$LATEST", now, 100, 128, 0, outcomeOK}
}

func records(r record, n int) []record { return slices.Repeat([]record{r}, n) }

// one applies a batch and answers what came of it.
func one(l *Ledger, b *dozev1.UsageBatch) Applied { return l.Apply([]*dozev1.UsageBatch{b})[0] }

func month(t testing.TB, s string) Month {
	t.Helper()
	m, err := ParseMonth(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func statement(t testing.TB, l *Ledger, prices PriceBook) *Statement {
	t.Helper()
	s, err := l.Statement(acct, MonthOf(now), prices, 348)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRecordsCountOnce(t *testing.T) {
	l := New()
	for i, step := range []struct {
		first uint64
		n     int
		last  bool
		mark  uint64
		err   error
		total uint64
	}{
		{first: 2, n: 1, mark: 0, err: ErrGap, total: 0}, // an epoch begins at 1
		{first: 1, n: 3, mark: 3, total: 3},
		{first: 1, n: 3, mark: 3, total: 3}, // again
		{first: 2, n: 4, mark: 5, total: 5}, // overlapping
		{first: 5, n: 1, mark: 5, total: 5},
		{first: 7, n: 1, mark: 5, err: ErrGap, total: 5},
		{first: 6, n: 0, mark: 5, total: 5}, // empty
		{first: 5, n: 0, last: true, mark: 5, total: 5},
		{first: 6, n: 1, mark: 6, total: 6}, // the last record was 5 then: that batch was stale
		{first: 7, n: 0, last: true, mark: 6, total: 6},
		{first: 1, n: 6, mark: 6, total: 6}, // late copy
		{first: 7, n: 0, last: true, mark: 6, total: 6},
		{first: 7, n: 1, mark: 6, err: ErrRetired, total: 6},
	} {
		a := one(l, batch("e", step.first, step.last, records(rec("f"), step.n)...))
		if a.Epoch != "e" || a.Sequence != step.mark || !errors.Is(a.Err, step.err) {
			t.Fatalf("step %d: %+v", i, a)
		}
		var total uint64
		for _, line := range statement(t, l, DefaultPrices()).Functions {
			total += line.Requests
		}
		if total != step.total {
			t.Fatalf("step %d: %d requests, want %d", i, total, step.total)
		}
	}
}

func TestRefusedBatchesChangeNothing(t *testing.T) {
	good := func() *dozev1.UsageBatch { return batch("e", 1, false, rec("f"), rec("g")) }
	for name, change := range map[string]func(*dozev1.UsageBatch){
		"no epoch":            func(b *dozev1.UsageBatch) { b.Epoch = "" },
		"long epoch":          func(b *dozev1.UsageBatch) { b.Epoch = strings.Repeat("e", maxID+1) },
		"newline in epoch":    func(b *dozev1.UsageBatch) { b.Epoch = "a\nb" },
		"sequence 0":          func(b *dozev1.UsageBatch) { b.FirstSequence = 0 },
		"sequence overflow":   func(b *dozev1.UsageBatch) { b.FirstSequence = 1<<64 - 1 },
		"short column":        func(b *dozev1.UsageBatch) { b.BilledMs = b.BilledMs[:1] },
		"long column":         func(b *dozev1.UsageBatch) { b.Outcome = append(b.Outcome, 1) },
		"request ids":         func(b *dozev1.UsageBatch) { b.RequestIds = b.RequestIds[:31] },
		"index":               func(b *dozev1.UsageBatch) { b.Function[1] = 2 },
		"huge index":          func(b *dozev1.UsageBatch) { b.Function[1] = 1<<32 - 1 },
		"no table":            func(b *dozev1.UsageBatch) { b.Functions = nil },
		"nil key":             func(b *dozev1.UsageBatch) { b.Functions[0] = nil },
		"bad key":             func(b *dozev1.UsageBatch) { b.Functions[0].Function = "a/b" },
		"before 1970":         func(b *dozev1.UsageBatch) { b.EndedAtMs[0] = -1 },
		"after the year 9999": func(b *dozev1.UsageBatch) { b.EndedAtMs[0] = maxEndedMs + 1 },
		"memory":              func(b *dozev1.UsageBatch) { b.MemoryMb[0] = MaxMemoryMB + 1 },
	} {
		l := New()
		b := good()
		change(b)
		before := l.Snapshot().Hash()
		if a := one(l, b); !errors.Is(a.Err, ErrBatch) || a.Sequence != 0 {
			t.Errorf("%s: %+v", name, a)
		}
		if l.Snapshot().Hash() != before {
			t.Errorf("%s: changed the ledger", name)
		}
	}
	// One bad batch does not hold up the others.
	l := New()
	bad := good()
	bad.Function = nil
	applied := l.Apply([]*dozev1.UsageBatch{bad, good()})
	if applied[0].Err == nil || applied[1].Err != nil || applied[1].Sequence != 2 {
		t.Fatalf("%+v", applied)
	}
}

func TestTotalsNeverOverflow(t *testing.T) {
	l := New()
	huge := record{acct, "f", "1", now, 1<<32 - 1, MaxMemoryMB, 0, outcomeOK}
	// 4000 records of 2^52 MB·ms fit a uint64, but not twice an int64.
	var refused int
	for i := range uint64(4) {
		a := one(l, batch(fmt.Sprint("e", i), 1, false, records(huge, 1000)...))
		if errors.Is(a.Err, ErrOverflow) {
			refused++
		} else if a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	if refused != 2 {
		t.Fatalf("%d refused", refused)
	}
	if err := Check(batch("x", 1, false, records(huge, 5000)...)); !errors.Is(err, ErrOverflow) {
		t.Fatalf("one batch: %v", err)
	}
	prices := DefaultPrices()
	prices.PerGBSecondPicoUSD = maxPrice
	if _, err := l.Statement(acct, MonthOf(now), prices, 0); !errors.Is(err, ErrOverflow) {
		t.Fatalf("statement: %v", err)
	}
}

func TestOutcomes(t *testing.T) {
	l := New()
	var rs []record
	for outcome := range uint32(10) {
		r := rec("f")
		r.outcome = outcome
		rs = append(rs, r)
	}
	if a := one(l, batch("e", 1, false, rs...)); a.Err != nil || a.Sequence != 10 {
		t.Fatalf("%+v", a)
	}
	s := l.series[key{acct, "f", "$LATEST"}]
	if got := s.month(MonthOf(now)); got != (Totals{Requests: 9, MBMs: 9 * 12800, Errors: 8}) {
		t.Fatalf("%+v: the platform's own fault must not be billed", got)
	}
}

// randomLog is records of one epoch over some functions, versions and months.
func randomLog(r *rand.Rand, n int) []record {
	rs := make([]record, n)
	at := int64(now)
	for i := range rs {
		at += int64(r.IntN(2_000_000)) - 500_000
		rs[i] = record{acct, fmt.Sprintf("f%d", r.IntN(5)), fmt.Sprint(1 + r.IntN(2)), at, uint32(r.IntN(5000)), uint32(128 + r.IntN(4096)), uint32(r.IntN(50)), uint32(r.IntN(9))}
	}
	return rs
}

// ship sends the records of some epochs cut at random, with repeats, interleaved.
func ship(t testing.TB, l *Ledger, r *rand.Rand, logs map[string][]record) {
	t.Helper()
	names := make([]string, 0, len(logs))
	for name := range logs {
		names = append(names, name)
	}
	slices.Sort(names)
	done := map[string]int{}
	for len(names) > 0 {
		i := r.IntN(len(names))
		name := names[i]
		from := done[name]
		if from > 0 && r.IntN(3) == 0 {
			from -= r.IntN(from + 1) // a repeat
		}
		to := min(from+1+r.IntN(60), len(logs[name]))
		last := to == len(logs[name])
		a := one(l, batch(name, uint64(from)+1, last, logs[name][from:to]...))
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		done[name] = int(a.Sequence)
		if last {
			names = slices.Delete(names, i, i+1)
		}
	}
}

func write(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := s.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestHowRecordsAreCutChangesNothing(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		logs := map[string][]record{}
		for i := range 4 {
			logs[fmt.Sprint("epoch-", i)] = randomLog(r, 300)
		}
		a, b := New(), New()
		ship(t, a, r, logs)
		ship(t, b, r, logs)
		if !bytes.Equal(write(t, a.Snapshot()), write(t, b.Snapshot())) {
			t.Fatalf("seed %d: differently cut, differently counted", seed)
		}
		var want Totals
		for _, log := range logs {
			for _, x := range log {
				if x.outcome != outcomePlatform {
					want.Requests++
					want.MBMs += uint64(x.billed) * uint64(x.memory)
				}
			}
		}
		var got Totals
		for m := MonthOf(now) - 2; m < MonthOf(now)+12; m++ {
			s, err := a.Statement(acct, m, DefaultPrices(), 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range s.Functions {
				got.Requests += line.Requests
				got.MBMs += line.MBMs
			}
		}
		if got.Requests != want.Requests || got.MBMs != want.MBMs {
			t.Fatalf("seed %d: counted %+v, sent %+v", seed, got, want)
		}
		// A restored ledger is the same, and goes on the same.
		snap, err := ReadSnapshot(bytes.NewReader(write(t, a.Snapshot())))
		if err != nil {
			t.Fatal(err)
		}
		c := New()
		c.Restore(snap)
		more := map[string][]record{"more": randomLog(r, 100)}
		ship(t, a, rand.New(rand.NewPCG(1, 1)), more)
		ship(t, c, rand.New(rand.NewPCG(2, 2)), more)
		if a.Snapshot().Hash() != c.Snapshot().Hash() || a.mbMs != c.mbMs || a.retired != c.retired {
			t.Fatalf("seed %d: restored ledger differs", seed)
		}
	}
}

func TestSnapshotStandsStillWhileApplyGoesOn(t *testing.T) {
	l := New()
	r := rand.New(rand.NewPCG(1, 1))
	ship(t, l, r, map[string][]record{"a": randomLog(r, 500)})
	snap := l.Snapshot()
	want := write(t, snap)
	var wg sync.WaitGroup
	wg.Go(func() {
		ship(t, l, r, map[string][]record{"b": randomLog(r, 3000)})
	})
	for range 20 {
		if !bytes.Equal(write(t, snap), want) {
			t.Error("snapshot changed")
			break
		}
		statement(t, l, DefaultPrices())
	}
	wg.Wait()
}

func TestOldHoursFoldIntoMonths(t *testing.T) {
	l := New()
	seq := uint64(1)
	// Two records in each hour for 100 days, the second a day late.
	for h := range 100 * 24 {
		r := rec("f")
		r.ended = now + int64(h)*msPerHour
		late := r
		late.ended -= msPerDay
		if a := one(l, batch("e", seq, false, r, late)); a.Err != nil {
			t.Fatal(a.Err)
		}
		seq += 2
	}
	s := l.series[key{acct, "f", "$LATEST"}]
	if len(s.hours) != maxHours || len(s.months) == 0 {
		t.Fatalf("%d hours, %d months", len(s.hours), len(s.months))
	}
	var total, first uint64
	for m := MonthOf(now); m <= MonthOf(now)+4; m++ {
		got := s.month(m).Requests
		if m == MonthOf(now) {
			first = got
		}
		total += got
	}
	// From the 15th, 12:00, to the end of November: 15.5 days, and one more for the late ones.
	if want := uint64(2 * 100 * 24); total != want || first != 372+396 {
		t.Fatalf("%d in all, %d in the first month; want %d, %d", total, first, want, 372+396)
	}
}

func TestForgottenEpochsAreNeverBilledTwice(t *testing.T) {
	l := New()
	epoch := func(i int) *dozev1.UsageBatch {
		r := rec("f")
		r.ended = now + int64(i)*1000
		return batch(fmt.Sprintf("e%06d", i), 1, true, r)
	}
	// One worker's clock is years ahead: it must not raise the horizon.
	ahead := epoch(0)
	ahead.Epoch, ahead.EndedAtMs[0] = "ahead", now+10*365*msPerDay
	all := []*dozev1.UsageBatch{ahead}
	for i := range MaxRetired + 10 {
		all = append(all, epoch(i))
	}
	for _, a := range l.Apply(all) {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	if len(l.epochs) > MaxRetired || l.retired != len(l.epochs) {
		t.Fatalf("%d epochs, %d retired", len(l.epochs), l.retired)
	}
	count := func() uint64 {
		return l.series[key{acct, "f", "$LATEST"}].month(MonthOf(now)).Requests
	}
	before := count()
	// Late copies of everything, forgotten or not, also in two parts.
	for _, a := range l.Apply(all) {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	if count() != before || l.Unbilled() == 0 {
		t.Fatalf("%d requests became %d; %d unbilled", before, count(), l.Unbilled())
	}
	// A new worker is billed, though it is new.
	fresh := epoch(MaxRetired + 100)
	if a := one(l, fresh); a.Err != nil || count() != before+1 {
		t.Fatalf("%+v, %d requests, had %d", a, count(), before)
	}
}

func TestSteadyStateAllocatesByBatchNotByRecord(t *testing.T) {
	l := New()
	rs := records(rec("f"), 1000)
	seq := uint64(1)
	b := batch("e", seq, false, rs...)
	in := []*dozev1.UsageBatch{b}
	l.Apply(in)
	n := testing.AllocsPerRun(50, func() {
		b.FirstSequence += 1000
		if a := l.Apply(in); a[0].Err != nil {
			t.Fatal(a[0].Err)
		}
	})
	if n > 1 { // the answer
		t.Fatalf("%v allocations for 1000 records", n)
	}
}

func golden(t *testing.T) *Ledger {
	l := New()
	r := rand.New(rand.NewPCG(7, 7))
	ship(t, l, r, map[string][]record{"epoch-a": randomLog(r, 20)})
	for i := range maxHours + 3 {
		x := rec("busy")
		x.ended = now + int64(i)*msPerHour
		if a := one(l, batch("epoch-b", uint64(i)+1, false, x)); a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	return l
}

// TestGoldenSnapshot reads and writes the released format. When the format changes, the file stays
// and the new one gets its own.
func TestGoldenSnapshot(t *testing.T) {
	const path = "testdata/snapshot.v1.ndjson"
	got := write(t, golden(t).Snapshot())
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("written:\n%s\nwant:\n%s", got, want)
	}
	snap, err := ReadSnapshot(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	if snap.Hash() != golden(t).Snapshot().Hash() {
		t.Error("read back, it is another ledger")
	}
}

func FuzzReadSnapshot(f *testing.F) {
	f.Add([]byte(`{"format":"doze-ledger","version":1,"epochs":1,"series":1,"horizon":0,"unbilled":0}` + "\n" +
		`{"epoch":"e","mark":1,"ended":1,"floor":0}` + "\n" +
		`{"account":"a","function":"f","version":"1","hours":[[1,2,3,4,5]]}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		snap, err := ReadSnapshot(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, ErrSnapshot) {
				t.Fatal(err)
			}
			return
		}
		l := New()
		l.Restore(snap)
		if l.Snapshot().Hash() != snap.Hash() {
			t.Fatal("restored, it is another ledger")
		}
	})
}

func TestCodec(t *testing.T) {
	in := []*dozev1.UsageBatch{batch("a", 1, false, rec("f")), batch("b", 3, true)}
	data, err := Append([]byte{9}, in)
	if err != nil || data[0] != 9 || data[1] != 1 {
		t.Fatalf("%x, %v", data, err)
	}
	out, err := Decode(data[1:])
	if err != nil || len(out) != 2 || !proto.Equal(out[0], in[0]) || !proto.Equal(out[1], in[1]) {
		t.Fatalf("%v, %v", out, err)
	}
	for name, bad := range map[string][]byte{
		"empty": {}, "number": {2}, "length": {1, 200}, "long length": {1, 5, 0},
		"endless length": {1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}, "not a batch": {1, 1, 255},
		"too many": append([]byte{1}, make([]byte, MaxBatches+1)...), "too long": make([]byte, MaxEntry+1),
	} {
		if _, err := Decode(bad); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := batch("a", 1, false)
	big.RequestIds = make([]byte, MaxEntry)
	if _, err := Append(nil, []*dozev1.UsageBatch{big}); !errors.Is(err, ErrEntry) {
		t.Errorf("too large: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	data, err := Append(nil, []*dozev1.UsageBatch{batch("a", 1, true, rec("f"), rec("g"))})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		batches, err := Decode(data)
		if err != nil {
			return
		}
		l := New()
		first := l.Apply(batches)
		again := l.Apply(batches)
		for i := range first {
			if first[i].Err == nil && again[i].Err == nil && again[i].Sequence < first[i].Sequence {
				t.Fatalf("mark went back: %+v, %+v", first[i], again[i])
			}
		}
		snap, err := ReadSnapshot(bytes.NewReader(write(t, l.Snapshot())))
		if err != nil {
			t.Fatal(err)
		}
		if snap.Hash() != l.Snapshot().Hash() {
			t.Fatal("snapshot reads back differently")
		}
	})
}
