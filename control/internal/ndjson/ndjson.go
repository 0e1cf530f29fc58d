// Package ndjson is the form of Doze's snapshots: one JSON value a line, so that a snapshot is
// streamed both ways in bounded memory, compares byte by byte, and can be read by a person with jq.
//
// It knows lines. It must not know what they say, nor files or the network.
package ndjson

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxLine bounds one line, in bytes. It guards against a damaged file, not against large state:
// the largest line a registry writes is one function with all its versions.
const MaxLine = 256 << 20

// ErrTooLong is a line of more than MaxLine bytes.
var ErrTooLong = errors.New("ndjson: line too long")

// Writer writes values as lines. Errors stick: after one, every later call answers it.
type Writer struct {
	buf *bufio.Writer
	enc *json.Encoder
}

// NewWriter writes to w, buffered; the caller must call Flush at the end.
func NewWriter(w io.Writer) *Writer {
	buf := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	return &Writer{buf: buf, enc: enc}
}

// Write appends v as one line.
func (w *Writer) Write(v any) error { return w.enc.Encode(v) }

// Flush hands everything written so far to the underlying writer.
func (w *Writer) Flush() error { return w.buf.Flush() }

// Reader reads lines. It never reads past the line it was asked for when it was made over a
// *bufio.Reader, so that several readers can take their parts of one stream in turn.
type Reader struct {
	r    *bufio.Reader
	line []byte
	n    int
}

// NewReader reads from r.
func NewReader(r io.Reader) *Reader {
	buf, ok := r.(*bufio.Reader)
	if !ok {
		buf = bufio.NewReaderSize(r, 64<<10)
	}
	return &Reader{r: buf}
}

// Read decodes the next line into v. It is strict: exactly one JSON value, no unknown members. A
// stream that ends here, or inside the line, is io.ErrUnexpectedEOF, since the caller knows from
// the header how many lines there are.
func (r *Reader) Read(v any) error {
	r.n++
	r.line = r.line[:0]
	for {
		part, err := r.r.ReadSlice('\n')
		if len(r.line)+len(part) > MaxLine {
			return fmt.Errorf("line %d: %w", r.n, ErrTooLong)
		}
		r.line = append(r.line, part...)
		if err == nil {
			break
		}
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("line %d: %w", r.n, io.ErrUnexpectedEOF)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("line %d: %w", r.n, err)
		}
	}
	if err := Strict(r.line, v); err != nil {
		return fmt.Errorf("line %d: %w", r.n, err)
	}
	return nil
}

// Strict decodes data, which must be exactly one JSON value without members that v does not know.
// An unknown member means that a newer Doze wrote it: to drop it in silence would let two nodes
// differ.
func Strict(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}
