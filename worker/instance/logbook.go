package instance

import (
	"bytes"
	"strconv"
	"sync"
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// flushAfter bounds how long a line waits for its invocation to end before the sink sees it.
	flushAfter = 200 * time.Millisecond
	// batchBytes is how much is gathered at most before the sink is called.
	batchBytes = 256 << 10
	// An instance may write outputBurst bytes at once and outputRate a second in the long run; what
	// is above is read and dropped.
	outputBurst = 4 << 20
	outputRate  = 1 << 20
)

// logbook gathers an instance's lines, its own and the function's, and hands them to the sink in
// batches: one for an invocation that is short and says little. It holds at most about
// batchBytes + MaxLineBytes, whatever the function prints.
type logbook struct {
	sink   LogSink
	spec   *dozev1.FunctionSpec
	stream string
	alarm  alarm

	mu    sync.Mutex
	text  []byte // whole lines without newlines, then the line that has begun
	ends  []int  // where each whole line ends in text
	began time.Time
	lines [][]byte // scratch for the sink

	tailing bool
	tail    []byte

	allowance int64 // bytes that may still be written now
	refilled  time.Time
	dropping  bool
	dropped   int64
}

func newLogbook(sink LogSink, spec *dozev1.FunctionSpec, stream string) *logbook {
	b := &logbook{sink: sink, spec: spec, stream: stream, allowance: outputBurst, refilled: time.Now()}
	b.alarm.fire = b.flushDue
	return b
}

// output takes what the function wrote. It reports whether it was dropped for being too much.
func (b *logbook) output(p []byte) (dropped bool) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.allowed(int64(len(p)), now) {
		return true
	}
	for len(p) > 0 {
		room := MaxLineBytes - (len(b.text) - b.wholeBytes())
		n := bytes.IndexByte(p[:min(len(p), room+1)], '\n')
		switch {
		case n >= 0:
			b.text = append(b.text, p[:n]...)
			p = p[n+1:]
			b.endLine(now)
		case len(p) > room:
			b.text = append(b.text, p[:room]...)
			p = p[room:]
			b.endLine(now)
		default:
			b.text = append(b.text, p...)
			p = nil
		}
	}
	return false
}

// allowed is a token bucket that, once empty, stays shut until it is a quarter full, so that
// endless output gives a few stretches of log and not a torn line here and there.
func (b *logbook) allowed(n int64, now time.Time) bool {
	b.allowance = min(outputBurst, b.allowance+int64(now.Sub(b.refilled))*outputRate/int64(time.Second))
	b.refilled = now
	if b.dropping && b.allowance >= outputBurst/4 {
		b.noteDropped(now)
	}
	if b.dropping || b.allowance < n {
		b.dropping = true
		b.dropped += n
		return false
	}
	b.allowance -= n
	return true
}

// noteDropped ends a stretch of dropping with the line that says so.
func (b *logbook) noteDropped(now time.Time) {
	if !b.dropping {
		return
	}
	b.breakLine(now)
	b.text = append(b.text, "[doze] dropped "...)
	b.text = strconv.AppendInt(b.text, b.dropped, 10)
	b.text = append(b.text, " bytes of output: more than 1 MB a second"...)
	b.endLine(now)
	b.dropping, b.dropped = false, 0
}

func (b *logbook) wholeBytes() int {
	if len(b.ends) == 0 {
		return 0
	}
	return b.ends[len(b.ends)-1]
}

// breakLine ends a line that has begun, so that the next starts fresh.
func (b *logbook) breakLine(now time.Time) {
	if len(b.text) > b.wholeBytes() {
		b.endLine(now)
	}
}

func (b *logbook) endLine(now time.Time) {
	if b.tailing {
		line := b.text[b.wholeBytes():]
		b.tail = append(append(b.tail, line[max(0, len(line)-LogTailBytes):]...), '\n')
		if len(b.tail) > 4*LogTailBytes {
			b.tail = b.tail[:copy(b.tail, b.tail[len(b.tail)-LogTailBytes:])]
		}
	}
	if len(b.ends) == 0 {
		b.began = now
		b.alarm.by(now.Add(flushAfter))
	}
	b.ends = append(b.ends, len(b.text))
	if len(b.text) >= batchBytes {
		b.flush()
	}
}

