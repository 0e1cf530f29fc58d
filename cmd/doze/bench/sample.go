package bench

import (
	"runtime"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// longest is the most a latency can be: the platform answers within a function's timeout and 5 s.
const longest = 120 * time.Second

// newHistogram holds nanoseconds up to longest, to three significant figures.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1000, int64(longest), 3)
}

// record adds one latency; what is outside the range counts as its end, so that no call is lost.
func record(h *hdrhistogram.Histogram, nanos int64) {
	nanos = max(1000, min(nanos, int64(longest)))
	_ = h.RecordValue(nanos) // within the range: cannot fail
}

func millis(nanos int64) float64 { return float64(nanos) / 1e6 }

// Sample is what one load measured.
type Sample struct {
	// Latency is of every answered call of the window, in nanoseconds.
	Latency *hdrhistogram.Histogram
	// Calls were answered as they should be and count in Latency; InWindow of them before the
	// window closed, which is what the rate counts.
	Calls, InWindow int64
	// Errors are calls that got no answer or a wrong one.
	Errors     int64
	FirstError string
	// Window is the time that was measured; Intended the arrival rate of an open loop, 0 if closed.
	Window   time.Duration
	Intended float64
	// Everything counts the warm-up too: what CPU time is divided by.
	Everything int64
	// Elapsed and GeneratorCPU are from the first connection to the last answer.
	Elapsed, GeneratorCPU time.Duration
}

// Rate is calls per second.
func (s *Sample) Rate() float64 {
	if s.Window <= 0 {
		return 0
	}
	return float64(s.InWindow) / s.Window.Seconds()
}

// GeneratorShare is the part of the machine's CPU time that the load generator took.
func (s *Sample) GeneratorShare() float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return s.GeneratorCPU.Seconds() / s.Elapsed.Seconds() / float64(runtime.NumCPU())
}
