package logship

import (
	"fmt"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// buffer is the lines of one function that wait to be published.
type buffer struct {
	text  []byte
	lines []line
	// spent is what the function has written since the last flush of all.
	spent int

	// What did not fit after the last line, and the last of it.
	dropped, droppedBytes int
	droppedAt             int64
	droppedStream         string
}

// line is one line: its text ends at end, and begins where the one before it ends.
type line struct {
	atMs   int64
	stream string
	end    int
}

// bytes is what the buffer counts for.
func (b *buffer) bytes() int { return len(b.text) + lineBytes*len(b.lines) }

func (b *buffer) add(stream string, atMs int64, text []byte) {
	b.text = append(b.text, text...)
	b.lines = append(b.lines, line{atMs, stream, len(b.text)})
}

func (b *buffer) drop(stream string, atMs int64, bytes int) {
	b.dropped++
	b.droppedBytes += bytes
	b.droppedAt, b.droppedStream = atMs, stream
}

// confess adds the line that says what was dropped.
func (b *buffer) confess() {
	if b.dropped == 0 {
		return
	}
	b.text = fmt.Appendf(b.text, "[doze] %d log lines were dropped here (%d bytes): they were written faster than logs are stored", b.dropped, b.droppedBytes)
	b.lines = append(b.lines, line{b.droppedAt, b.droppedStream, len(b.text)})
}

// reset empties the buffer. A big one gives its memory back.
func (b *buffer) reset() {
	if cap(b.text) > 2*chunkBytes {
		*b = buffer{}
		return
	}
	clear(b.lines) // lets go of the streams' names
	*b = buffer{text: b.text[:0], lines: b.lines[:0]}
}

// chunker makes chunks of a buffer, over and over in the same memory.
type chunker struct {
	chunk dozev1.LogChunk
	slab  []dozev1.LogLine
}

// next makes a chunk of the lines from the given one on, and returns it with the number of the line
// after its last. It is valid until the next call.
func (c *chunker) next(k key, b *buffer, from int) (*dozev1.LogChunk, int) {
	to, size := from, 0
	for ; to < len(b.lines); to++ {
		size += b.lines[to].end - b.start(to) + len(b.lines[to].stream) + lineBytes
		if to > from && size > chunkBytes {
			break
		}
	}
	if n := to - from; n > len(c.slab) {
		c.slab = make([]dozev1.LogLine, n)
	}
	c.chunk.Account, c.chunk.Function = k.account, k.function
	c.chunk.Lines = c.chunk.Lines[:0]
	for i := from; i < to; i++ {
		l := &c.slab[i-from]
		l.AtMs, l.Stream, l.Text = b.lines[i].atMs, b.lines[i].stream, b.text[b.start(i):b.lines[i].end]
		c.chunk.Lines = append(c.chunk.Lines, l)
	}
	return &c.chunk, to
}

// start is where a line's text begins.
func (b *buffer) start(i int) int {
	if i == 0 {
		return 0
	}
	return b.lines[i-1].end
}
