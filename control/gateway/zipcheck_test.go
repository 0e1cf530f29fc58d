package gateway

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

type zipEntry struct {
	name, content string
	mode          fs.FileMode
}

func zipWith(t testing.TB, entries ...zipEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		if e.mode != 0 {
			h.SetMode(e.mode)
		}
		f, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(e.name, "/") {
			if _, err := f.Write([]byte(e.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func storedZip(t testing.TB, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	f, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
	if err == nil {
		_, err = f.Write(content)
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// flipped changes a byte in the middle of the first file's content.
func flipped(data []byte) []byte {
	data[40] ^= 0x55
	return data
}

// bomb is a zip whose directory says that it is large unpacked; nothing is.
func bomb(t testing.TB, sizes ...uint64) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i, size := range sizes {
		if _, err := z.CreateRaw(&zip.FileHeader{Name: fmt.Sprint("f", i), Method: zip.Deflate, UncompressedSize64: size, CompressedSize64: 0}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// overlapping is a zip of which count entries have the same bytes: blocks that unpack to nothing.
func overlapping(t testing.TB, count, blocks int) []byte {
	t.Helper()
	body := append(bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, blocks), 1, 0, 0, 0xff, 0xff)
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	f, err := z.CreateRaw(&zip.FileHeader{Name: "00000000", Method: zip.Deflate, CompressedSize64: uint64(len(body))})
	if err == nil {
		_, err = f.Write(body)
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b.Bytes(), []byte("PK\x01\x02"))
	end := bytes.Index(b.Bytes(), []byte("PK\x05\x06"))
	out, record := bytes.Clone(b.Bytes()[:at]), b.Bytes()[at:end]
	for i := range count {
		out = append(out, bytes.Replace(record, []byte("00000000"), fmt.Appendf(nil, "%08d", i), 1)...)
	}
	tail := bytes.Clone(b.Bytes()[end:])
	binary.LittleEndian.PutUint16(tail[8:], uint16(count))
	binary.LittleEndian.PutUint16(tail[10:], uint16(count))
	binary.LittleEndian.PutUint32(tail[12:], uint32(count*len(record)))
	return append(out, tail...)
}

func TestZip(t *testing.T) {
	link := fs.ModeSymlink | 0o777
	notZip, outside := "Could not unzip uploaded file.", "points outside"
	good := zipWith(t, zipEntry{name: "a/b", content: "x"})
	tests := []struct {
		what string
		zip  []byte
		text string // "" when it is fine
	}{
		{"plain", good, ""},
		{"folders", zipWith(t, zipEntry{name: "a/"}, zipEntry{name: "a/b", content: "x"}, zipEntry{name: "a/"}), ""},
		{"link inside", zipWith(t, zipEntry{name: "lib/x.so.1", content: "x"}, zipEntry{"lib/x.so", "x.so.1", link}, zipEntry{"y", "lib/../lib/x.so", link}), ""},
		{"broken link inside", zipWith(t, zipEntry{"a", "nowhere", link}), ""},
		{"empty zip", zipWith(t), "must be a non-empty zip"},
		{"one byte is another", flipped(zipWith(t, zipEntry{name: "a", content: strings.Repeat("text ", 100)})), notZip},
		{"more than it says", bytes.ReplaceAll(zipWith(t, zipEntry{name: "a", content: strings.Repeat("x", 0x54321)}), []byte{0x21, 0x43, 5, 0}, []byte{9, 0, 0, 0}), notZip},
		{"less than it says", bytes.ReplaceAll(zipWith(t, zipEntry{name: "a", content: strings.Repeat("x", 0x54321)}), []byte{0x21, 0x43, 5, 0}, []byte{0x22, 0x43, 5, 0}), notZip},
		{"one entry of nothing", overlapping(t, 1, 100), ""},
		{"entries that overlap", overlapping(t, 50_000, 1_000_000), notZip},
		{"nothing", nil, notZip},
		{"text", []byte("PK, or so"), notZip},
		{"cut", good[:len(good)-5], notZip},
		{"climbs", zipWith(t, zipEntry{name: "../a"}), "would leave its folder"},
		{"climbs later", zipWith(t, zipEntry{name: "a/../../b"}), "would leave its folder"},
		{"absolute", zipWith(t, zipEntry{name: "/etc/passwd"}), "would leave its folder"},
		{"backslash", zipWith(t, zipEntry{name: `..\a`}), "would leave its folder"},
		{"zero byte", zipWith(t, zipEntry{name: "a\x00b"}), "would leave its folder"},
		{"long part", zipWith(t, zipEntry{name: strings.Repeat("x", 256)}), "can not be a file's"},
		{"deep", zipWith(t, zipEntry{name: strings.Repeat("x/", 200) + "x"}), "can not be a file's"},
		{"twice", zipWith(t, zipEntry{name: "a"}, zipEntry{name: "./a"}), "two entries of the same name"},
		{"file and folder", zipWith(t, zipEntry{name: "a"}, zipEntry{name: "a/"}), "two entries of the same name"},
		{"below a file", zipWith(t, zipEntry{name: "a"}, zipEntry{name: "a/b"}), "not a folder"},
		{"below a link", zipWith(t, zipEntry{"a", "b", link}, zipEntry{name: "b/"}, zipEntry{name: "a/c"}), "not a folder"},
		{"device", zipWith(t, zipEntry{"a", "", fs.ModeDevice | 0o600}), "neither a file"},
		{"pipe", zipWith(t, zipEntry{"a", "", fs.ModeNamedPipe | 0o600}), "neither a file"},
		{"link outside", zipWith(t, zipEntry{"a", "../etc", link}), outside},
		{"absolute link", zipWith(t, zipEntry{"a", "/etc/passwd", link}), outside},
		{"link through link", zipWith(t, zipEntry{name: "d/"}, zipEntry{"d/up", "..", link}, zipEntry{"a", "d/up/../x", link}), outside},
		{"links in a ring", zipWith(t, zipEntry{"a", "b", link}, zipEntry{"b", "a", link}), outside},
		{"link without target", zipWith(t, zipEntry{"a", "", link}), "without a proper target"},
		{"one large", bomb(t, maxUnzipped+1), "Unzipped size must be smaller than 262144000 bytes"},
		{"large together", bomb(t, maxUnzipped/2, maxUnzipped/2, 10), "Unzipped size must be smaller than 262144000 bytes"},
		{"sum wraps", bomb(t, 1<<63, 1<<63), "Unzipped size must be smaller"},
		{"many entries", bytes.Repeat([]byte("PK\x01\x02"), 2*maxZipEntries+1), "more than 100000 entries"},
		{"unknown method", func() []byte {
			var b bytes.Buffer
			z := zip.NewWriter(&b)
			if _, err := z.CreateRaw(&zip.FileHeader{Name: "a", Method: 99}); err != nil {
				t.Fatal(err)
			}
			_ = z.Close()
			return b.Bytes()
		}(), notZip},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			err := checkZip(test.zip)
			var f *Fault
			switch {
			case test.text == "" && err != nil:
				t.Error(err)
			case test.text != "" && (!errors.As(err, &f) || f.Code != codeInvalidParameter || !strings.Contains(f.Message, test.text)):
				t.Errorf("got %v, want %s", err, test.text)
			}
		})
	}
}

// FuzzZip: whatever passes has no entry that would be written outside its folder.
func FuzzZip(f *testing.F) {
	f.Add([]byte("PK"))
	f.Add(onlyZip)
	f.Add(zipWith(f, zipEntry{name: "../a"}))
	f.Add(zipWith(f, zipEntry{"a", "b/../c", fs.ModeSymlink | 0o777}, zipEntry{name: "b/"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if checkZip(data) != nil {
			return
		}
		r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range r.File {
			if !filepath.IsLocal(file.Name) && file.Name != "./" {
				t.Errorf("%q passed", file.Name)
			}
		}
	})
}
