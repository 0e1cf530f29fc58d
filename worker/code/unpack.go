package code

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zip"
	"golang.org/x/sys/unix"
)

// Bounds of a package. The gateway refuses what is over them when it is uploaded, with AWS's
// errors; here they hold against whatever reached the store.
const (
	// MaxUnzippedBytes is AWS's bound of a package's files together.
	MaxUnzippedBytes = 262144000
	// maxEntries bounds the zip's entries, maxNodes the files, folders and links that they make.
	maxEntries = 100_000
	maxNodes   = 200_000
	// maxSteps bounds how often a folder is opened on the way to a file.
	maxSteps = 1_000_000
	// maxDirectoryBytes bounds what is read of the zip before its entries are known.
	maxDirectoryBytes = 32 << 20
	// maxName, maxPart and maxDepth bound an entry's name: PATH_MAX, NAME_MAX, and folders in folders.
	maxName  = 4095
	maxPart  = 255
	maxDepth = 128
	// maxTarget bounds a link's target, as the kernel does.
	maxTarget = 4095
	// nodeBytes is what a file, folder or link takes on the disk besides its content, roughly.
	nodeBytes = 4096
)

// Unpack unpacks a zip of size bytes into the empty folder dir and returns how many bytes of the
// disk it takes, roughly. Every file becomes readable for all, and executable for all if it was for
// anybody; folders likewise. Device nodes, sockets and the like are left out; setuid and its kin are
// dropped; modification times are kept, since compiled Python files name those of their source.
//
// ErrPackage when the zip is at fault. dir then holds a part of it, never anything outside of dir.
func Unpack(ctx context.Context, r io.ReaderAt, size int64, dir string) (bytes int64, err error) {
	return unpack(ctx, r, size, dir, MaxUnzippedBytes)
}

// unpack is Unpack with another bound of the files together.
func unpack(ctx context.Context, r io.ReaderAt, size int64, dir string, limit int64) (bytes int64, err error) {
	directory := &boundedReader{r: r, left: maxDirectoryBytes}
	z, err := zip.NewReader(directory, size)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrPackage, err)
	}
	if len(z.File) > maxEntries {
		return 0, fmt.Errorf("%w: more than %d entries", ErrPackage, maxEntries)
	}
	directory.left = -1 // what follows is bounded by what it is unpacked to
	if err := check(z.File, uint64(size), limit); err != nil {
		return 0, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	u := unpacker{root: root, stack: []level{{".", root}}, dirs: map[string]bool{".": true}, left: limit, buf: make([]byte, 256<<10)}
	defer u.close()
	for _, f := range z.File {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := u.entry(f); err != nil {
			return 0, fmt.Errorf("entry %.200q: %w", f.Name, err)
		}
	}
	if err := u.link(); err != nil {
		return 0, err
	}
	return limit - u.left + nodeBytes*int64(u.nodes), nil
}

// check refuses, before anything is made, what the names and figures of a zip of size bytes already tell.
func check(files []*zip.File, size uint64, limit int64) error {
	nodes := make(map[string]struct{}, len(files))
	var bytes, packed uint64
	for _, f := range files {
		name, err := cleanName(f.Name)
		if err != nil {
			return fmt.Errorf("entry %.200q: %w", f.Name, err)
		}
		for ; name != "."; name = path.Dir(name) {
			if _, seen := nodes[name]; seen {
				break
			}
			if nodes[name] = struct{}{}; len(nodes) > maxNodes {
				return fmt.Errorf("%w: more than %d files and folders", ErrPackage, maxNodes)
			}
		}
		if bytes += f.UncompressedSize64; bytes > uint64(limit) || f.UncompressedSize64 > uint64(limit) {
			return errTooLarge
		}
		// Entries that share their bytes can have them read a hundred thousand times, to unpack to nothing.
		if packed += f.CompressedSize64; packed > size || f.CompressedSize64 > size {
			return fmt.Errorf("%w: its entries overlap", ErrPackage)
		}
	}
	return nil
}

// boundedReader fails when more than left bytes are read in all; below zero it does not bound.
type boundedReader struct {
	r    io.ReaderAt
	left int64
}

var errDirectory = errors.New("the list of its entries is too long")

func (b *boundedReader) ReadAt(p []byte, at int64) (int, error) {
	if b.left >= 0 {
		if b.left -= int64(len(p)); b.left < 0 {
			b.left = 0
			return 0, errDirectory
		}
	}
	return b.r.ReadAt(p, at)
}

// unpacker writes one package. All paths go through the root, which does not leave its folder
// whatever stands in it; links are made last, so that nothing is ever written through one.
type unpacker struct {
	root  *os.Root
	stack []level         // the folder that was entered last, and those it stands in
	steps int             // folders entered
	dirs  map[string]bool // made already
	links []symlink
	left  int64 // bytes that may still be written
	nodes int   // files, folders and links made
	buf   []byte
}

// level is an open folder of the package.
type level struct {
	name string
	root *os.Root
}

type symlink struct{ name, target string }

func (u *unpacker) entry(f *zip.File) error {
	name, err := cleanName(f.Name)
	if err != nil {
		return err
	}
	if f.Flags&1 != 0 {
		return fmt.Errorf("%w: it is encrypted", ErrPackage)
	}
	switch mode := f.Mode(); {
	case mode.IsDir() || strings.HasSuffix(f.Name, "/"):
		_, err := u.enter(name)
		return err
	case name == ".":
		return fmt.Errorf("%w: a file without a name", ErrPackage)
	case mode.IsRegular():
		return u.file(f, name)
	case mode.Type() == fs.ModeSymlink:
		return u.readLink(f, name)
	default:
		return nil // a device, a pipe or a socket
	}
}

