//go:build linux

package linux

import (
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
)

// hostTree clones the mount of a host path, detached and read-only, without what is setuid and without
// device nodes, for a stage to move into an instance. With deep, mounts below it come along.
func hostTree(path string, deep bool) (int, error) {
	flags, at := uint(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC), uint(unix.AT_EMPTY_PATH)
	if deep {
		flags |= unix.AT_RECURSIVE
		at |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return -1, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	err = unix.MountSetattr(fd, "", at, &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Propagation: unix.MS_PRIVATE,
	})
	if err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return fd, nil
}

// trees are the detached mounts of one instance, on their way into it.
type trees struct {
	root *root
	list []hostPath
}

func (s *Sandbox) trees() *trees {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &trees{root: s.root}
}

func (t *trees) add(host, at string, file bool) error {
	if host == "" {
		return nil
	}
	fd, err := hostTree(host, false)
	if err != nil {
		return err
	}
	t.list = append(t.list, hostPath{path: at, fd: fd, file: file})
	return nil
}

// code adds what is the function's.
func (t *trees) code(c *sandbox.Config) error {
	if err := t.add(c.CodeDir, taskDir, false); err != nil {
		return err
	}
	return t.add(c.OptDir, optDir, false)
}

// runtime adds what is the interpreter's.
func (t *trees) runtime(dir string, readOnly []string) error {
	if err := t.add(dir, "/var/runtime", false); err != nil {
		return err
	}
	for _, path := range readOnly {
		at, isDir, err := t.root.place(path)
		if err != nil {
			return err
		}
		if at == "" {
			continue
		}
		if err := t.add(path, at, !isDir); err != nil {
			return err
		}
	}
	return nil
}

// close gives the descriptors back. What has been sent stays.
func (t *trees) close() {
	for _, m := range t.list {
		unix.Close(m.fd)
	}
	t.list = nil
}

// newTmpfs makes a detached tmpfs. Its files can be reached at inside(fd, name).
func newTmpfs(attrs int, options ...[2]string) (int, error) {
	return newMount("tmpfs", attrs, options...)
}

// newMount makes a detached mount of a file system of this type.
func newMount(fstype string, attrs int, options ...[2]string) (int, error) {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(fd)
	for _, o := range options {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("%s option %s=%s: %w", fstype, o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return -1, fmt.Errorf("create %s: %w", fstype, err)
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", fstype, err)
	}
	return mount, nil
}

// inside is the path of a file in a detached mount, for this process.
func inside(mount int, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", mount, name)
}
