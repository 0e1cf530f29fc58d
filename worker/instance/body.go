package instance

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// errTooLarge says that a body is over the limit. What was read of it is not kept.
var errTooLarge = errors.New("instance: body too large")

const (
	// inputBytes is a connection's buffer while heads are small, as they are.
	inputBytes = 4 << 10
	// firstBodyBytes is the most that is set aside for a body before any of it has come.
	firstBodyBytes = 64 << 10
	// maxDiscard is how much of a refused body is read so that the connection can live on.
	maxDiscard = 64 << 20
	// maxChunkLine bounds a chunk's size line, extensions included, and maxExcess what such lines may have beyond what
	// is due to the chunks' bytes.
	maxChunkLine = 1 << 10
	maxExcess    = 16 << 10
)

// input is a connection's read side: a buffer that grows to the bound of a head and shrinks again.
type input struct {
	nc   net.Conn
	buf  []byte
	r, w int
	// grown is what all buffers of the instance have above their first size; nil where nobody counts.
	grown *atomic.Int64
}

func (in *input) pending() []byte { return in.buf[in.r:in.w] }

func (in *input) skip(n int) {
	in.r += n
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
}

// fill reads once more from the connection, behind what is pending. The caller bounds what may be
// pending; fill only makes room.
func (in *input) fill() error {
	switch {
	case in.buf == nil, in.w == 0 && len(in.buf) > 4*inputBytes:
		in.shrink()
		in.buf = make([]byte, inputBytes)
	case in.w == len(in.buf) && in.r > 0:
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	case in.w == len(in.buf):
		if in.grown != nil && in.grown.Add(int64(len(in.buf))) > maxGrownBytes {
			in.grown.Add(-int64(len(in.buf)))
			return errHeadTooBig
		}
		grown := make([]byte, 2*len(in.buf))
		copy(grown, in.buf)
		in.buf = grown
	}
	n, err := in.nc.Read(in.buf[in.w:])
	in.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// shrink gives the buffer up, and what was pending with it.
func (in *input) shrink() {
	if in.grown != nil && len(in.buf) > inputBytes {
		in.grown.Add(-int64(len(in.buf) - inputBytes))
	}
	in.buf, in.r, in.w = nil, 0, 0
}

// body reads one request body, of known length or in chunks, as it comes. A response that is to be
// streamed on reads it piece by piece; collect takes the whole.
type body struct {
	in      *input
	chunked bool
	remain  int64 // of the body, or of the chunk that is being read
	ended   bool
	started bool // a chunk was read, so that a CRLF stands before the next size line
	excess  int64
	// Trailers of a streamed response that failed midway; valid at the end.
	errorType, errorBody []byte
}

func (b *body) reset(in *input, r *request) {
	*b = body{in: in, chunked: r.chunked, remain: r.length, ended: !r.chunked && r.length == 0}
}

// Read is io.Reader over the decoded body. A body cut short is io.ErrUnexpectedEOF.
func (b *body) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.chunked && b.remain == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
		if b.ended {
			return 0, io.EOF
		}
	}
	if int64(len(p)) > b.remain {
		p = p[:b.remain]
	}
	var n int
	if have := b.in.pending(); len(have) > 0 {
		n = copy(p, have)
		b.in.skip(n)
	} else if len(p) >= inputBytes { // large: past the buffer, straight to where it goes
		var err error
		n, err = b.in.nc.Read(p)
		if n == 0 {
			return 0, cutShort(err)
		}
	} else {
		if err := b.in.fill(); err != nil {
			return 0, cutShort(err)
		}
		n = copy(p, b.in.pending())
		b.in.skip(n)
	}
	b.remain -= int64(n)
	if b.remain == 0 && !b.chunked {
		b.ended = true
	}
	return n, nil
}

func cutShort(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// line returns the next line without its CRLF; it points into the buffer until the next read.
func (b *body) line(limit int) ([]byte, error) {
	for {
		have := b.in.pending()
		n := bytes.IndexByte(have, '\n')
		if n > limit || (n < 0 && len(have) > limit) {
			return nil, errHeadTooBig
		}
		if n >= 0 {
			if n == 0 || have[n-1] != '\r' || bytes.IndexByte(have[:n-1], '\r') >= 0 {
				return nil, errMalformed
			}
			b.in.skip(n + 1)
			return have[: n-1 : n-1], nil
		}
		if err := b.in.fill(); err != nil {
			return nil, cutShort(err)
		}
	}
}

func (b *body) nextChunk() error {
	if b.started {
		line, err := b.line(2)
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return errMalformed
		}
	}
	b.started = true
	line, err := b.line(maxChunkLine)
	if err != nil {
		return err
	}
	took := int64(len(line)) + 2
	if semi := bytes.IndexByte(line, ';'); semi >= 0 {
		line = line[:semi]
	}
	size, ok := hexadecimal(bytes.TrimRight(line, " \t"))
	if !ok {
		return errMalformed
	}
	b.remain = size
	// Lines of a kilobyte around single bytes would have gigabytes read for one response.
	if b.excess = max(0, b.excess+took-16-2*size); b.excess > maxExcess {
		return errMalformed
	}
	if size == 0 {
		return b.trailers()
	}
	return nil
}

func (b *body) trailers() error {
	total := 0
	for n := 0; ; n++ {
		line, err := b.line(maxHeadBytes)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			b.ended = true
			return nil
		}
		if total += len(line); total > maxHeadBytes || n == maxHeaders {
			return errHeadTooBig
		}
		name, value, ok := headerLine(line)
		if !ok {
			return errMalformed
		}
		switch {
		case equalFold(name, "Lambda-Runtime-Function-Error-Type"):
			b.errorType = bytes.Clone(value)
		case equalFold(name, "Lambda-Runtime-Function-Error-Body"):
			b.errorBody = bytes.Clone(value)
		}
	}
}

// collect reads the whole body into memory of its own. Memory is taken as bytes come, not as the
// client announces them. errTooLarge leaves the rest unread: see discard.
func (b *body) collect(limit int64) ([]byte, error) {
	if !b.chunked && b.remain > limit {
		return nil, errTooLarge
	}
	room := int64(inputBytes)
	if !b.chunked {
		room = b.remain
	}
	out := make([]byte, 0, min(room, firstBodyBytes))
	for !b.ended {
		if len(out) == cap(out) {
			size := 4 * int64(cap(out))
			if !b.chunked {
				size = min(size, int64(len(out))+b.remain)
			}
			size = max(min(size, limit+1), 1) // one byte more tells too large from just fitting
			grown := make([]byte, len(out), size)
			copy(grown, out)
			out = grown
		}
		n, err := b.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		if int64(len(out)) > limit {
			return nil, errTooLarge
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return out, nil
}

// discard reads what is left and keeps nothing, and calls each for every megabyte. It gives up after maxDiscard.
func (b *body) discard(each func()) error {
	var scratch []byte
	for total := int64(0); !b.ended; {
		if total > maxDiscard {
			return errTooLarge
		}
		if scratch == nil {
			scratch = make([]byte, 2*inputBytes)
		}
		n, err := b.Read(scratch)
		if total>>20 != (total+int64(n))>>20 {
			each()
		}
		total += int64(n)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// hexadecimal reads a chunk size: hex digits only, at most 15, so that it cannot overflow.
func hexadecimal(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 15 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | int64(c-'0')
		case 'a' <= lower(c) && lower(c) <= 'f':
			n = n<<4 | int64(lower(c)-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}
