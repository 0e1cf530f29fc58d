package datadir

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// holder is the environment variable that makes the test binary open the folder it names, say
// so, and hold it until its stdin ends.
const holder = "DATADIR_TEST_HOLD"

func TestMain(m *testing.M) {
	path := os.Getenv(holder)
	if path == "" {
		os.Exit(m.Run())
	}
	if _, err := Open(path); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("open")
	bufio.NewReader(os.Stdin).ReadByte()
}

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOpenMakesPrivateFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d := open(t, path)
	if d.Path() != path {
		t.Errorf("path %q, want %q", d.Path(), path)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, error %v; want 0700", info.Mode(), err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Close(); err != nil {
		t.Fatalf("second life: %v", err)
	}
}

func TestOpenTightensModeOfEmptyFolder(t *testing.T) {
	path := t.TempDir()
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	defer open(t, path).Close()
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, want 0700", info.Mode())
	}
}

func TestOneProcessAtATime(t *testing.T) {
	path := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holder+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "open\n" {
		t.Fatalf("the other process said %q", line)
	}
	_, err = Open(path)
	var inUse *InUseError
	if !errors.As(err, &inUse) || inUse.PID != cmd.Process.Pid {
		t.Errorf("error %v, want InUseError with process %d", err, cmd.Process.Pid)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Close(); err != nil {
		t.Errorf("after the other ended: %v", err)
	}
}

func TestOpenTwiceInOneProcess(t *testing.T) {
	path := t.TempDir()
	defer open(t, path).Close()
	var inUse *InUseError
	if _, err := Open(path); !errors.As(err, &inUse) || inUse.PID != os.Getpid() {
		t.Errorf("error %v, want InUseError naming this process", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, file, content, want string
	}{
		{"newer", "FORMAT", "doze 2\n", "has format 2, of a newer doze; this one reads format 1"},
		{"foreign", "notes.txt", "mine", `holds "notes.txt" but no FORMAT`},
		{"not a format", "FORMAT", "JFIF", "is not a format file of doze"},
		{"empty format", "FORMAT", "", "is not a format file of doze"},
		{"no number", "FORMAT", "doze one", "names no format"},
		{"long", "FORMAT", "doze " + strings.Repeat("1", 5000), "names no format"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := t.TempDir()
			if err := os.WriteFile(filepath.Join(path, tc.file), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want one with %q", err, tc.want)
			}
			if tc.name == "foreign" {
				if entries, _ := os.ReadDir(path); len(entries) != 1 {
					t.Errorf("refusing left %v behind", entries)
				}
			}
			// The lock is free again: the same refusal, not "in use".
			if _, again := Open(path); again == nil || again.Error() != err.Error() {
				t.Errorf("second time: %v", again)
			}
		})
	}
}

func TestOpenAfterCrashBetweenSteps(t *testing.T) {
	for _, left := range []string{"lock", "FORMAT.new"} {
		t.Run(left, func(t *testing.T) {
			path := t.TempDir()
			if err := os.WriteFile(filepath.Join(path, left), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := open(t, path).Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOpenPathIsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil {
		t.Fatal("opened a file as a folder")
	}
}

func FuzzParseFormat(f *testing.F) {
	for _, s := range []string{"doze 1\n", "doze 99999999999999999999", "", "doze", "doze -1", "doze  1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseFormat(b)
		if err == nil && n < 1 {
			t.Fatalf("%q: format %d", b, n)
		}
	})
}