// flush hands the whole lines to the sink and keeps the one that has begun.
func (b *logbook) flush() {
	if len(b.ends) == 0 {
		return
	}
	b.lines = b.lines[:0]
	start := 0
	for _, end := range b.ends {
		b.lines = append(b.lines, b.text[start:end:end])
		start = end
	}
	b.sink.Lines(b.spec, b.stream, b.began.UnixMilli(), b.lines)
	clear(b.lines)
	begun := b.text[start:]
	if cap(b.text) > batchBytes/4 && len(begun) == 0 { // what a chatty moment took is given back
		b.text, b.ends, b.lines = nil, nil, nil
		return
	}
	b.text = b.text[:copy(b.text, begun)]
	b.ends = b.ends[:0]
}

func (b *logbook) flushDue() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.ends) == 0 {
		return
	}
	if at := b.began.Add(flushAfter); time.Now().Before(at) {
		b.alarm.by(at)
		return
	}
	b.flush()
}

// line writes one line of the platform's own.
func (b *logbook) line(now time.Time, parts ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own(now, parts...)
}

func (b *logbook) own(now time.Time, parts ...string) {
	b.breakLine(now)
	for _, p := range parts {
		b.text = append(b.text, p...)
	}
	b.endLine(now)
}

// keepTail begins to keep the last LogTailBytes of what is logged from here on.
func (b *logbook) keepTail() {
	b.mu.Lock()
	b.tailing, b.tail = true, b.tail[:0]
	b.mu.Unlock()
}

// start opens an invocation. What init left for a tail is given back: it is of use only to the
// call whose init fails.
func (b *logbook) start(now time.Time, e *Event, version string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tailing, b.tail = e.Tail, nil
	b.own(now, "START RequestId: ", e.RequestID, " Version: ", version)
}

// report is what the REPORT line says.
type report struct {
	duration, init        time.Duration
	billedMs              uint32
	memoryMB, maxMemoryMB int
	status, errorType     string
}

// end closes an invocation with END and REPORT and hands everything to the sink. It returns a copy
// of the tail, when one was kept.
func (b *logbook) end(now time.Time, requestID string, r *report) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noteDropped(now)
	b.own(now, "END RequestId: ", requestID)
	t := append(b.text, "REPORT RequestId: "...)
	t = append(t, requestID...)
	t = append(t, "\tDuration: "...)
	t = appendMs(t, r.duration)
	t = append(t, " ms\tBilled Duration: "...)
	t = strconv.AppendUint(t, uint64(r.billedMs), 10)
	t = append(t, " ms\tMemory Size: "...)
	t = strconv.AppendInt(t, int64(r.memoryMB), 10)
	t = append(t, " MB\tMax Memory Used: "...)
	t = strconv.AppendInt(t, int64(r.maxMemoryMB), 10)
	t = append(t, " MB\t"...)
	if r.init > 0 {
		t = append(t, "Init Duration: "...)
		t = appendMs(t, r.init)
		t = append(t, " ms\t"...)
	}
	if r.status != "" {
		t = append(append(t, "Status: "...), r.status...)
		if r.errorType != "" {
			t = append(append(t, "\tError Type: "...), r.errorType...)
		}
	}
	b.text = t
	b.endLine(now)
	var tail []byte
	if b.tailing {
		tail = bytes.Clone(b.tail[max(0, len(b.tail)-LogTailBytes):])
		b.tailing, b.tail = false, nil
	}
	b.flush()
	return tail
}

// close hands over what is left, a line that has begun included. Nothing is written after it.
func (b *logbook) close() {
	b.alarm.close()
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noteDropped(now)
	b.breakLine(now)
	b.flush()
}

// appendMs writes a duration in milliseconds with two decimals.
func appendMs(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d)/float64(time.Millisecond), 'f', 2, 64)
}
