package bundle

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// write makes files; a name that ends in "*" is executable, "a->b" is a link.
func write(t *testing.T, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		from, to, link := strings.Cut(name, "->")
		plain := strings.TrimSuffix(from, "*")
		path := filepath.Join(root, plain)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case link:
			err = os.Symlink(to, path)
		case plain != from:
			err = os.WriteFile(path, []byte("run "+plain), 0o700)
		default:
			err = os.WriteFile(path, []byte("data "+plain), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// entries lists a zip as "mode name content".
func entries(t *testing.T, data []byte) []string {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range r.File {
		rc, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		rc.Close()
		list = append(list, strings.TrimSpace(fmt.Sprintf("%v %s %s", f.Mode(), f.Name, content)))
	}
	return list
}

func TestFolder(t *testing.T) {
	root := t.TempDir()
	write(t, root, "lib/b.py", "bootstrap*", "a.txt", ".git/HEAD", "sub/.git", "bin/tool->../bootstrap", ".hidden")
	b, err := Folder(context.Background(), root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"-rw-r--r-- .hidden data .hidden",
		"-rw-r--r-- a.txt data a.txt",
		"drwxr-xr-x bin/",
		"Lrwxrwxrwx bin/tool ../bootstrap",
		"-rwxr-xr-x bootstrap run bootstrap",
		"drwxr-xr-x lib/",
		"-rw-r--r-- lib/b.py data lib/b.py",
		"drwxr-xr-x sub/",
	}
	if diff := cmp.Diff(want, entries(t, b.Zip)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if b.Files != 5 {
		t.Errorf("files %d, want 5", b.Files)
	}
	if mode, err := b.Mode("bootstrap"); err != nil || mode != 0o755 {
		t.Errorf("bootstrap: mode %v, error %v", mode, err)
	}
	if _, err := b.Mode("nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: error %v", err)
	}
}

func TestFolderIsDeterministic(t *testing.T) {
	names := []string{"z.js", "a/b/c.js", "a/a.js", "run*", "l->z.js"}
	var zips [2][]byte
	for i := range zips {
		root := t.TempDir()
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		write(t, root, names...)
		old := time.Unix(int64(1e9*(i+1)), 0)
		if err := os.Chtimes(filepath.Join(root, "z.js"), old, old); err != nil {
			t.Fatal(err)
		}
		b, err := Folder(context.Background(), root)
		if err != nil {
			t.Fatal(err)
		}
		zips[i] = b.Zip
	}
	if !bytes.Equal(zips[0], zips[1]) {
		t.Error("two folders of the same content gave two zips")
	}
}

func TestFolderThroughLink(t *testing.T) {
	root := t.TempDir()
	write(t, root, "real/main.py", "link->real")
	b, err := Folder(context.Background(), filepath.Join(root, "link"))
	if err != nil {
		t.Fatal(err)
	}
	if got := entries(t, b.Zip); len(got) != 1 {
		t.Errorf("entries %v", got)
	}
}

func TestFolderRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		make func(root string)
		want string
	}{
		"empty":           {func(string) {}, "holds no files"},
		"only git":        {func(root string) { write(t, root, ".git/HEAD") }, "holds no files"},
		"link outside":    {func(root string) { write(t, root, "a->../../etc/passwd", "b") }, "leads "},
		"absolute inside": {func(root string) { write(t, root, "b", "a->"+filepath.Join(root, "b")) }, "leads outside"},
		"link by way of another": {func(root string) {
			write(t, root, "s/f", "a/b/c->../../s", "z->a/b/c/../..")
		}, "leads outside"},
		"link nowhere": {func(root string) { write(t, root, "a->b") }, "leads nowhere"},
		"socket": {func(root string) {
			l, err := net.Listen("unix", filepath.Join(root, "s"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, "neither a file"},
		"too much": {func(root string) {
			f, err := os.Create(filepath.Join(root, "sparse"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(MaxUnpackedBytes + 1); err != nil {
				t.Fatal(err)
			}
		}, "may unpack to at most 262144000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			tc.make(root)
			_, err := Folder(context.Background(), root)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestFolderStopsWhenCancelled(t *testing.T) {
	root := t.TempDir()
	write(t, root, "a")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Folder(ctx, root); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestFile(t *testing.T) {
	root := t.TempDir()
	write(t, root, "in/main.py")
	b, err := Folder(context.Background(), filepath.Join(root, "in"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "f.zip")
	if err := os.WriteFile(path, b.Zip, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := File(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := os.WriteFile(path, []byte("not a zip"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := File(path); err == nil || !strings.Contains(err.Error(), "neither a folder nor a zip") {
		t.Errorf("error %v", err)
	}
	if err := os.Truncate(path, MaxZipBytes+1); err != nil {
		t.Fatal(err)
	}
	if _, err := File(path); err == nil || !strings.Contains(err.Error(), "at most 52428800 bytes") {
		t.Errorf("error %v", err)
	}
}
