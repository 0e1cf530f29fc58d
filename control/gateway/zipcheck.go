package gateway

import (
	"bytes"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/klauspost/compress/zip"
)

const (
	// maxZipEntries bounds the files of a package; the central directory alone of more would be
	// most of the largest zip.
	maxZipEntries = 100_000
	// maxZipName bounds an entry's name (Linux: PATH_MAX).
	maxZipName = 4095
	// maxZipPart bounds each part of it (Linux: NAME_MAX).
	maxZipPart = 255
	// maxZipDepth bounds how many folders stand in one another, maxZipNames all names together in
	// bytes: the checks below take time in proportion to their product.
	maxZipDepth = 128
	maxZipNames = 16 << 20
	// maxLinkTarget bounds a symbolic link's target.
	maxLinkTarget = 4095
	// maxLinkHops is how many links one path may lead through (Linux: 40).
	maxLinkHops = 40
	// maxLinkSteps bounds the folders that following all links of a package may lead through.
	maxLinkSteps = 1 << 20
)

func badZip() error {
	return &Fault{Code: codeInvalidParameter, Message: "Could not unzip uploaded file. Please check your file, then try to upload again."}
}

func tooManyEntries() error {
	return faultf(codeInvalidParameter, "The zip has more than %d entries, or their names are too long.", maxZipEntries)
}

// checkZip looks at a package before it is stored: that it is a zip whose files can be read, that
// it is not too large unpacked, and that nothing in it would be written or would point outside its
// folder. The worker checks again as it unpacks; this is where the uploader is told.
func checkZip(data []byte) error {
	// Counted before they are read: the reader keeps a record of each.
	if bytes.Count(data, []byte("PK\x01\x02")) > 2*maxZipEntries {
		return tooManyEntries()
	}
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return badZip()
	}
	if len(r.File) > maxZipEntries {
		return tooManyEntries()
	}
	if len(r.File) == 0 {
		return &Fault{Code: codeInvalidParameter, Message: "Uploaded file must be a non-empty zip"}
	}
	var total, packed uint64
	var names int
	tree := zipTree{kinds: make(map[string]fs.FileMode, len(r.File)), links: map[string]string{}}
	for _, f := range r.File {
		total += f.UncompressedSize64
		if f.UncompressedSize64 > maxUnzipped || total > maxUnzipped {
			return faultf(codeInvalidParameter, "Unzipped size must be smaller than %d bytes", maxUnzipped)
		}
		// Entries that share their bytes can have them read a hundred thousand times, to unpack to nothing.
		if packed += f.CompressedSize64; packed > uint64(len(data)) || f.CompressedSize64 > uint64(len(data)) {
			return badZip()
		}
		if names += len(f.Name); names > maxZipNames {
			return tooManyEntries()
		}
		if f.Method != zip.Store && f.Method != zip.Deflate {
			return badZip()
		}
		if err := tree.add(f); err != nil {
			return err
		}
	}
	if err := tree.check(); err != nil {
		return err
	}
	for _, f := range r.File {
		if !readable(f) {
			return badZip()
		}
	}
	return nil
}

// readable unpacks a file to nowhere: its bytes are all there, are as many as the directory says,
// and have its checksum.
func readable(f *zip.File) bool {
	content, err := f.Open()
	if err != nil {
		return false
	}
	defer content.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(content, maxUnzipped+1))
	return err == nil && uint64(n) == f.UncompressedSize64
}

// zipTree is what a package would look like unpacked.
type zipTree struct {
	// kinds are the entries by clean name: a file, a folder or a link.
	kinds map[string]fs.FileMode
	// links are the targets of the links, by clean name.
	links map[string]string
	// steps is how far following links has led so far.
	steps int
}

// add takes one entry.
func (t *zipTree) add(f *zip.File) error {
	name := f.Name
	if !validZipName(name) {
		return faultf(codeInvalidParameter, "The zip has an entry whose name would leave its folder or can not be a file's: %q.", cut(name))
	}
	kind := f.Mode().Type()
	if strings.HasSuffix(name, "/") {
		kind = fs.ModeDir
	}
	clean := path.Clean(name)
	switch kind {
	case 0, fs.ModeDir, fs.ModeSymlink:
	default:
		return faultf(codeInvalidParameter, "The zip has an entry that is neither a file, a folder nor a link: %q.", cut(name))
	}
	if clean == "." {
		if kind != fs.ModeDir {
			return faultf(codeInvalidParameter, "The zip has an entry without a name: %q.", cut(name))
		}
		return nil
	}
	if before, twice := t.kinds[clean]; twice && (before != fs.ModeDir || kind != fs.ModeDir) {
		return faultf(codeInvalidParameter, "The zip has two entries of the same name: %q.", cut(name))
	}
	t.kinds[clean] = kind
	if kind != fs.ModeSymlink {
		return nil
	}
	if f.UncompressedSize64 == 0 || f.UncompressedSize64 > maxLinkTarget {
		return faultf(codeInvalidParameter, "The zip has a link without a proper target: %q.", cut(name))
	}
	content, err := f.Open()
	if err != nil {
		return badZip()
	}
	defer content.Close()
	target, err := io.ReadAll(io.LimitReader(content, maxLinkTarget+1))
	if err != nil {
		return badZip()
	}
	if len(target) > maxLinkTarget || bytes.IndexByte(target, 0) >= 0 {
		return faultf(codeInvalidParameter, "The zip has a link without a proper target: %q.", cut(name))
	}
	t.links[clean] = string(target)
	return nil
}

// validZipName reports whether a name stays inside the folder it is unpacked to.
func validZipName(name string) bool {
	if name == "" || len(name) > maxZipName || name[0] == '/' || strings.ContainsAny(name, "\x00\\") {
		return false
	}
	depth := 0
	for part := range strings.SplitSeq(strings.TrimSuffix(name, "/"), "/") {
		if depth++; part == ".." || len(part) > maxZipPart {
			return false
		}
	}
	return depth <= maxZipDepth
}

// check looks at the whole: no entry stands inside a file or a link, and no link leads outside.
func (t *zipTree) check() error {
	for name := range t.kinds {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			kind, listed := t.kinds[dir]
			if listed && kind != fs.ModeDir {
				return faultf(codeInvalidParameter, "The zip has an entry below one that is not a folder: %q.", cut(name))
			}
		}
	}
	for name, target := range t.links {
		if !t.staysInside(name, target) {
			return faultf(codeInvalidParameter, "The zip has a link that points outside of it: %q.", cut(name))
		}
	}
	return nil
}

// staysInside follows a link as the kernel would, through other links. Where it leads to nothing in
// the package it is merely broken, which is no harm.
func (t *zipTree) staysInside(name, target string) bool {
	at := strings.Split(path.Dir(name), "/")
	if at[0] == "." {
		at = at[:0]
	}
	rest := strings.Split(target, "/")
	if strings.HasPrefix(target, "/") {
		return false
	}
	for hops := 0; len(rest) > 0; {
		if t.steps++; t.steps > maxLinkSteps || len(at) > maxZipDepth {
			return false
		}
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at) == 0 {
				return false
			}
			at = at[:len(at)-1]
			continue
		}
		at = append(at[:len(at):len(at)], part)
		next, isLink := t.links[strings.Join(at, "/")]
		if !isLink {
			continue
		}
		if hops++; hops > maxLinkHops || strings.HasPrefix(next, "/") {
			return false
		}
		at = at[:len(at)-1]
		rest = append(strings.Split(next, "/"), rest...)
		if len(rest) > maxLinkTarget {
			return false
		}
	}
	return true
}
