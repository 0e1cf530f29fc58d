package meter

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
)

// memoryFile is a file of bytes that are only read.
type memoryFile struct{ *bytes.Reader }

func (memoryFile) WriteAt([]byte, int64) (int, error) { return 0, io.ErrShortWrite }
func (memoryFile) Truncate(int64) error               { return io.ErrShortWrite }
func (memoryFile) Close() error                       { return nil }

// written is a small sound segment.
func written() ([]byte, []*Record) {
	h := header{epoch: uuid.MustParse("5a0ee0ac-7d6f-4b77-8b4c-4a2ddc9a1f00"), index: 3, first: 41}
	b := make([]byte, headerBytes)
	h.encode(b)
	b = appendFunction(b, h.seed, functionKey{"000000000000", "f0", "$LATEST"})
	records := []*Record{sample(0), sample(7), sample(14)}
	for _, r := range records {
		b = appendUsage(b, h.seed, 0, r)
	}
	return b, records
}

func TestFormatRoundTrip(t *testing.T) {
	b, records := written()
	h, err := decodeHeader(b)
	if err != nil || h.index != 3 || h.first != 41 {
		t.Fatalf("header %+v, %v", h, err)
	}
	rd := reader{file: memoryFile{bytes.NewReader(b)}, seed: h.seed, off: headerBytes, end: int64(len(b))}
	got := 0
	for {
		e, err := rd.next()
		if errors.Is(err, errEnd) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.kind != kindUsage {
			continue
		}
		r := e.usage
		key := rd.functions[e.function]
		r.Account, r.Function, r.Version = key.account, key.function, key.version
		if r != *records[got] {
			t.Errorf("record %d is %+v, want %+v", got, r, *records[got])
		}
		got++
	}
	if got != len(records) {
		t.Errorf("%d records, want %d", got, len(records))
	}
}

// TestFormatOne holds the format still: testdata/v1.usage was written once and is never written
// again. A changed format has a new version and keeps this test for the old one.
func TestFormatOne(t *testing.T) {
	b, _ := written()
	golden, err := os.ReadFile(filepath.Join("testdata", "v1.usage"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, golden) {
		t.Error("what is written is not what version 1 of the format was")
	}
}

func TestFlippedBitsAreSeen(t *testing.T) {
	b, _ := written()
	for bit := range 8 * len(b) {
		c := bytes.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		h, err := decodeHeader(c)
		if bit < 8*headerBytes {
			if err == nil {
				t.Fatalf("bit %d of the header went unseen", bit)
			}
			continue
		}
		rd := reader{file: memoryFile{bytes.NewReader(c)}, seed: h.seed, off: headerBytes, end: int64(len(c))}
		for err == nil {
			_, err = rd.next()
		}
		if errors.Is(err, errEnd) {
			t.Fatalf("bit %d went unseen", bit)
		}
	}
}

// FuzzSegment gives the reader of leftovers a segment of any bytes.
func FuzzSegment(f *testing.F) {
	b, _ := written()
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(b[:headerBytes])
	f.Add([]byte{})
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		epoch := uuid.MustParse("5a0ee0ac-7d6f-4b77-8b4c-4a2ddc9a1f00")
		if err := os.WriteFile(filepath.Join(dir, segmentName(epoch, 3)), b, 0o600); err != nil {
			t.Fatal(err)
		}
		d := &folder{path: dir}
		found, err := findLeftovers(d)
		if err != nil {
			if !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		r, err := found[0].load(d, quiet())
		if err != nil {
			t.Fatal(err)
		}
		// What was counted can be read.
		c := cursor{disk: d, run: r, sequence: 1}
		defer c.close()
		read := 0
		for {
			batch, err := c.batch()
			if err != nil {
				t.Fatal(err)
			}
			if batch == nil {
				break
			}
			read += len(batch.Function)
		}
		if len(r.segments) > 0 && uint64(read) != r.segments[0].count {
			t.Fatalf("read %d records of %d", read, r.segments[0].count)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	m, err := Open(Config{Dir: b.TempDir(), Stream: &discard{}, Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close(context.Background())
	records := make([]*Record, 64)
	for i := range records {
		records[i] = sample(i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		if err := m.Reserve(); err != nil {
			b.Fatal(err)
		}
		if _, err := m.Append(records[i%len(records)]); err != nil {
			b.Fatal(err)
		}
	}
}
