//go:build linux

package linux

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// root is what every instance sees as /: a tmpfs that is read-only in there, made once, with the host's
// programs and libraries mounted into it and a small /etc of its own. Nothing else of the host is in it.
type root struct {
	mounter mounter
	fd, dev int        // detached mounts of / and /dev
	trees   []hostPath // what is mounted from the host, after /dev
}

type hostPath struct {
	path string
	fd   int
	file bool
}

// systemDirs are mounted from the host, or are links in the same way as there.
var systemDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// hiddenDirs are those below systemDirs that hold the machine's own configuration, which may name hosts and keys
// and which everyone on the machine may read.
var hiddenDirs = []string{"/usr/local/etc", "/usr/etc"}

// publicEtc is what programs need of /etc and anyone may know: how libraries and certificates are found,
// names of services, the time zone. No accounts, no keys, no identity of the machine.
var publicEtc = []string{
	"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "timezone", "mime.types", "services", "protocols",
	"gai.conf", "host.conf", "os-release", "ssl/certs", "ssl/openssl.cnf", "ca-certificates/extracted", "pki/tls/certs", "pki/tls/openssl.cnf",
	"pki/ca-trust/extracted", "crypto-policies/back-ends", "fonts", "magic", "java-17-openjdk/security", "python3", "python3.11",
}

// maxEtcFile bounds one copied file, and maxEtc all of them, in bytes.
const (
	maxEtcFile = 4 << 20
	maxEtc     = 32 << 20
)

const (
	userName = "sbx_user1051"
	hostName = "doze"
)

// newRoot prepares the tree.
func newRoot(m mounter) (r *root, err error) {
	r = &root{mounter: m, fd: -1, dev: -1}
	defer func() {
		if err != nil {
			r.close()
			err = fmt.Errorf("root of the instances: %w", err)
		}
	}()
	if r.fd, err = m.tmpfs(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, [2]string{"size", "64m"}, [2]string{"mode", "0755"}); err != nil {
		return r, err
	}
	for _, dir := range []string{"dev", "etc", "opt", "proc", "tmp", "var", "var/task", "var/runtime", "run", "home", "mnt", emptyDir, waitingDir, waitingDir + "/lib"} {
		if err := os.Mkdir(inside(r.fd, dir), 0o755); err != nil {
			return r, err
		}
	}
	if err := os.Mkdir(inside(r.fd, usersDir), 0o700); err != nil {
		return r, err
	}
	if err := os.Symlink("/tmp", inside(r.fd, "var/tmp")); err != nil {
		return r, err
	}
	for _, dir := range systemDirs {
		if err := r.system(dir); err != nil {
			return r, err
		}
	}
	if err := r.etc(); err != nil {
		return r, err
	}
	if err := r.devices(); err != nil || m.deputy == nil {
		return r, err
	}
	return r, r.openProc()
}

// openProc mounts the host's /proc where an instance's first process finds it and takes it away again: in a user
// namespace the kernel gives a new /proc only to who has one in sight.
func (r *root) openProc() error {
	if err := os.Mkdir(inside(r.fd, hostProc), 0o755); err != nil {
		return err
	}
	fd, err := r.mounter.hostTree("/proc", true, procAttrs)
	if err != nil {
		return err
	}
	r.trees = append(r.trees, hostPath{path: "/" + hostProc, fd: fd})
	return nil
}

// system mounts one of the host's directories, or makes the link that it is there.
func (r *root) system(dir string) error {
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(dir)
		if err != nil {
			return err
		}
		return os.Symlink(to, inside(r.fd, dir[1:]))
	}
	if err := os.Mkdir(inside(r.fd, dir[1:]), 0o755); err != nil {
		return err
	}
	fd, err := r.mounter.hostTree(dir, true, fileAttrs)
	if err != nil {
		return err
	}
	r.trees = append(r.trees, hostPath{path: dir, fd: fd})
	return nil
}

func (r *root) etc() error {
	left := int64(maxEtc)
	for _, name := range publicEtc {
		if err := copyPublic(filepath.Join("/etc", name), inside(r.fd, "etc/"+name), &left); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"passwd":        "", // each instance mounts its own over it
		"group":         "root:x:0:\n",
		"hosts":         "127.0.0.1 localhost " + hostName + "\n::1 localhost ip6-localhost ip6-loopback\n",
		"hostname":      hostName + "\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
		// With egress the sandbox answers there. Without, nobody does: a look-up is refused at once.
		"resolv.conf": "nameserver 127.0.0.1\noptions timeout:5 attempts:2\n",
		"shells":      "/bin/sh\n",
	} {
		if err := os.WriteFile(inside(r.fd, "etc/"+name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(inside(r.fd, "etc/mtab")); errors.Is(err, fs.ErrNotExist) {
		return os.Symlink("/proc/self/mounts", inside(r.fd, "etc/mtab"))
	}
	return nil
}

// copyPublic copies files that everyone may read, and links, below from. left is what may still be copied.
func copyPublic(from, to string, left *int64) error {
	info, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case mode.IsDir() && mode.Perm()&0o005 == 0o005:
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := copyPublic(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), left); err != nil {
				return err
			}
		}
	case mode.IsRegular() && mode.Perm()&0o004 != 0 && info.Size() <= maxEtcFile && info.Size() <= *left:
		*left -= info.Size()
		return copyFile(from, to, info.Size())
	}
	return nil
}