// cleanName returns the entry's path below the root, "." for the root itself.
func cleanName(name string) (string, error) {
	if name == "" || len(name) > maxName || name[0] == '/' || strings.ContainsAny(name, "\x00\\") {
		return "", fmt.Errorf("%w: such a name leaves its folder or cannot be a file's", ErrPackage)
	}
	depth := 0
	for part := range strings.SplitSeq(strings.TrimSuffix(name, "/"), "/") {
		if depth++; part == ".." || len(part) > maxPart || depth > maxDepth {
			return "", fmt.Errorf("%w: such a name leaves its folder or cannot be a file's", ErrPackage)
		}
	}
	return path.Clean(name), nil
}

// enter opens the folder, making it and those it stands in. The root it returns is good until the
// next call. It begins where the last call ended, for a zip mostly names neighbours one after the
// other.
func (u *unpacker) enter(dir string) (*os.Root, error) {
	top := u.stack[len(u.stack)-1]
	for top.name != "." && top.name != dir && !strings.HasPrefix(dir, top.name+"/") {
		top.root.Close()
		u.stack = u.stack[:len(u.stack)-1]
		top = u.stack[len(u.stack)-1]
	}
	for top.name != dir {
		part := dir
		if top.name != "." {
			part = dir[len(top.name)+1:]
		}
		part, _, _ = strings.Cut(part, "/")
		next := level{name: path.Join(top.name, part)}
		if err := u.mkdir(top.root, part, next.name); err != nil {
			return nil, err
		}
		if u.steps++; u.steps > maxSteps {
			return nil, fmt.Errorf("%w: too many folders in folders", ErrPackage)
		}
		var err error
		if next.root, err = top.root.OpenRoot(part); err != nil {
			return nil, err
		}
		u.stack = append(u.stack, next)
		top = next
	}
	return top.root, nil
}

// mkdir makes one folder, called part in its parent, if it has not been made.
func (u *unpacker) mkdir(parent *os.Root, part, name string) error {
	if u.dirs[name] {
		return nil
	}
	if err := parent.Mkdir(part, 0o755); err != nil {
		return blame(err)
	}
	// Whatever the umask is.
	if err := parent.Chmod(part, 0o755); err != nil {
		return err
	}
	u.dirs[name] = true
	u.nodes++
	return nil
}

// close closes what enter opened, but not the package's own root.
func (u *unpacker) close() {
	for _, l := range u.stack[1:] {
		l.root.Close()
	}
}

// file writes one file.
func (u *unpacker) file(f *zip.File, name string) (err error) {
	dir, err := u.enter(path.Dir(name))
	if err != nil {
		return err
	}
	perm := fs.FileMode(0o644)
	if f.Mode()&0o111 != 0 {
		perm = 0o755
	}
	content, err := f.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPackage, err)
	}
	defer content.Close()
	base := path.Base(name)
	out, err := dir.OpenFile(base, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return blame(err)
	}
	u.nodes++
	err = errors.Join(u.copy(out, content), out.Chmod(perm), out.Close())
	if err != nil {
		return err
	}
	at := f.Modified
	if y := at.Year(); y < 1980 || y > 2200 {
		at = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC) // the zip says nothing, or nonsense
	}
	return dir.Chtimes(base, at, at)
}

var errTooLarge = fmt.Errorf("%w: Unzipped size must be smaller than %d bytes", ErrPackage, MaxUnzippedBytes)

// copy writes what the content really holds, which the zip's own figures need not tell.
func (u *unpacker) copy(out *os.File, content io.Reader) error {
	for {
		n, err := content.Read(u.buf)
		if u.left -= int64(n); u.left < 0 {
			return errTooLarge
		}
		if _, err := out.Write(u.buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrPackage, err)
		}
	}
}

// readLink keeps a symbolic link for later.
func (u *unpacker) readLink(f *zip.File, name string) error {
	content, err := f.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPackage, err)
	}
	defer content.Close()
	target, err := io.ReadAll(io.LimitReader(content, maxTarget+1))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPackage, err)
	}
	if len(target) == 0 || len(target) > maxTarget || target[0] == '/' || strings.Contains(string(target), "\x00") {
		return fmt.Errorf("%w: a link to %.80q", ErrPackage, target)
	}
	u.links = append(u.links, symlink{name, string(target)})
	return nil
}

// link makes the links, and then follows each in the tree as it is now, which will not change any
// more: the root refuses a path that leaves it. A link that leads to nothing is harmless.
func (u *unpacker) link() error {
	for _, l := range u.links {
		if _, err := u.enter(path.Dir(l.name)); err != nil {
			return fmt.Errorf("link %.200q: %w", l.name, err)
		}
	}
	for _, l := range u.links {
		dir, err := u.enter(path.Dir(l.name))
		if err != nil {
			return fmt.Errorf("link %.200q: %w", l.name, err)
		}
		if err := dir.Symlink(l.target, path.Base(l.name)); err != nil {
			return fmt.Errorf("link %.200q: %w", l.name, blame(err))
		}
		u.nodes++
	}
	for _, l := range u.links {
		if _, err := u.root.Stat(l.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: link %.200q to %.200q: %w", ErrPackage, l.name, l.target, err)
		}
	}
	return nil
}

// blame says whose fault it is that a file, folder or link cannot be made: the package's, when the
// name is taken, or stands below something that is not a folder.
func blame(err error) error {
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return fmt.Errorf("%w: %w", ErrPackage, err)
	}
	return err
}
