//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	modulesDir = "/modules"
	jobFile    = "/job.json"
)

// writeInitramfs packs what the guest has before it has its root: this binary as /init, the modules, the job.
func writeInitramfs(path string, k *kernel, j job) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := &cpio{w: bufio.NewWriter(f)}
	// The console is what PID 1 has as its output; the rest comes with devtmpfs.
	for _, dir := range []string{"/dev", "/proc", "/root", modulesDir} {
		a.entry(dir, 0o040755, nil)
	}
	if err := a.file("/init", "/proc/self/exe"); err != nil {
		return err
	}
	for i, m := range k.modules {
		if err := a.file(fmt.Sprintf("%s/%02d-%s", modulesDir, i, filepath.Base(m)), m); err != nil {
			return err
		}
	}
	if err := a.tree("/etc"); err != nil {
		return err
	}
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	a.entry(jobFile, 0o100644, b)
	a.entry("TRAILER!!!", 0, nil)
	return errors.Join(a.err, a.w.Flush())
}

// cpio writes the "newc" format, the one that the kernel unpacks.
type cpio struct {
	w     *bufio.Writer
	inode int
	err   error
}

// maxCopied bounds a file of a tree, in bytes.
const maxCopied = 1 << 20

// tree packs what everyone may read below dir: many small files are slow to read from another machine's files.
func (a *cpio) tree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // it has just gone
		}
		mode := int(info.Mode().Perm())
		switch {
		case d.Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			a.entry(path, 0o120777, []byte(to))
		case mode&0o004 == 0 && d.IsDir():
			return fs.SkipDir
		case d.IsDir():
			a.entry(path, 0o040000|mode, nil)
		case info.Mode().IsRegular() && mode&0o004 != 0 && info.Size() <= maxCopied:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			a.entry(path, 0o100000|mode, b)
		}
		return nil
	})
}

func (a *cpio) file(name, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.entry(name, 0o100755, b)
	return nil
}

// entry writes one member: inode, mode, uid, gid, links, time, size, four device numbers, length of the name,
// checksum; then the name and the content, each padded to four bytes.
func (a *cpio) entry(name string, mode int, content []byte) {
	a.inode++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.padded([]byte(header + name + "\x00"))
	a.padded(content)
}

func (a *cpio) padded(b []byte) {
	for _, part := range [][]byte{b, make([]byte, -len(b)&3)} {
		if _, err := a.w.Write(part); err != nil && !errors.Is(err, io.ErrShortWrite) {
			a.err = errors.Join(a.err, err)
		}
	}
}
