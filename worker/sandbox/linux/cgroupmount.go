//go:build linux

package linux

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// makeWritable makes the v1 hierarchies writable that are mounted read-only, as they are in a container: it sees its own
// groups, and with CAP_SYS_ADMIN it may make groups below them after one change to its own mount table. Nothing
// outside the container changes.
func (c *cgroups) makeWritable() error {
	for _, point := range c.readOnly {
		if err := clearReadOnly(point); err != nil {
			return fmt.Errorf("cgroups: %s is mounted read-only and cannot be made writable: %w (deploy/README.md says what a container needs)", point, err)
		}
	}
	return nil
}

func clearReadOnly(point string) error {
	return unix.MountSetattr(unix.AT_FDCWD, point, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
}
