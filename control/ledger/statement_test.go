package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"
)

func TestMonthAgainstTheCalendar(t *testing.T) {
	for day := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC); day.Year() < 2410; day = day.AddDate(0, 0, 1) {
		for _, ms := range []int64{day.UnixMilli(), day.UnixMilli() + msPerDay - 1} {
			m := MonthOf(ms)
			if m.String() != day.Format("2006-01") {
				t.Fatalf("%s: %s", day, m)
			}
			start := time.Date(day.Year(), day.Month(), 1, 0, 0, 0, 0, time.UTC)
			if m.StartMs() != start.UnixMilli() || m.Hours() != int64(start.AddDate(0, 1, 0).Sub(start)/time.Hour) {
				t.Fatalf("%s: starts %d, has %d hours", m, m.StartMs(), m.Hours())
			}
		}
	}
	if m := MonthOf(maxEndedMs); m.String() != "9999-12" {
		t.Fatal(m)
	}
}

func TestParseMonth(t *testing.T) {
	for _, s := range []string{"1970-01", "2026-11", "9999-12"} {
		if m, err := ParseMonth(s); err != nil || m.String() != s {
			t.Errorf("%s: %v, %v", s, m, err)
		}
	}
	for _, s := range []string{"", "2026", "2026-1", "2026-13", "2026-00", "1969-12", "2026/11", "2026-1x", "+026-11", "2026-111"} {
		if _, err := ParseMonth(s); !errors.Is(err, ErrMonth) {
			t.Errorf("%q: %v", s, err)
		}
	}
	m := month(t, "2026-11")
	for at, want := range map[int64]int64{m.StartMs() - 1: 0, m.StartMs(): 0, m.StartMs() + 1: 1, now: 348, now + 1: 349, now + 365*msPerDay: 720} {
		if got := m.Elapsed(at); got != want {
			t.Errorf("%d: %d hours, want %d", at, got, want)
		}
	}
}

