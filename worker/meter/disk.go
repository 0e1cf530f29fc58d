package meter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is the folder of the journal: the seam at which tests make writes fail.
type disk interface {
	// list names the files and their sizes in bytes.
	list() (map[string]int64, error)
	// create makes a file of size zero bytes whose blocks are allocated, so that writing them cannot
	// meet a full disk. After an error there is no such file.
	create(name string, size int64) (file, error)
	// open opens a file for reading.
	open(name string) (file, error)
	rename(from, to string) error
	// remove is not troubled by a file that is gone already.
	remove(name string) error
}

// file is one open file of a disk.
type file interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Close() error
}

// folder is the disk of the operating system, locked against other processes.
type folder struct {
	path string
	lock *os.File
}

// lockName is the file whose lock says who owns the folder.
const lockName = "LOCK"

// openFolder makes and locks the folder. ErrInUse when another process has it.
func openFolder(path string) (*folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("meter: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("meter: %w", err)
	}
	// The kernel drops the lock with the process, however it ends.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrInUse, path)
		}
		return nil, fmt.Errorf("meter: lock %s: %w", path, err)
	}
	return &folder{path: path, lock: lock}, nil
}

func (d *folder) close() error { return d.lock.Close() }

func (d *folder) list() (map[string]int64, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	files := make(map[string]int64, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if info.Mode().IsRegular() {
			files[e.Name()] = info.Size()
		}
	}
	return files, nil
}

func (d *folder) create(name string, size int64) (file, error) {
	path := filepath.Join(d.path, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if size > 0 {
		if err := allocate(f, size); err != nil {
			f.Close()
			return nil, errors.Join(fmt.Errorf("allocate %s: %w", path, err), os.Remove(path))
		}
	}
	return f, nil
}

func (d *folder) open(name string) (file, error) { return os.Open(filepath.Join(d.path, name)) }

func (d *folder) rename(from, to string) error {
	return os.Rename(filepath.Join(d.path, from), filepath.Join(d.path, to))
}

func (d *folder) remove(name string) error {
	err := os.Remove(filepath.Join(d.path, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// fill allocates a file's blocks by writing them, where the file system has no other way.
func fill(f *os.File, size int64) error {
	zeros := make([]byte, 64<<10)
	for at := int64(0); at < size; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// full reports whether err says that the disk has no room, which passes by itself.
func full(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
