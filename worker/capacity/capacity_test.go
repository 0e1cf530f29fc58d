package capacity

import (
	"errors"
	"testing"
)

func plenty() (int64, bool) { return 1 << 50, true }

// What the platform promises: 200 instances of 128 MB fit where each uses 10.
func TestAdmitsByUse(t *testing.T) {
	c := New(Config{TotalBytes: 2200 * mib, Available: plenty})
	var tokens []*Token
	for n := range 200 {
		token, err := c.Take(Request{Kind: "f", LimitBytes: 128 * mib})
		if err != nil {
			t.Fatalf("instance %d: %v", n, err)
		}
		token.Observe(10 * mib)
		tokens = append(tokens, token)
	}
	for range 21 {
		if _, err := c.Take(Request{Kind: "f", LimitBytes: 128 * mib}); err != nil {
			if !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
			break
		}
	}
	if _, err := c.Take(Request{Kind: "f", LimitBytes: 128 * mib}); !errors.Is(err, ErrFull) {
		t.Fatalf("more than there is: %v", err)
	}
	for _, token := range tokens {
		token.Release()
		token.Release()
	}
	if free := c.Free(); free < 1900*mib {
		t.Errorf("%d MB free after all were released", free/mib)
	}
}

func TestReserve(t *testing.T) {
	for _, test := range []struct {
		name          string
		limit, before int64
		want          int64
	}{
		{"nothing known", 512 * mib, 0, firstReserve},
		{"a small limit is all it can use", 16 * mib, 0, 16 * mib},
		{"what its kind used", 512 * mib, 100 * mib, 100 * mib},
		{"at least the floor", 512 * mib, 1, floor},
		{"never more than its limit", 64 * mib, 100 * mib, 64 * mib},
	} {
		c := New(Config{TotalBytes: 1 << 40, Available: plenty})
		if test.before > 0 {
			token, err := c.Take(Request{Kind: "f", LimitBytes: 1 << 30})
			if err != nil {
				t.Fatal(err)
			}
			token.Observe(test.before)
			token.Release()
		}
		free := c.Free()
		if _, err := c.Take(Request{Kind: "f", LimitBytes: test.limit}); err != nil {
			t.Fatal(err)
		}
		if got := free - c.Free(); got != test.want {
			t.Errorf("%s: reserves %d MB, want %d", test.name, got/mib, test.want/mib)
		}
	}
}

func TestOvercommitBoundsTheLimits(t *testing.T) {
	c := New(Config{TotalBytes: 1000 * mib, Overcommit: 2, Available: plenty})
	for range 2 {
		token, err := c.Take(Request{LimitBytes: 1000 * mib})
		if err != nil {
			t.Fatal(err)
		}
		token.Observe(mib)
	}
	if _, err := c.Take(Request{LimitBytes: mib}); !errors.Is(err, ErrFull) {
		t.Errorf("limits beyond the overcommit: %v", err)
	}
}

func TestMachineIsTheLastGuard(t *testing.T) {
	c := New(Config{TotalBytes: 1 << 40, Available: func() (int64, bool) { return guard, true }})
	if _, err := c.Take(Request{LimitBytes: 128 * mib}); !errors.Is(err, ErrFull) {
		t.Errorf("admitted on a machine that is full: %v", err)
	}
}

func TestParseMeminfo(t *testing.T) {
	raw := []byte("MemTotal:       24601212 kB\nMemAvailable:   123 kB\nHugePages_Total:       0\n")
	if n, ok := parseMeminfo(raw, "MemAvailable:"); !ok || n != 123<<10 {
		t.Errorf("%d, %v", n, ok)
	}
	if _, ok := parseMeminfo(raw, "Swap:"); ok {
		t.Error("found what is not there")
	}
	if Default() <= 0 {
		t.Error("no memory")
	}
}
