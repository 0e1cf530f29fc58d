package runtimes

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestInstall(t *testing.T) {
	old := syscall.Umask(0o077) // whatever the operator's is
	defer syscall.Umask(old)
	found, err := Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "a", "runtime")
	for range 2 { // again over what is there
		if err := Install(t.Context(), dir, found); err != nil {
			t.Fatal(err)
		}
	}
	var files []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o644)
		if d.IsDir() {
			want = 0o755
		} else {
			files = append(files, strings.TrimPrefix(path, dir+"/"))
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range found {
		for _, arg := range r.Argv(128) {
			if inside, ok := strings.CutPrefix(arg, RuntimeRoot+"/"); ok {
				if _, err := os.Stat(filepath.Join(dir, inside)); err != nil {
					t.Errorf("%s needs %s: have %v", r.Name, inside, files)
				}
			}
		}
	}
	for _, name := range files {
		if strings.Contains(name, "/.") {
			t.Errorf("%s was left behind", name)
		}
	}
}

func TestInstallSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Install(t.Context(), file, nil); err == nil {
		t.Error("installed into a file")
	}
	broken := Runtime{Name: "python3.99", Path: "/bin/false", Version: "3.99.0"}
	if err := Install(t.Context(), t.TempDir(), []Runtime{broken}); err == nil || !strings.Contains(err.Error(), "/bin/false") {
		t.Errorf("error %v", err)
	}
}
