// Package bundle makes the zip of a function's folder: the same folder gives the same bytes, so
// that a second deploy of unchanged code is seen to be one.
//
// It knows files and zips. It must not know functions, runtimes or the API.
package bundle

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// AWS Lambda's limits on a package, in bytes: of a zip uploaded in the request, and of what it
// unpacks to (https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html).
const (
	MaxZipBytes      = 52428800
	MaxUnpackedBytes = 262144000
)

// Bundle is a zip and what is in it.
type Bundle struct {
	Zip []byte
	// Files counts files and links; Bytes is what they unpack to.
	Files int
	Bytes int64
}

// earliest is 1 January 1980 in a zip's own date format: the first day it can say.
const earliest = 1<<5 | 1

// Folder zips what is under root, without .git. Modes are reduced to what matters to a function:
// 0755 for folders and what anyone may execute, 0644 for the rest, because instances run as
// another user than the one who deployed. Links that stay inside are kept as links.
//
// It fails on links that lead outside or nowhere, on anything that is neither file, folder nor
// link, on an empty folder, and when a limit is passed; it holds at most MaxZipBytes or so.
func Folder(ctx context.Context, root string) (*Bundle, error) {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	p := &packer{root: root}
	p.zip = zip.NewWriter(&p.out)
	// WalkDir goes in lexical order: this is what makes the zip deterministic.
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		return p.add(path, e)
	})
	if err != nil {
		return nil, err
	}
	if p.files == 0 {
		return nil, fmt.Errorf("%s holds no files", root)
	}
	if err := p.zip.Close(); err != nil {
		return nil, err
	}
	if p.out.Len() > MaxZipBytes {
		return nil, tooBig(root)
	}
	return &Bundle{Zip: p.out.Bytes(), Files: p.files, Bytes: p.bytes}, nil
}

type packer struct {
	root  string
	out   bytes.Buffer
	zip   *zip.Writer
	files int
	bytes int64
}

func (p *packer) add(path string, e fs.DirEntry) error {
	rel, err := filepath.Rel(p.root, path)
	if err != nil {
		return err
	}
	if rel == "." {
		return nil
	}
	if e.Name() == ".git" {
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	header := &zip.FileHeader{Name: filepath.ToSlash(rel), Method: zip.Deflate, ModifiedDate: earliest}
	switch e.Type() {
	case fs.ModeDir:
		header.Name += "/"
		header.Method = zip.Store
		header.SetMode(fs.ModeDir | 0o755)
		_, err := p.zip.CreateHeader(header)
		return err
	case fs.ModeSymlink:
		return p.addLink(header, path, rel)
	case 0:
		return p.addFile(header, path)
	}
	return fmt.Errorf("%s is neither a file, a folder nor a link: a package cannot hold it", path)
}

func (p *packer) addFile(header *zip.FileHeader, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header.SetMode(0o644)
	if info.Mode()&0o111 != 0 {
		header.SetMode(0o755)
	}
	w, err := p.zip.CreateHeader(header)
	if err != nil {
		return err
	}
	left := MaxUnpackedBytes - p.bytes
	if info.Size() > left {
		return tooMuch(p.root)
	}
	// The file may grow while it is read: one byte over what is left shows it.
	n, err := io.Copy(w, io.LimitReader(f, left+1))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if n > left {
		return tooMuch(p.root)
	}
	return p.count(n)
}

func (p *packer) addLink(header *zip.FileHeader, path, rel string) error {
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("link %s leads nowhere: %w", path, err)
	}
	inside, err := filepath.Rel(p.root, real)
	if err != nil || filepath.IsAbs(target) || !filepath.IsLocal(inside) ||
		!filepath.IsLocal(filepath.Join(filepath.Dir(rel), target)) {
		return fmt.Errorf("link %s leads outside of the package (%s): put the file itself there", path, target)
	}
	header.SetMode(fs.ModeSymlink | 0o777)
	w, err := p.zip.CreateHeader(header)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, filepath.ToSlash(target)); err != nil {
		return err
	}
	return p.count(int64(len(target)))
}

func (p *packer) count(n int64) error {
	p.files++
	p.bytes += n
	if err := p.zip.Flush(); err != nil {
		return err
	}
	if p.out.Len() > MaxZipBytes {
		return tooBig(p.root)
	}
	return nil
}

// File takes a zip as it is and checks that it is one, and within the limit.
func File(path string) (*Bundle, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxZipBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxZipBytes {
		return nil, tooBig(path)
	}
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		if errors.Is(err, zip.ErrFormat) {
			return nil, fmt.Errorf("%s is neither a folder nor a zip", path)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	b := &Bundle{Zip: data}
	for _, entry := range r.File {
		if !strings.HasSuffix(entry.Name, "/") {
			b.Files++
			b.Bytes += int64(min(entry.UncompressedSize64, MaxUnpackedBytes+1))
		}
		if b.Bytes > MaxUnpackedBytes {
			return nil, tooMuch(path)
		}
	}
	return b, nil
}

// Mode is the mode of the file called name at the top of the zip; fs.ErrNotExist if there is none.
func (b *Bundle) Mode(name string) (fs.FileMode, error) {
	r, err := zip.NewReader(bytes.NewReader(b.Zip), int64(len(b.Zip)))
	if err != nil {
		return 0, err
	}
	for _, f := range r.File {
		if f.Name == name {
			return f.Mode(), nil
		}
	}
	return 0, fs.ErrNotExist
}

func tooBig(path string) error {
	return fmt.Errorf("%s is too big: its zip may have at most %d bytes", path, MaxZipBytes)
}

func tooMuch(path string) error {
	return fmt.Errorf("%s is too big: a package may unpack to at most %d bytes", path, MaxUnpackedBytes)
}
