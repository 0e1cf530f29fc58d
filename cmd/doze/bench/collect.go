package bench

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// collector gathers what the rounds of a run measure and makes rows of it at the end.
// It is used by one goroutine.
type collector struct {
	rows     []Row
	want     map[string]bool
	measured map[string]*series
}

// series is what was measured for one row.
type series struct {
	rounds            map[int]Figures
	latency, open     *hdrhistogram.Histogram // nanoseconds, all rounds together
	calls, errors     int64
	firstError        string
	note, notMeasured string
	runtime           string
}

func newCollector(rows []Row, want map[string]bool) *collector {
	return &collector{rows: rows, want: want, measured: make(map[string]*series)}
}

// any says whether one of the rows with this prefix is wanted.
func (c *collector) any(prefix string) bool {
	for k := range c.want {
		if len(k) >= len(prefix) && k[:len(prefix)] == prefix {
			return true
		}
	}
	return false
}

func (c *collector) of(key string) *series {
	s := c.measured[key]
	if s == nil {
		s = &series{rounds: make(map[int]Figures)}
		c.measured[key] = s
	}
	return s
}

// observe adds the figures of one round to a row.
func (c *collector) observe(key string, round int, f Figures) {
	s := c.of(key)
	if s.rounds[round] == nil {
		s.rounds[round] = make(Figures)
	}
	for name, v := range f {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			s.rounds[round][name] = v
		}
	}
}

// load adds one load's sample to a row, as its closed loop or as its open one.
func (c *collector) load(key string, round int, sample *Sample, open bool) {
	s := c.of(key)
	s.calls += sample.Calls
	s.fail(sample.Errors, sample.FirstError)
	into, f := &s.latency, Figures{Rate: sample.Rate(), P50: millis(sample.Latency.ValueAtQuantile(50)), P99: millis(sample.Latency.ValueAtQuantile(99))}
	if open {
		into, f = &s.open, Figures{OpenRate: sample.Intended, OpenP50: f[P50], OpenP99: f[P99]}
	} else {
		f[GeneratorCPU] = sample.GeneratorShare()
	}
	if sample.Calls == 0 {
		return
	}
	if *into == nil {
		*into = newHistogram()
	}
	(*into).Merge(sample.Latency)
	c.observe(key, round, f)
}

// timing adds one latency to a row whose figures are percentiles of single calls.
func (c *collector) timing(key string, nanos int64) {
	s := c.of(key)
	if s.latency == nil {
		s.latency = newHistogram()
	}
	s.calls++
	record(s.latency, nanos)
}

func (s *series) fail(n int64, text string) {
	s.errors += n
	if s.firstError == "" {
		s.firstError = text
	}
}

func (c *collector) fail(key string, err error) { c.of(key).fail(1, err.Error()) }

func (c *collector) note(key, note string) { c.of(key).note = note }

// skip records why rows could not be measured; figures that are there stay.
func (c *collector) skip(reason error, keys ...string) {
	for _, k := range keys {
		if s := c.of(k); s.notMeasured == "" {
			s.notMeasured = reason.Error()
		}
	}
}

// errNotReached is the reason for a row that a run ended before.
var errNotReached = errors.New("the run ended before this row")

// finish makes the rows: medians of the rounds, percentiles of all rounds together, ratios, targets.
func (c *collector) finish() []Row {
	c.subtractFloor()
	var out []Row
	for _, r := range c.rows {
		if !c.want[r.Key] {
			continue
		}
		s := c.of(r.Key)
		if s.runtime != "" {
			r.Runtime = s.runtime
		}
		r.Calls, r.Errors, r.FirstError, r.Note = s.calls, s.errors, s.firstError, s.note
		r.Rounds = len(s.rounds)
		r.Figures = s.figures()
		if len(r.Figures) == 0 {
			r.Figures = nil
			r.NotMeasured = s.notMeasured
			if r.NotMeasured == "" {
				r.NotMeasured = errNotReached.Error()
				if s.firstError != "" {
					r.NotMeasured = s.firstError
				}
			}
			out = append(out, r)
			continue
		}
		for _, ratio := range r.ratios {
			if v, ok := c.ratio(r.Key, ratio.To, ratio.Figure); ok {
				r.Ratios = append(r.Ratios, Ratio{Figure: ratio.Figure, To: ratio.To, Value: v})
			}
		}
		c.judge(&r)
		out = append(out, r)
	}
	return out
}

