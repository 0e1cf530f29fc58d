package runtimes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAdopts(t *testing.T) {
	python, node, native := Runtime{Name: "python3.11", Path: "/p"}, Runtime{Name: "nodejs20.x", Path: "/n"}, Runtime{Name: "provided.al2023"}
	for _, c := range []struct {
		name                 string
		python, node, native bool
	}{
		{"TABLE", true, true, true}, {"TZ", true, true, true}, {"PATH", true, true, true}, {"NODE_ENV", true, true, true}, {"", true, true, true},
		{"PYTHONPATH", false, true, true}, {"PYTHONHASHSEED", false, true, true}, {"OPENSSL_CONF", false, false, true},
		{"NODE_OPTIONS", true, false, true}, {"NODE_PATH", true, false, true}, {"UV_THREADPOOL_SIZE", true, false, true}, {"SSL_CERT_FILE", true, false, true},
		{"LD_PRELOAD", false, false, true}, {"LD_LIBRARY_PATH", false, false, true}, {"LANG", false, false, true}, {"LC_ALL", false, false, true}, {"MALLOC_ARENA_MAX", false, false, true},
	} {
		env := map[string]string{"OTHER": "x", c.name: "y"}
		if python.Adopts(env) != c.python || node.Adopts(env) != c.node || native.Adopts(env) != c.native {
			t.Errorf("%s: python %v, node %v, native %v", c.name, python.Adopts(env), node.Adopts(env), native.Adopts(env))
		}
	}
}

func TestShadows(t *testing.T) {
	found, err := Discover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Install(t.Context(), t.TempDir(), found); err != nil {
		t.Fatal(err)
	}
	for _, r := range found {
		for name, python := range map[string]bool{
			"app.py": false, "requirements.txt": false, "lib": false, "jsonschema": false, "json_tools.py": false,
			"json": true, "json.py": true, "logging.pyc": true, "socket.cpython-311-x86_64-linux-gnu.so": true, "re": true, "_socket.so": true,
		} {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			shadows, err := r.Shadows(dir)
			if want := python && strings.HasPrefix(r.Name, "python"); err != nil || shadows != want {
				t.Errorf("%s, %s: %v %v", r.Name, name, shadows, err)
			}
		}
		if strings.HasPrefix(r.Name, "python") {
			if _, err := r.Shadows("/no/such/folder"); err == nil {
				t.Error("a folder that is not there was read")
			}
			if shadows, err := r.Shadows(t.TempDir()); shadows || err != nil {
				t.Errorf("an empty folder: %v %v", shadows, err)
			}
		}
	}
}

func TestParkedArgv(t *testing.T) {
	for _, c := range []struct {
		r    Runtime
		want string
	}{
		{Runtime{Name: "provided.al2"}, ""},
		{Runtime{Name: "python3.11", Path: "/usr/bin/python3.11"}, "/usr/bin/python3.11 -S /var/runtime/python3.11/bootstrap.pyc parked"},
		{Runtime{Name: "nodejs20.x", Path: "/usr/bin/node"}, "/usr/bin/node --max-old-space-size=115 /var/runtime/nodejs/bootstrap.js parked"},
	} {
		if got := strings.Join(c.r.ParkedArgv(128), " "); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
