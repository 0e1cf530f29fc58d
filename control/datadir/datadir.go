// Package datadir is the folder in which one Doze process keeps what must survive it: it sees to
// it that the folder is private, belongs to one process at a time, and has a format that this
// binary understands.
//
// It knows the file system. It must not know what the other parts keep in the folder.
package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Format is the format this binary reads and writes. It changes when what an older binary wrote
// can no longer be read as it is.
const Format = 1

const (
	lockName   = "lock"
	formatName = "FORMAT"
	formatWord = "doze"
	// maxFormatBytes bounds what is read of a FORMAT or lock file; ours are a few bytes.
	maxFormatBytes = 256
)

// InUseError says that another process has the folder open.
type InUseError struct {
	Path string
	// PID is the process that has it, 0 when it could not be told.
	PID int
}

func (e *InUseError) Error() string {
	who := "another process"
	if e.PID > 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("data folder %s is in use by %s: stop it, or give this one another folder with --data-dir", e.Path, who)
}

// FormatError says that the folder was written by a binary whose format is another.
type FormatError struct {
	Path string
	// Have is the folder's format, Want the binary's.
	Have, Want int
}

func (e *FormatError) Error() string {
	older := "a newer"
	if e.Have < e.Want {
		older = "an older"
	}
	return fmt.Sprintf("data folder %s has format %d, of %s doze; this one reads format %d: use the doze that wrote it, or another folder with --data-dir",
		e.Path, e.Have, older, e.Want)
}

// ForeignError says that the folder holds something, and that it is not Doze's.
type ForeignError struct {
	Path string
	// Found is one of the names in it.
	Found string
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("data folder %s is not empty and not a data folder of doze (it holds %q but no %s file): choose another with --data-dir",
		e.Path, e.Found, formatName)
}

// Dir is an open data folder.
type Dir struct {
	path string
	lock *os.File
}

// Open makes the folder if it is not there (mode 0700, parents included), takes its lock, and
// checks its format, or writes it if the folder is new. The lock is the kernel's: it ends with the
// process, however that ends.
//
// Errors: *InUseError, *FormatError, *ForeignError, or what the system said. After an error nothing
// is held.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data folder %s cannot be made (choose another with --data-dir): %w", path, err)
	}
	// Before the first file of ours is put there: a mistyped --data-dir must not leave a trace.
	if err := refuseForeign(path); err != nil {
		return nil, err
	}
	lock, err := lockFolder(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path, lock: lock}
	if err := d.settle(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// Path is the folder's absolute path.
func (d *Dir) Path() string { return d.path }

// Close gives the folder free. The lock file stays: removing it would let two processes lock two
// different files of one name.
func (d *Dir) Close() error { return d.lock.Close() }

// settle makes the folder private and checks or writes its format; the lock is held.
func (d *Dir) settle() error {
	info, err := os.Stat(d.path)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		// It will hold functions' code and environment, which may carry secrets.
		if err := os.Chmod(d.path, 0o700); err != nil {
			return fmt.Errorf("data folder %s can be read by other users: %w", d.path, err)
		}
	}
	have, err := readFormat(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return writeFormat(d.path)
	case err != nil:
		return err
	case have != Format:
		return &FormatError{Path: d.path, Have: have, Want: Format}
	}
	return nil
}

// refuseForeign fails when the folder holds something but no format. What a crash between Open's
// steps can leave (the lock, an unfinished format file) does not count.
func refuseForeign(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	found := ""
	for _, e := range entries {
		switch e.Name() {
		case formatName:
			return nil
		case lockName, formatName + ".new":
		default:
			if found == "" {
				found = e.Name()
			}
		}
	}
	if found != "" {
		return &ForeignError{Path: path, Found: found}
	}
	return nil
}

// lockFolder takes the folder's lock and writes this process's id into the lock file.
func lockFolder(path string) (*os.File, error) {
	name := filepath.Join(path, lockName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := flock(f); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &InUseError{Path: path, PID: readPID(f)}
		}
		return nil, fmt.Errorf("data folder: lock %s: %w", name, err)
	}
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if err := errors.Join(f.Truncate(0), writeAt(f, pid)); err != nil {
		return nil, errors.Join(fmt.Errorf("data folder: write %s: %w", name, err), f.Close())
	}
	return f, nil
}

// flock asks for the lock without waiting. A signal may interrupt even that.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// readPID is the id in a lock file, 0 if there is none (its owner is about to write it).
func readPID(f *os.File) int {
	b, err := io.ReadAll(io.LimitReader(f, maxFormatBytes))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}

// readFormat reads the folder's format. fs.ErrNotExist when it has none.
func readFormat(path string) (int, error) {
	name := filepath.Join(path, formatName)
	f, err := os.Open(name)
	if err != nil {
		return 0, fmt.Errorf("data folder: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFormatBytes))
	if err != nil {
		return 0, fmt.Errorf("data folder: %w", err)
	}
	have, err := parseFormat(b)
	if err != nil {
		return 0, fmt.Errorf("data folder: %s: %w: restore it, or choose another folder with --data-dir", name, err)
	}
	return have, nil
}

// parseFormat reads "doze N".
func parseFormat(b []byte) (int, error) {
	word, number, ok := bytes.Cut(bytes.TrimSpace(b), []byte(" "))
	if !ok || string(word) != formatWord {
		return 0, fmt.Errorf("is not a format file of doze")
	}
	n, err := strconv.Atoi(string(number))
	if err != nil || n < 1 {
		return 0, fmt.Errorf("names no format")
	}
	return n, nil
}

// writeFormat writes the format so that it is there as a whole or not at all, power loss included.
func writeFormat(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("data folder: write the format: %w", err)
		}
	}()
	name := filepath.Join(path, formatName)
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %d\n", formatWord, Format)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
