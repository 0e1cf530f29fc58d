package code

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// item is one entry of a zip that a test makes.
type item struct {
	name string
	mode fs.FileMode
	body string
}

func makeZip(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, i := range items {
		h := &zip.FileHeader{Name: i.name, Method: zip.Deflate, Modified: time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)}
		if i.mode != 0 {
			h.SetMode(i.mode)
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(i.name, "/") {
			continue
		}
		if _, err := f.Write([]byte(i.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tree lists a folder as lines of mode and name, and what files hold and links point to.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%v %s", info.Mode(), rel)
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", content)
		case info.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", target)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// unpackInto unpacks beside a file that must not change, under a umask that would hide everything.
func unpackInto(t *testing.T, data []byte) (string, error) {
	t.Helper()
	return unpackBounded(t, data, MaxUnzippedBytes)
}

func unpackBounded(t *testing.T, data []byte, limit int64) (string, error) {
	t.Helper()
	outer := t.TempDir()
	dir := filepath.Join(outer, "in")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outer, "beside"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := unpack(t.Context(), bytes.NewReader(data), int64(len(data)), dir, limit)
	files, readErr := os.ReadDir(outer)
	if content, err := os.ReadFile(filepath.Join(outer, "beside")); readErr != nil || err != nil || len(files) != 2 || string(content) != "mine" {
		t.Errorf("something was written outside: %v %q %v %v", files, content, err, readErr)
	}
	return dir, err
}

func TestUnpack(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir, err := unpackInto(t, makeZip(t,
		item{"bootstrap", 0o700, "#!/bin/sh"},
		item{"secret.py", 0o600, "x"},
		item{"setuid", 0o755 | fs.ModeSetuid | fs.ModeSetgid, "s"},
		item{"./lib/a/b.js", 0o444, "b"},
		item{"lib/", 0o700 | fs.ModeDir, ""},
		item{"node_modules/.bin/tool", 0o777 | fs.ModeSymlink, "../../lib/a/b.js"},
		item{"broken", 0o777 | fs.ModeSymlink, "not/here"},
		item{"dir", 0o777 | fs.ModeSymlink, "lib"},
		item{"disk", fs.ModeDevice | 0o666, ""},
		item{"pipe", fs.ModeNamedPipe | 0o666, ""},
		item{"no-mode", 0, "n"},
		item{"A", 0o644, "upper"}, item{"a", 0o644, "lower"},
		item{"empty/", 0, ""},
	))
	if err != nil {
		t.Fatal(err)
	}
	want := `-rw-r--r-- A "upper"
-rw-r--r-- a "lower"
-rwxr-xr-x bootstrap "#!/bin/sh"
Lrwxrwxrwx broken -> not/here
Lrwxrwxrwx dir -> lib
drwxr-xr-x empty
drwxr-xr-x lib
drwxr-xr-x lib/a
-rw-r--r-- lib/a/b.js "b"
-rw-r--r-- no-mode "n"
drwxr-xr-x node_modules
drwxr-xr-x node_modules/.bin
Lrwxrwxrwx node_modules/.bin/tool -> ../../lib/a/b.js
-rw-r--r-- secret.py "x"
-rwxr-xr-x setuid "s"
`
	if got := tree(t, dir); got != want {
		t.Errorf("unpacked\n%swant\n%s", got, want)
	}
	info, err := os.Stat(filepath.Join(dir, "bootstrap"))
	if err != nil || !info.ModTime().Equal(time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)) {
		t.Errorf("modified %v, %v", info.ModTime(), err)
	}
}

func TestHostileZips(t *testing.T) {
	link := fs.ModeSymlink | 0o777
	long := strings.Repeat("x", maxPart+1)
	for name, data := range map[string][]byte{
		"not a zip":             []byte("hello"),
		"empty":                 {},
		"climbs":                makeZip(t, item{"../beside", 0o644, "evil"}),
		"climbs midway":         makeZip(t, item{"a/../../beside", 0o644, "evil"}),
		"absolute":              makeZip(t, item{"/tmp/evil", 0o644, "evil"}),
		"backslash":             makeZip(t, item{`..\beside`, 0o644, "evil"}),
		"nul":                   makeZip(t, item{"a\x00b", 0o644, "evil"}),
		"no name":               makeZip(t, item{".", 0o644, "evil"}),
		"long part":             makeZip(t, item{long, 0o644, ""}),
		"long name":             makeZip(t, item{strings.Repeat("abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz/", 80) + "f", 0o644, ""}),
		"deep":                  makeZip(t, item{strings.Repeat("d/", maxDepth+1) + "f", 0o644, ""}),
		"twice":                 makeZip(t, item{"a", 0o644, "1"}, item{"a", 0o644, "2"}),
		"twice, differently":    makeZip(t, item{"a/b", 0o644, "1"}, item{"a//b", 0o644, "2"}),
		"file as folder":        makeZip(t, item{"a", 0o644, "1"}, item{"a/b", 0o644, "2"}),
		"folder as file":        makeZip(t, item{"a/b", 0o644, "1"}, item{"a", 0o644, "2"}),
		"link outside":          makeZip(t, item{"a", link, "../beside"}),
		"link far outside":      makeZip(t, item{"d/a", link, "../../../../../etc/passwd"}),
		"link absolute":         makeZip(t, item{"a", link, "/etc/passwd"}),
		"link without target":   makeZip(t, item{"a", link, ""}),
		"link with huge target": makeZip(t, item{"a", link, strings.Repeat("a/", maxTarget)}),
		"write through link":    makeZip(t, item{"a", link, ".."}, item{"a/beside", 0o644, "evil"}),
		"write through a link inside": makeZip(t,
			item{"d/", 0, ""}, item{"a", link, "d"}, item{"a/x", 0o644, "evil"}),
		"links in a row":  makeZip(t, item{"d/e/f", 0o644, ""}, item{"a", link, "d/e"}, item{"d/b", link, "../a/../../.."}),
		"links in a loop": makeZip(t, item{"a", link, "b"}, item{"b", link, "a"}),
		"encrypted": func() []byte {
			b := makeZip(t, item{"a", 0o644, "secret"})
			at := bytes.Index(b, []byte("PK\x01\x02"))
			b[at+8] |= 1
			return b
		}(),
		"method": func() []byte {
			b := makeZip(t, item{"a", 0o644, "secret"})
			at := bytes.Index(b, []byte("PK\x01\x02"))
			b[at+10] = 99
			return b
		}(),
		"checksum": func() []byte {
			b := makeZip(t, item{"a", 0o644, "secret"})
			at := bytes.Index(b, []byte("PK\x01\x02"))
			b[at+16] ^= 1
			return b
		}(),
		"too many entries": func() []byte {
			var items []item
			for i := range maxEntries + 1 {
				items = append(items, item{fmt.Sprintf("%06d/", i), 0, ""})
			}
			return makeZip(t, items...)
		}(),
		"too many folders": func() []byte {
			var items []item
			for i := range 2000 {
				items = append(items, item{fmt.Sprint(i, "/", strings.Repeat("d/", maxDepth-2)), 0, ""})
			}
			return makeZip(t, items...)
		}(),
		"directory without end": func() []byte {
			// A list of entries of 40 MB: no more of it than the bound is read.
			var items []item
			for i := range 700 {
				items = append(items, item{fmt.Sprintf("%0*d", 60000, i), 0, ""})
			}
			return makeZip(t, items...)
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := unpackInto(t, data); !errors.Is(err, ErrPackage) {
				t.Errorf("%v, want ErrPackage", err)
			}
		})
	}
}

func TestBombs(t *testing.T) {
	const limit = 4 << 20
	zeros := make([]byte, 1<<20)
	bomb := func(claim uint64) []byte {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		var body bytes.Buffer
		inner := zip.NewWriter(&body)
		f, err := inner.CreateHeader(&zip.FileHeader{Name: "x", Method: zip.Deflate})
		if err != nil {
			t.Fatal(err)
		}
		sum := crc32.NewIEEE()
		for range limit>>20 + 2 {
			f.Write(zeros)
			sum.Write(zeros)
		}
		if err := inner.Close(); err != nil {
			t.Fatal(err)
		}
		packed, err := zip.NewReader(bytes.NewReader(body.Bytes()), int64(body.Len()))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := packed.File[0].OpenRaw()
		if err != nil {
			t.Fatal(err)
		}
		h := packed.File[0].FileHeader
		h.Name = "bomb"
		if claim > 0 {
			h.UncompressedSize64 = claim
		}
		out, err := w.CreateRaw(&h)
		if err != nil {
			t.Fatal(err)
		}
		var content bytes.Buffer
		if _, err := content.ReadFrom(raw); err != nil {
			t.Fatal(err)
		}
		out.Write(content.Bytes())
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if _, err := unpackBounded(t, bomb(0), limit); !errors.Is(err, errTooLarge) {
		t.Errorf("a bomb that tells its size: %v, want errTooLarge", err)
	}
	dir, err := unpackBounded(t, bomb(10), limit)
	if !errors.Is(err, ErrPackage) {
		t.Errorf("a bomb that lies: %v, want ErrPackage", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "bomb")); err == nil && info.Size() > limit {
		t.Errorf("the bomb wrote %d bytes", info.Size())
	}
}

// Entries that share their bytes, which unpack to nothing, would be read for hours.
func TestOverlappingEntries(t *testing.T) {
	const count, blocks = 50_000, 1_000_000
	body := append(bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, blocks), 1, 0, 0, 0xff, 0xff)
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.CreateRaw(&zip.FileHeader{Name: "00000000", Method: zip.Deflate, CompressedSize64: uint64(len(body))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// The one record of the directory, many times under other names.
	at := bytes.Index(b.Bytes(), []byte("PK\x01\x02"))
	end := bytes.Index(b.Bytes(), []byte("PK\x05\x06"))
	data, record := bytes.Clone(b.Bytes()[:at]), b.Bytes()[at:end]
	for i := range count {
		data = append(data, bytes.Replace(record, []byte("00000000"), fmt.Appendf(nil, "%08d", i), 1)...)
	}
	tail := bytes.Clone(b.Bytes()[end:])
	binary.LittleEndian.PutUint16(tail[8:], count)
	binary.LittleEndian.PutUint16(tail[10:], count)
	binary.LittleEndian.PutUint32(tail[12:], uint32(count*len(record)))
	if _, err := unpackInto(t, append(data, tail...)); !errors.Is(err, ErrPackage) || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("%v, want ErrPackage", err)
	}
}

// FuzzUnpack gives Unpack any bytes: it must stay in its folder and keep to its bounds.
func FuzzUnpack(f *testing.F) {
	f.Add(makeZip(f, item{"a/b", 0o755, "hello"}, item{"c", fs.ModeSymlink | 0o777, "a/b"}))
	f.Add(makeZip(f, item{"../a", 0o644, ""}))
	f.Add(makeZip(f, item{"a", fs.ModeSymlink | 0o777, ".."}, item{"a/b", 0o644, "x"}))
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\x00", 18)))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir, err := unpackInto(t, data)
		if err != nil {
			return
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			switch mode := info.Mode(); mode.Type() {
			case 0:
				if mode != 0o644 && mode != 0o755 {
					t.Errorf("%q has mode %v", path, mode)
				}
			case fs.ModeDir:
				if mode.Perm() != 0o755 {
					t.Errorf("%q has mode %v", path, mode)
				}
			case fs.ModeSymlink:
				if _, err := root.Stat(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%q: %v", path, err)
				}
			default:
				t.Errorf("%q is a %v", path, mode)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
