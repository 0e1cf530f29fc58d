//go:build linux

package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// unifiedDir is the directory of the unified hierarchy that the sandbox makes its parent directory in.
//
// It is the group of this process where that has been delegated to it, as systemd does it with Delegate=yes: all above
// belongs to somebody else, who may not let it be written at all. Otherwise it is the root of the mount: in a container
// with a cgroup namespace of its own that is the container's group.
func unifiedDir(mounted mountLine, self string) (string, error) {
	b, err := os.ReadFile(self)
	if err != nil {
		return "", fmt.Errorf("cgroups: %w", err)
	}
	own, ok := ownGroup(mounted, string(b))
	if ok && own != mounted.point && (delegated(own) || !writable(mounted.point) && writable(own)) {
		return own, nil
	}
	if !writable(mounted.point) {
		return "", fmt.Errorf("cgroups: %s cannot be written and this process's group %q in it is not delegated to it (systemd: Delegate=yes; container: mount it writable)",
			mounted.point, strings.TrimSpace(string(b)))
	}
	return mounted.point, nil
}

// mountUnified mounts the unified hierarchy where there is none, for this process alone. v1's freezer will not do: a
// killed process in it stays until somebody thaws it, and nobody does for a worker that died. A kernel that has no such
// hierarchy leaves it at that.
func (c *cgroups) mountUnified(self, parent string) error {
	if c.unified != "" || c.unusable != nil {
		return nil
	}
	fd, err := newMount("cgroup2", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil
	}
	c.own = os.NewFile(uintptr(fd), "cgroup2")
	mounted := mountLine{root: "/", point: fmt.Sprintf("/proc/self/fd/%d", fd), fstype: "cgroup2"}
	if c.contained {
		// The whole machine's hierarchy: the container's own group in it ends with the container.
		b, err := os.ReadFile(self)
		if err != nil {
			return fmt.Errorf("cgroups: %w", err)
		}
		if own, ok := ownGroup(mounted, string(b)); ok {
			mounted.point = own
		}
	}
	return c.use(mounted, self, parent)
}

// close gives up what this process has mounted for itself.
func (c *cgroups) close() {
	if c.own != nil {
		c.own.Close()
	}
}

// ownGroup finds the directory of this process's own group below a mount. content is what /proc/self/cgroup says. A
// leaf that a worker made there for itself (platformLeaf) stands for the group that it is in. A group that lies outside
// of the mount or of this process's cgroup namespace has no directory.
func ownGroup(mounted mountLine, content string) (dir string, ok bool) {
	for line := range strings.Lines(content) {
		path, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !found {
			continue
		}
		rel, err := filepath.Rel(mounted.root, path)
		if err != nil || !filepath.IsLocal(rel) || strings.HasPrefix(mounted.root, "/..") || strings.HasPrefix(path, "/..") {
			return "", false
		}
		dir := filepath.Join(mounted.point, rel)
		if filepath.Base(dir) == platformLeaf {
			dir = filepath.Dir(dir)
		}
		return dir, true
	}
	return "", false
}

// delegated tells whether systemd has marked a group as one that it leaves to its processes.
func delegated(dir string) bool {
	for _, mark := range []string{"trusted.delegate", "user.delegate"} {
		var value [8]byte
		if n, err := unix.Getxattr(dir, mark, value[:]); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

func writable(dir string) bool { return unix.Access(dir, unix.W_OK) == nil }
