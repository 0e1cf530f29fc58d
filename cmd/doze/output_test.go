package main

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestReadable(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0.00 ms", 1234 * time.Microsecond: "1.23 ms", 56780 * time.Microsecond: "56.8 ms",
		567 * time.Millisecond: "567 ms", 59960 * time.Millisecond: "59.9 s", 61 * time.Second: "1m01s", 3 * time.Hour: "3h00m", 49 * time.Hour: "2 days",
	} {
		if got := readable(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1024: "1.0 KB", 1 << 20: "1.0 MB", 3 << 29: "1.5 GB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestDollars(t *testing.T) {
	for n, want := range map[int64]string{
		0: "$0.00", 1: "$0.000000001", 20_000_000: "$0.02", 14_600_000_000: "$14.60", -5: "-$0.000000005",
		math.MaxInt64: "$9223372036.854775807", math.MinInt64: "-$9223372036.854775808",
	} {
		if got := dollars(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	table := newTable("NAME", ">N", "WHAT")
	table.add("é", "1", "")
	table.add("longer", "1000", "x")
	table.add("b", "2", "\x1b[2J\r\n\xff")
	var b strings.Builder
	if err := table.print(&b); err != nil {
		t.Fatal(err)
	}
	want := "NAME        N   WHAT\né           1\nlonger   1000   x\nb           2   \\x1b[2J\\r\\n\\xff\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestParseTiming(t *testing.T) {
	for s, want := range map[string][]phase{
		"":                                 nil,
		"queue=120;init=8100;handler=2900": {{"queue", 120 * time.Microsecond}, {"init", 8100 * time.Microsecond}, {"handler", 2900 * time.Microsecond}},
		" queue=1 ; x ; =3;y=-1;z=99999999999999999999;w=1e3": {{"queue", time.Microsecond}},
	} {
		if got := parseTiming(s); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func FuzzParseTiming(f *testing.F) {
	f.Add("queue=120;init=8100;handler=2900")
	f.Add(strings.Repeat("a=1;", 100))
	f.Fuzz(func(t *testing.T, s string) {
		for _, p := range parseTiming(s) {
			if p.took < 0 || p.took > 24*time.Hour || p.name == "" {
				t.Errorf("%q: %+v", s, p)
			}
		}
	})
}
