package invoke

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/doze-run/doze/bus"
)

// What every warm call counts costs no allocation.
func TestCountingDoesNotAllocate(t *testing.T) {
	c := NewMetrics(prometheus.NewRegistry()).of("python3.11")
	warm, cold := &Answer{Outcome: 1}, &Answer{Outcome: 1, Cold: true}
	if n := testing.AllocsPerRun(1000, func() {
		c.answered(warm, 300*time.Microsecond)
		c.answered(cold, 3*time.Millisecond)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAnswered(b *testing.B) {
	c := NewMetrics(prometheus.NewRegistry()).of("python3.11")
	warm := &Answer{Outcome: 1}
	b.ReportAllocs()
	for b.Loop() {
		c.answered(warm, 300*time.Microsecond)
	}
}

func TestCallsAreCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	p := &plane{has: "python3.11", answers: []*bus.Answer{
		{Outcome: 1}, {Outcome: 1, Cold: true}, {Outcome: 4}, {Outcome: 200},
		{Fault: &bus.Fault{Code: bus.FaultNoCapacity}}, {Fault: &bus.Fault{Code: bus.FaultWorkerLost, Ran: true}}, {Fault: &bus.Fault{Code: bus.FaultStart}},
	}}
	i := New(Config{Asker: p, Workers: p, Unreserved: func(string) int { return 10 }, ARN: func(a, n string) string { return a + n }, Metrics: NewMetrics(registry)})
	f := function(nil)
	for range len(p.answers) {
		_, _ = i.Invoke(t.Context(), call(f))
	}
	zero := 0
	if _, err := i.Invoke(t.Context(), call(function(&zero))); !errors.As(err, new(*Throttled)) {
		t.Errorf("a function without concurrency: %v", err)
	}
	const want = `
# HELP doze_throttles_total Calls that were refused with 429, by AWS's reason.
# TYPE doze_throttles_total counter
doze_throttles_total{reason="CallerRateLimitExceeded"} 0
doze_throttles_total{reason="ConcurrentInvocationLimitExceeded"} 1
doze_throttles_total{reason="FunctionInvocationRateLimitExceeded"} 0
doze_throttles_total{reason="ReservedFunctionConcurrentInvocationLimitExceeded"} 1
doze_throttles_total{reason="ReservedFunctionInvocationRateLimitExceeded"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "doze_throttles_total"); err != nil {
		t.Error(err)
	}
	for outcome, want := range map[string]float64{"ok": 2, "timeout": 1, "unknown": 1, "lost": 1, "not_run": 1} {
		if got := testutil.ToFloat64(i.config.Metrics.calls.WithLabelValues("python3.11", outcome)); got != want {
			t.Errorf("%s: %v, want %v", outcome, got, want)
		}
	}
}
