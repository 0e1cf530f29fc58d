//go:build linux

package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// delegatedCgroups finds what an ordinary user was given of the unified hierarchy: the group that this process is in, if
// its user may make others in it (systemd: Delegate=yes). There may be nothing: then the limits are kept otherwise, and
// reason says what is missing. It makes nothing.
func delegatedCgroups(mountinfo, self, parent string) (c *cgroups, reason string, err error) {
	c = &cgroups{v1: map[string]string{}, in2: map[string]bool{}}
	_, mounted, err := scanCgroups(mountinfo, parent)
	if err != nil {
		return nil, "", err
	}
	if mounted.point == "" {
		return c, "no cgroup v2 hierarchy is mounted", nil
	}
	own, err := os.ReadFile(self)
	if err != nil {
		return nil, "", fmt.Errorf("cgroups: %w", err)
	}
	dir := ""
	for l := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(l, "\n"), "0::"); ok {
			dir = filepath.Join(mounted.point, strings.TrimPrefix(path, mounted.root))
		}
	}
	if filepath.Base(dir) == platformLeaf { // a worker was here before
		dir = filepath.Dir(dir)
	}
	for _, path := range []string{dir, filepath.Join(dir, "cgroup.procs"), filepath.Join(dir, "cgroup.subtree_control")} {
		if dir == "" || unix.Access(path, unix.W_OK) != nil {
			return c, "the cgroup of this process is not delegated to its user (start it with: systemd-run --user --scope -p Delegate=yes doze dev)", nil
		}
	}
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, "", fmt.Errorf("cgroups: %w", err)
	}
	for _, name := range strings.Fields(string(controllers)) {
		c.in2[name] = true
	}
	c.unified = filepath.Join(dir, parent)
	return c, "", nil
}
