package code

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The folder of the cache:
//
//	<sha256>/task       the unpacked package
//	<sha256>/complete   the mark: format, boot and bytes
//	.tmp-*              being made, or to be removed
//
// A package is made under .tmp-* and renamed when it is whole, mark included, so that a killed
// process leaves nothing half made under a hash. Nothing is synced to the disk: after a power loss
// files may be empty that were whole, so a mark counts only within the boot it was written in.
const (
	taskName  = "task"
	markName  = "complete"
	tmpPrefix = ".tmp-"
	markForm  = "doze code 1 %s %d\n"
)

func (c *Cache) taskDir(sha256 string) string {
	return filepath.Join(c.config.Dir, sha256, taskName)
}

// bootID tells this boot of the machine from others; "-" where it cannot be told.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "-"
	}
	return strings.TrimSpace(string(b))
}

// load takes in the whole packages in the folder and returns what is to be removed from it.
func (c *Cache) load() (waste []string, err error) {
	if err := os.MkdirAll(c.config.Dir, 0o755); err != nil {
		return nil, err
	}
	// Whatever the umask was: functions of other uids go through here.
	if err := os.Chmod(c.config.Dir, 0o755); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(c.config.Dir)
	if err != nil {
		return nil, err
	}
	type found struct {
		*entry
		at time.Time
	}
	var all []found
	for _, f := range files {
		switch name := f.Name(); {
		case strings.HasPrefix(name, tmpPrefix):
			waste = append(waste, filepath.Join(c.config.Dir, name))
		case validHash(name):
			bytes, at, ok := c.readMark(name)
			if !ok {
				aside, err := c.setAside(name)
				if err != nil {
					return nil, err
				}
				waste = append(waste, aside)
				continue
			}
			e := &entry{sha256: name, dir: c.taskDir(name), ready: make(chan struct{}), there: true, bytes: bytes}
			close(e.ready)
			c.entries[name] = e
			c.bytes += bytes
			all = append(all, found{e, at})
		}
	}
	// Nothing is written when a package is used: after a restart the oldest is taken for the least used.
	slices.SortFunc(all, func(a, b found) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.sha256, b.sha256)) })
	for _, f := range all {
		c.clock++
		f.used = c.clock
	}
	return waste, nil
}

// readMark reads a package's mark; false when there is none that counts.
func (c *Cache) readMark(sha256 string) (bytes int64, at time.Time, ok bool) {
	path := filepath.Join(c.config.Dir, sha256, markName)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 200 {
		return 0, at, false
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, at, false
	}
	var boot string
	if _, err := fmt.Sscanf(string(text), markForm, &boot, &bytes); err != nil || boot != c.boot || bytes < 0 {
		return 0, at, false
	}
	return bytes, info.ModTime(), true
}

// setAside renames a package's folder to one that will be removed.
func (c *Cache) setAside(sha256 string) (string, error) {
	aside, err := os.MkdirTemp(c.config.Dir, tmpPrefix)
	if err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(c.config.Dir, sha256), filepath.Join(aside, sha256)); err != nil {
		return "", errors.Join(err, os.Remove(aside))
	}
	return aside, nil
}

// fetch brings one package into the folder and returns how many bytes of the disk it takes.
func (c *Cache) fetch(sha256 string, size int64) (bytes int64, err error) {
	ctx, cancel := context.WithTimeout(c.ctx, fetchLimit)
	defer cancel()
	select {
	case c.turns <- struct{}{}:
		defer func() { <-c.turns }()
	case <-ctx.Done():
		return 0, c.why(ctx)
	}
	tmp, err := os.MkdirTemp(c.config.Dir, tmpPrefix)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return 0, err
	}
	zip := filepath.Join(tmp, "zip")
	if err := c.download(ctx, zip, sha256, size); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(c.why(ctx), err)
		}
		return 0, err
	}
	task := filepath.Join(tmp, taskName)
	if bytes, err = unpackFile(ctx, zip, size, task); err != nil {
		return 0, err
	}
	if err := os.Remove(zip); err != nil {
		return 0, err
	}
	mark := fmt.Appendf(nil, markForm, c.boot, bytes)
	if err := os.WriteFile(filepath.Join(tmp, markName), mark, 0o600); err != nil {
		return 0, err
	}
	return bytes, os.Rename(tmp, filepath.Join(c.config.Dir, sha256))
}

// why is the reason that a fetch was ended.
func (c *Cache) why(ctx context.Context) error {
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return ctx.Err()
}

// download writes the store's bytes to path, never more than size of them, and verifies them.
func (c *Cache) download(ctx context.Context, path, want string, size int64) (err error) {
	body, stored, err := c.config.Store.GetCode(ctx, want)
	if err != nil {
		return err
	}
	defer body.Close()
	if stored != size {
		return fmt.Errorf("%w: the store has %d bytes, the function says %d", ErrCorrupt, stored, size)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, hash), io.LimitReader(body, size+1))
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%w: it is not %d bytes long", ErrCorrupt, size)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != want {
		return fmt.Errorf("%w: it has %s", ErrCorrupt, got)
	}
	return nil
}

// unpackFile unpacks the zip at path into a new folder dir.
func unpackFile(ctx context.Context, path string, size int64, dir string) (bytes int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, err
	}
	return Unpack(ctx, f, size, dir)
}
