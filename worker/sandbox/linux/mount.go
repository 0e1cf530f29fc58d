//go:build linux

package linux

import (
	"encoding/binary"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// mounter makes detached mounts. Where this process may not, its deputy does, a launcher in the user namespace
// that sees the host as this process does.
type mounter struct{ deputy *launcher }

// Attributes of what comes from the host. A device node is one mount, and works only without NODEV; the kernel shows
// a /proc only in place of one that is as open.
const (
	fileAttrs   = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	deviceAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	procAttrs   = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
)

// hostTree clones the mount of a host path, detached, with attributes that take rights away, for a stage to move into
// an instance. With deep, mounts below it come along.
func (m mounter) hostTree(path string, deep bool, attrs uint64) (int, error) {
	flags, at := uint(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC), uint(unix.AT_EMPTY_PATH)
	if deep {
		flags |= unix.AT_RECURSIVE
		at |= unix.AT_RECURSIVE
	}
	if m.deputy != nil {
		p := newProgram(stage.Setup)
		p.call("open_tree "+path, unix.SYS_OPEN_TREE, imm(unix.AT_FDCWD), p.str(path), imm(flags)).Save = 1 + regScratch
		attr := p.mountAttr(attrs)
		binary.NativeEndian.PutUint64(p.blob[attr.value+16:], unix.MS_PRIVATE)
		p.call("mount_setattr "+path, unix.SYS_MOUNT_SETATTR, reg(regScratch), p.str(""), imm(at), attr, imm(unix.MOUNT_ATTR_SIZE_VER0))
		return m.ask(p)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return -1, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	err = unix.MountSetattr(fd, "", at, &unix.MountAttr{
		Attr_set:    attrs,
		Propagation: unix.MS_PRIVATE,
	})
	if err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return fd, nil
}

// ask lets the deputy make the mount that a program leaves in regScratch.
func (m mounter) ask(p *program) (int, error) {
	p.send = []uint8{regScratch}
	fds, err := m.deputy.do(p)
	if err != nil {
		return -1, err
	}
	return fds[0], nil
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
	fd, err := t.root.mounter.hostTree(host, false, fileAttrs)
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

// tmpfs makes a detached tmpfs. Its files can be reached at inside(fd, name).
func (m mounter) tmpfs(attrs int, options ...[2]string) (int, error) {
	if m.deputy != nil {
		p := newProgram(stage.Setup)
		p.call("fsopen tmpfs", unix.SYS_FSOPEN, p.str("tmpfs"), imm(unix.FSOPEN_CLOEXEC)).Save = 1 + regContext
		for _, o := range options {
			p.call("tmpfs option "+o[0], unix.SYS_FSCONFIG, reg(regContext), imm(unix.FSCONFIG_SET_STRING), p.str(o[0]), p.str(o[1]), imm(0))
		}
		p.call("create tmpfs", unix.SYS_FSCONFIG, reg(regContext), imm(unix.FSCONFIG_CMD_CREATE), imm(0), imm(0), imm(0))
		p.call("fsmount tmpfs", unix.SYS_FSMOUNT, reg(regContext), imm(unix.FSMOUNT_CLOEXEC), imm(attrs)).Save = 1 + regScratch
		p.call("close the context", unix.SYS_CLOSE, reg(regContext))
		return m.ask(p)
	}
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