// figures are the row's: percentiles come from all rounds together, where there is more of the
// tail; everything else is the median of the rounds.
func (s *series) figures() Figures {
	byName := make(map[string][]float64)
	for _, f := range s.rounds {
		for name, v := range f {
			byName[name] = append(byName[name], v)
		}
	}
	out := make(Figures, len(byName))
	for name, vs := range byName {
		out[name] = median(vs)
	}
	if h := s.latency; h != nil && h.TotalCount() > 0 {
		out[P50], out[P99] = millis(h.ValueAtQuantile(50)), millis(h.ValueAtQuantile(99))
	}
	if h := s.open; h != nil && h.TotalCount() > 0 {
		out[OpenP50], out[OpenP99] = millis(h.ValueAtQuantile(50)), millis(h.ValueAtQuantile(99))
	}
	return out
}

// ratio is the median over the rounds that have both of a's figure divided by b's. Rows that are
// not measured in rounds are divided as a whole.
func (c *collector) ratio(a, b, figure string) (float64, bool) {
	sa, sb := c.of(a), c.of(b)
	var ratios []float64
	for round, f := range sa.rounds {
		va, oka := f[figure]
		vb, okb := sb.rounds[round][figure]
		if oka && okb && vb > 0 {
			ratios = append(ratios, va/vb)
		}
	}
	if len(ratios) > 0 {
		return median(ratios), true
	}
	va, oka := sa.figures()[figure]
	vb, okb := sb.figures()[figure]
	if !oka || !okb || vb <= 0 {
		return 0, false
	}
	return va / vb, true
}

// subtractFloor completes the cpu.platform rows: what the platform process took per call less what
// the bare loop took in the same round.
func (c *collector) subtractFloor() {
	for _, l := range languages {
		cpu, floor := c.of(key("cpu.platform", l)), c.of(key("floor", l, "p8"))
		for round, f := range cpu.rounds {
			base := floor.rounds[round]
			loop, ok := base[LoopCPU]
			if !ok {
				continue
			}
			f[LoopCPU], f[FloorFunctionCPU] = loop, base[FloorFunctionCPU]
			f[AboveFloorCPU] = f[PlatformCPU] - loop
		}
	}
}

// judge holds a row against its goals.
func (c *collector) judge(r *Row) {
	if len(r.goals) == 0 {
		return
	}
	all := r.Errors == 0
	for _, g := range r.goals {
		v, ok := r.Figures[g.Figure]
		if g.To != "" {
			v, ok = c.ratio(r.Key, g.To, g.Figure)
		}
		if !ok {
			all = false
			continue
		}
		t := Target{Goal: g, Measured: v, Reached: v <= g.Value}
		if g.Op == ">=" {
			t.Reached = v >= g.Value
		}
		all = all && t.Reached
		r.Targets = append(r.Targets, t)
	}
	r.Reached = &all
	if len(r.Targets) < len(r.goals) {
		r.Note = fmt.Sprintf("%d of %d targets could not be judged. %s", len(r.goals)-len(r.Targets), len(r.goals), r.Note)
	}
}

// median is the middle value, or the mean of the two middle ones; NaN for none.
func median(vs []float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	vs = slices.Sorted(slices.Values(vs))
	m := len(vs) / 2
	if len(vs)%2 == 1 {
		return vs[m]
	}
	return (vs[m-1] + vs[m]) / 2
}
