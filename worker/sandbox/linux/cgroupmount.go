//go:build linux

package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// makeWritable makes the hierarchies writable that are mounted read-only, as they are in a container: it sees its own
// groups, and with CAP_SYS_ADMIN it may make groups below them after one change to its own mount table. Nothing
// outside the container changes.
func (c *cgroups) makeWritable() error {
	for _, point := range c.readOnly {
		err := unix.MountSetattr(unix.AT_FDCWD, point, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		if err != nil {
			return fmt.Errorf("cgroups: %s is mounted read-only and cannot be made writable: %w (deploy/README.md says what a container needs)", point, err)
		}
	}
	return nil
}

// mountUnified mounts the unified hierarchy where nobody has, as in a container on a machine with v1: for this
// process alone, in no mount table. A task that v1 has frozen does not die before somebody thaws it, so that it would
// outlive its worker and hold up the end of its container; one that v2 has frozen dies. A kernel that gives no v2
// leaves everything as it was.
func (c *cgroups) mountUnified(parent string) error {
	if c.unified != "" {
		return nil
	}
	mount, err := newMount("cgroup2", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		unix.Close(mount)
		return fmt.Errorf("cgroups: %w", err)
	}
	dir := inside(mount, unifiedPath(string(self)))
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		unix.Close(mount)
		return fmt.Errorf("cgroups: %w", err)
	}
	for _, name := range strings.Fields(string(controllers)) {
		c.in2[name] = c.v1[name] == ""
	}
	c.mount, c.unified = mount, filepath.Join(dir, parent)
	delete(c.v1, "freezer")
	return nil
}

// unifiedPath is where a process is in the unified hierarchy, below what its cgroup namespace shows.
func unifiedPath(self string) string {
	for line := range strings.Lines(self) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok && !strings.HasPrefix(path, "..") {
			return path
		}
	}
	return ""
}