func copyFile(from, to string, size int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, size))
	return errors.Join(err, out.Close())
}

// devices makes /dev: the harmless nodes and nothing else. In a user namespace nobody makes a node: the host's are
// mounted.
func (r *root) devices() (err error) {
	if r.dev, err = r.mounter.tmpfs(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, [2]string{"size", "64k"}, [2]string{"mode", "0755"}); err != nil {
		return err
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		path := inside(r.dev, name)
		if r.mounter.deputy != nil {
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				return err
			}
			fd, err := r.mounter.hostTree("/dev/"+name, false, deviceAttrs)
			if err != nil {
				return err
			}
			r.trees = append(r.trees, hostPath{path: "/dev/" + name, fd: fd, file: true})
			continue
		}
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return &fs.PathError{Op: "mknod", Path: "/dev/" + name, Err: err}
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	if err := os.Mkdir(inside(r.dev, "shm"), 0o755); err != nil {
		return err
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, inside(r.dev, name)); err != nil {
			return err
		}
	}
	return nil
}

// covered tells whether a host path is there without a mount of its own.
func (r *root) covered(path string) bool {
	return slices.ContainsFunc(systemDirs, func(dir string) bool {
		return path == dir || strings.HasPrefix(path, dir+"/")
	})
}

// place decides where a further host path is mounted and makes the mount point, which all instances then
// have as an empty file or directory. "" says that it is there already. Below /tmp, which every instance has for
// itself, the mount point is made at the start (see mountPoint).
func (r *root) place(path string) (at string, dir bool, err error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", false, err
	}
	if r.covered(real) {
		return "", false, nil
	}
	if r.covered(path) { // a link out of a mounted directory: what it points at must be there
		path = real
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", false, err
	}
	for _, own := range []string{"/proc/", "/dev/", "/var/tmp/"} {
		if strings.HasPrefix(path, own) {
			return "", false, fmt.Errorf("%s cannot be shown to an instance: it has a %s of its own", path, own)
		}
	}
	switch {
	case strings.HasPrefix(path, "/tmp/"):
		return path, info.IsDir(), nil
	case info.IsDir():
		return path, true, os.MkdirAll(inside(r.fd, path), 0o755)
	}
	if err := os.MkdirAll(inside(r.fd, filepath.Dir(path)), 0o755); err != nil {
		return "", false, err
	}
	f, err := os.OpenFile(inside(r.fd, path), os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return "", false, err
	}
	return path, false, f.Close()
}

func (r *root) close() {
	for _, t := range r.trees {
		closeAll([]int{t.fd})
	}
	closeAll([]int{r.dev, r.fd})
	r.trees, r.dev, r.fd = nil, -1, -1
}

// hostProc is where a root in a user namespace has the host's /proc, until an instance has its own.
const hostProc = ".proc"

// emptyDir is mounted over directories that nobody may look into.
const emptyDir = ".empty"

// waitingDir is what a program that waits has as /var/task and /opt. The loader looks once, when the program starts,
// whether the places where functions and layers keep their libraries exist, and never again.
const waitingDir = ".waiting"

// usersDir holds one passwd file per uid, which the instance with that uid has as its /etc/passwd.
const usersDir = ".users"

// forget removes the passwd file of a uid, each of which takes a page of the root's memory.
func (r *root) forget(uid int) {
	os.Remove(inside(r.fd, fmt.Sprintf("%s/%d", usersDir, uid))) // a start that failed early has none
}

// passwd makes sure that the passwd file of a uid exists and says where it is for a stage.
func (r *root) passwd(uid int) (string, error) {
	name := fmt.Sprintf("%s/%d", usersDir, uid)
	f, err := os.OpenFile(inside(r.fd, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return "/" + name, nil // a uid is one instance's at a time, so the file is whole
	}
	if err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(f, "root:x:0:0:root:/root:/usr/sbin/nologin\n%s:x:%d:%d::/tmp:/bin/sh\n", userName, uid, uid)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(inside(r.fd, name))
		return "", err
	}
	return "/" + name, nil
}
