package runtimes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestDiscoverThisMachine(t *testing.T) {
	found, err := Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range found {
		names = append(names, r.Name)
		t.Logf("%+v", r)
		if r.Native() {
			continue
		}
		if !openToAll(r.Path) {
			t.Errorf("%s: %s cannot be executed by others", r.Name, r.Path)
		}
	}
	if !slices.IsSorted(names) || !slices.Contains(names, "provided.al2") || !slices.Contains(names, "provided.al2023") {
		t.Errorf("found %v", names)
	}
}

// script is a program that talks like an interpreter; binary() is met by a copy of /bin/sh beside it.
func TestCandidates(t *testing.T) {
	root := t.TempDir()
	open := func(dir string) { // t.TempDir's parents are closed to others
		for d := dir; len(d) >= len(os.TempDir()) && d != os.TempDir(); d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	put := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := put("bin/python3.11", "\x7fELF", 0o755)
	put("bin/python3.12", "#!/bin/sh\n", 0o755) // a shim
	put("bin/python3.10", "\x7fELF", 0o700)     // closed
	put("bin/python3-config", "\x7fELF", 0o755) // no interpreter
	put("home/.pyenv/python3.9", "\x7fELF", 0o755)
	node := put("opt/node/bin/node", "\x7fELF", 0o755)
	for _, link := range [][2]string{{good, "bin/python3"}, {filepath.Join(root, "home/.pyenv/python3.9"), "bin/python3.9"}, {filepath.Join(root, "gone"), "bin/nodejs"}} {
		if err := os.Symlink(link[0], filepath.Join(root, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	open(filepath.Join(root, "bin"))
	open(filepath.Join(root, "opt/node/bin"))
	if err := os.Chmod(filepath.Join(root, "home"), 0o700); err != nil {
		t.Fatal(err)
	}
	got := candidates([]string{filepath.Join(root, "bin"), filepath.Join(root, "missing"), filepath.Join(root, "opt/node/bin")})
	if want := []string{good, node}; !slices.Equal(got, want) {
		t.Errorf("candidates %q, want %q", got, want)
	}
}

func TestDiscoverStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "node"), []byte("\x7fELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := discover(ctx, []string{dir}); err == nil {
		t.Error("no error from an ended context")
	}
	if time.Since(start) > askLimit/2 {
		t.Error("waited for the interpreter")
	}
}

func TestAWSName(t *testing.T) {
	for _, c := range []struct {
		version string
		node    bool
		want    string
	}{
		{"3.11.2", false, "python3.11"}, {"3.8.0", false, "python3.8"}, {"3.13.0", false, "python3.13"},
		{"3.7.17", false, ""}, {"2.7.18", false, ""}, {"3.11", false, ""}, {"3.x.1", false, ""}, {"", false, ""},
		{"20.20.2", true, "nodejs20.x"}, {"18.0.0", true, "nodejs18.x"}, {"24.1.0", true, "nodejs24.x"},
		{"16.20.0", true, ""}, {"v20.1.1", true, ""},
	} {
		got, err := awsName(c.version, c.node)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("awsName(%q, %v) = %q, %v; want %q", c.version, c.node, got, err, c.want)
		}
	}
}

func TestArgvAndEnvironment(t *testing.T) {
	py := Runtime{Name: "python3.11", Path: "/usr/bin/python3.11", Version: "3.11.2"}
	if got, want := fmt.Sprint(py.Argv(128)), "[/usr/bin/python3.11 -S /var/runtime/python3.11/bootstrap.pyc]"; got != want {
		t.Errorf("python: %s", got)
	}
	node := Runtime{Name: "nodejs20.x", Path: "/usr/bin/node", Version: "20.20.2"}
	if got, want := fmt.Sprint(node.Argv(128)), "[/usr/bin/node --max-old-space-size=115 /var/runtime/nodejs/bootstrap.js]"; got != want {
		t.Errorf("node: %s", got)
	}
	if got := node.Environment()["NODE_PATH"]; got != "/opt/nodejs/node20/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task" {
		t.Errorf("NODE_PATH %s", got)
	}
	if native := (Runtime{Name: "provided.al2"}); native.Argv(128) != nil || native.Environment() != nil {
		t.Error("a native runtime has an interpreter")
	}
}
