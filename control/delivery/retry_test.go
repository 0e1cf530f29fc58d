package delivery

import (
	"testing"
	"time"
)

func TestBackoffGrowsWithinItsBounds(t *testing.T) {
	for _, test := range []struct {
		n      uint32
		jitter float64
		want   time.Duration
	}{
		{0, 0, time.Second},
		{0, 1, 2 * time.Second},
		{1, 1, 4 * time.Second},
		{7, 1, 256 * time.Second},
		{8, 1, 5 * time.Minute},
		{8, 0, time.Second},
		{31, 1, 5 * time.Minute},
		{32, 1, 5 * time.Minute},
		{1 << 31, 0.5, 150*time.Second + 500*time.Millisecond},
	} {
		if got := backoff(test.n, test.jitter); got != test.want {
			t.Errorf("backoff(%d, %v) = %v, want %v", test.n, test.jitter, got, test.want)
		}
	}
}

func TestRetryTimeKeepsTheAgeLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, test := range []struct {
		left, wait, want time.Duration
		ok               bool
	}{
		{time.Hour, time.Minute, time.Minute, true},
		{time.Minute, time.Minute, 59 * time.Second, true},
		{time.Minute, time.Hour, 59 * time.Second, true},
		{2 * time.Second, time.Minute, 0, false},
		{0, time.Minute, 0, false},
		{-time.Hour, time.Minute, 0, false},
	} {
		at, ok := retryTime(now, now.Add(test.left), test.wait)
		if ok != test.ok || ok && at.Sub(now) != test.want {
			t.Errorf("%v left, to wait %v: in %v, %v", test.left, test.wait, at.Sub(now), ok)
		}
	}
}

func TestLaneLearns(t *testing.T) {
	l := newLane(laneKey{"1", "f"}, 8)
	l.running = 8
	for i, want := range []time.Duration{laneRest, 2 * laneRest, 4 * laneRest} {
		if got := l.refused(); got != want {
			t.Errorf("pause %d: %v, want %v", i, got, want)
		}
		l.running = l.limit
	}
	if l.limit != 1 {
		t.Errorf("limit %d after three throttles", l.limit)
	}
	for range 100 {
		l.refused()
	}
	if got := l.refused(); got != laneRestMax {
		t.Errorf("pause %v", got)
	}
	for range 100 {
		l.ran(time.Second)
	}
	if l.limit != 8 || l.rests != 0 || l.service < 990*time.Millisecond || l.service > time.Second {
		t.Errorf("after a hundred attempts: limit %d, %d pauses, service %v", l.limit, l.rests, l.service)
	}
	now := time.Unix(0, 0)
	for _, test := range []struct {
		deliveries uint64
		least      time.Duration
	}{{0, putOffMin}, {1, putOffMin}, {2, 2 * putOffMin}, {5, 16 * putOffMin}, {1000, putOffMax}} {
		if got := l.putOff(now, test.deliveries, 0.5); got < test.least || got > putOffMax {
			t.Errorf("put off for %v after %d deliveries", got, test.deliveries)
		}
	}
	// The thousandth that finds no room has to wait for the 999 before it.
	for range 1000 {
		l.putOff(now, 1, 0.5)
	}
	if got := l.putOff(now, 1, 0.5); got < 30*time.Second {
		t.Errorf("the thousandth is put off for %v", got)
	}
}
