//go:build linux

package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSubordinate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subuid")
	if err := os.WriteFile(path, []byte("# comment\nann:100000:10\nann:200000:65536\n1001:300000:5\nbob:x:5\nbob:-1:7\nbob:5\ncarl:4294967296:9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		uid          int
		first, count int
	}{{"ann", 1000, 200000, 65536}, {"zoe", 1001, 300000, 5}, {"bob", 1002, 0, 0}, {"carl", 1003, 0, 0}, {"an", 1004, 0, 0}} {
		if first, count := subordinate(path, c.name, c.uid); first != c.first || count != c.count {
			t.Errorf("%s: %d+%d", c.name, first, count)
		}
	}
	if _, count := subordinate(path+"none", "ann", 1000); count != 0 {
		t.Errorf("%d ids from no file", count)
	}
}

func TestDelegatedCgroups(t *testing.T) {
	mount := t.TempDir()
	group := filepath.Join(mount, "user.slice", "app.scope")
	if err := os.MkdirAll(filepath.Join(group, platformLeaf), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"cgroup.procs": "", "cgroup.subtree_control": "", "cgroup.controllers": "memory pids"} {
		if err := os.WriteFile(filepath.Join(group, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v2 := func(top string) string {
		return fmt.Sprintf("41 31 0:38 %s %s rw shared:4 - cgroup2 cgroup2 rw\n", top, mount)
	}
	for _, c := range []struct{ name, mounts, self, unified, reason string }{
		{"own", v2("/"), "3:cpu:/x\n0::/user.slice/app.scope\n", group, ""},
		{"again", v2("/"), "0::/user.slice/app.scope/" + platformLeaf + "\n", group, ""},
		{"not the top", v2("/outer"), "0::/outer/user.slice/app.scope\n", group, ""},
		{"not delegated", v2("/"), "0::/user.slice\n", "", "not delegated"},
		{"no place", v2("/"), "3:cpu:/x\n", "", "not delegated"},
		{"v1", "", "0::/\n", "", "no cgroup v2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range map[string]string{"mounts": c.mounts, "self": c.self} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, reason, err := delegatedCgroups(filepath.Join(dir, "mounts"), filepath.Join(dir, "self"), "doze-x")
			if err != nil || !strings.Contains(reason, c.reason) {
				t.Fatalf("%v, %q", err, reason)
			}
			if c.unified == "" {
				if got.unified != "" || got.has("memory") {
					t.Errorf("%+v", got)
				}
				return
			}
			if got.unified != filepath.Join(c.unified, "doze-x") || !got.has("memory") || got.has("cpu") || !got.canFreeze() {
				t.Errorf("%+v", got)
			}
		})
	}
}