// TestStatementByHand is bills that can be checked with a pencil.
func TestStatementByHand(t *testing.T) {
	l := New()
	// f: 3 requests of 1000 ms at 1024 MB = 3 GB-s; g: 1 request of 500 ms at 512 MB = 0.25 GB-s.
	f, g := rec("f"), rec("g")
	f.billed, f.memory, g.billed, g.memory = 1000, 1024, 500, 512
	other := f
	other.account = "111111111111"
	if a := one(l, batch("e", 1, false, f, g, f, other, f)); a.Err != nil {
		t.Fatal(a.Err)
	}
	prices := DefaultPrices()
	for name, c := range map[string]struct {
		freeRequests, freeGBs int64
		want                  string
	}{
		"all free": {1_000_000, 400_000, `{"month":"2026-11","functions":[` +
			`{"function":"f","requests":3,"mbMs":3072000,"gbSeconds":3,"freeRequests":3,"freeGbSeconds":3,"amountNanoUSD":0},` +
			`{"function":"g","requests":1,"mbMs":256000,"gbSeconds":0.25,"freeRequests":1,"freeGbSeconds":0.25,"amountNanoUSD":0}],` +
			`"totalNanoUSD":0,"alwaysOnNanoUSD":6960000000}`},
		// 3 × 20 + 3 × 16700 = 50160; 1 × 20 + 0.25 × 16700 = 4195.
		"nothing free": {0, 0, `{"month":"2026-11","functions":[` +
			`{"function":"f","requests":3,"mbMs":3072000,"gbSeconds":3,"freeRequests":0,"freeGbSeconds":0,"amountNanoUSD":50160},` +
			`{"function":"g","requests":1,"mbMs":256000,"gbSeconds":0.25,"freeRequests":0,"freeGbSeconds":0,"amountNanoUSD":4195}],` +
			`"totalNanoUSD":54355,"alwaysOnNanoUSD":6960000000}`},
		// Requests: 2 of 4 free, 1.5 and 0.5: the tie goes to f. GB-s: 1 of 3.25 free.
		// f: 1 × 20 + (3072000 - 945231) × 16.7 / 1024 = 20 + 34684.62; g: 20 + (256000 - 78769) × 16.7 / 1024 = 20 + 2890.38.
		// Exactly 37615 in all; 34704 + 2910 leaves one, which goes to f's larger remainder.
		"some free": {2, 1, `{"month":"2026-11","functions":[` +
			`{"function":"f","requests":3,"mbMs":3072000,"gbSeconds":3,"freeRequests":2,"freeGbSeconds":0.9230771484375,"amountNanoUSD":34705},` +
			`{"function":"g","requests":1,"mbMs":256000,"gbSeconds":0.25,"freeRequests":0,"freeGbSeconds":0.0769228515625,"amountNanoUSD":2910}],` +
			`"totalNanoUSD":37615,"alwaysOnNanoUSD":6960000000}`},
	} {
		t.Run(name, func(t *testing.T) {
			prices.FreeRequests, prices.FreeGBSeconds = c.freeRequests, c.freeGBs
			got, err := json.Marshal(statement(t, l, prices))
			if err != nil || string(got) != c.want {
				t.Errorf("%s\nwant\n%s\n%v", got, c.want, err)
			}
		})
	}
	empty, err := l.Statement("nobody", month(t, "2026-11"), DefaultPrices(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := json.Marshal(empty); string(got) != `{"month":"2026-11","functions":[],"totalNanoUSD":0,"alwaysOnNanoUSD":20000000}` {
		t.Fatalf("%s", got)
	}
}

// TestStatementAddsUp holds what a statement promises, for any use and any prices.
func TestStatementAddsUp(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		l := New()
		var seq uint64 = 1
		n := 1 + r.IntN(12)
		for i := range n {
			x := rec(fmt.Sprintf("f%02d", i))
			x.billed, x.memory = r.Uint32N(1_000_000), 1+r.Uint32N(10240)
			count := 1 + r.IntN(30)
			if a := one(l, batch("e", seq, false, records(x, count)...)); a.Err != nil {
				t.Fatal(a.Err)
			}
			seq += uint64(count)
		}
		prices := PriceBook{
			PerMillionRequestsNanoUSD: r.Int64N(1e9), PerGBSecondPicoUSD: r.Int64N(1e9),
			FreeRequests: r.Int64N(200), FreeGBSeconds: r.Int64N(100_000),
		}
		s := statement(t, l, prices)
		var requests, free, mbMs, freeMBMs, total uint64
		for _, line := range s.Functions {
			if line.FreeRequests > line.Requests || uint64(line.FreeGBSeconds) > line.MBMs || line.AmountNanoUSD < 0 || uint64(line.GBSeconds) != line.MBMs {
				t.Fatalf("seed %d: %+v", seed, line)
			}
			requests, free = requests+line.Requests, free+line.FreeRequests
			mbMs, freeMBMs = mbMs+line.MBMs, freeMBMs+uint64(line.FreeGBSeconds)
			total += uint64(line.AmountNanoUSD)
		}
		if free != min(requests, uint64(prices.FreeRequests)) || freeMBMs != min(mbMs, uint64(prices.FreeGBSeconds)*mbMsPerGBSecond) {
			t.Fatalf("seed %d: %d requests, %d MB·ms free", seed, free, freeMBMs)
		}
		exact := new(big.Rat).Add(
			new(big.Rat).Mul(rat(requests-free, 1), rat(uint64(prices.PerMillionRequestsNanoUSD), 1_000_000)),
			new(big.Rat).Mul(rat(mbMs-freeMBMs, mbMsPerGBSecond), rat(uint64(prices.PerGBSecondPicoUSD), 1000)))
		down := new(big.Int).Quo(exact.Num(), exact.Denom())
		if total != uint64(s.TotalNanoUSD) || down.Uint64() != total {
			t.Fatalf("seed %d: lines %d, total %d, exactly %s", seed, total, s.TotalNanoUSD, exact)
		}
	}
}

func rat(a, b uint64) *big.Rat {
	return new(big.Rat).SetFrac(new(big.Int).SetUint64(a), new(big.Int).SetUint64(b))
}

func TestGBSeconds(t *testing.T) {
	for mbMs, want := range map[GBSeconds]string{
		0: "0", 1: "0.0000009765625", mbMsPerGBSecond: "1", mbMsPerGBSecond + 512_000: "1.5",
	} {
		if mbMs.String() != want {
			t.Errorf("%d: %s, want %s", uint64(mbMs), mbMs, want)
		}
	}
	largest := GBSeconds(1<<64 - 1)
	if r, ok := new(big.Rat).SetString(largest.String()); !ok || r.Cmp(rat(uint64(largest), mbMsPerGBSecond)) != 0 {
		t.Errorf("%s is not exact", largest)
	}
}

func TestPriceBook(t *testing.T) {
	p := DefaultPrices()
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []PriceBook{{FreeRequests: -1}, {PerGBSecondPicoUSD: maxPrice + 1}, {AlwaysOnPerHourNanoUSD: -5}} {
		if err := bad.Validate(); !errors.Is(err, ErrPrice) {
			t.Errorf("%+v: %v", bad, err)
		}
		if _, err := New().Statement(acct, 24000, bad, 1); !errors.Is(err, ErrPrice) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
