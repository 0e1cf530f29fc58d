package backup

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"reflect"
	"strings"

	"github.com/doze-run/doze/control/quorum"
)

// Into takes what Read reads, as it comes. nil members take nothing; an error of one ends Read with it.
type Into struct {
	// State is handed the state before any package.
	State func(Manifest, quorum.State) error
	// Package is handed a package, whose reader answers ErrDamaged at its end if its hash is wrong. It
	// need not read it.
	Package func(sha256 string, size int64, zip io.Reader) error
}

// Read reads a backup to its end and checks all of it. Only when it answers without an error was what
// Into got a whole backup. Errors: ErrDamaged, ErrVersion, those of r and of Into.
func Read(r io.Reader, into Into) (Manifest, Proof, error) {
	in := &reader{from: &source{r: r}}
	in.tar = tar.NewReader(in.from)
	manifest, proof, err := in.all(into)
	if err != nil && in.from.err != nil && !errors.Is(err, in.from.err) {
		err = in.from.err // what the archive made of it is of no interest
	}
	if err != nil {
		return Manifest{}, Proof{}, err
	}
	return manifest, proof, nil
}

type reader struct {
	from *source
	tar  *tar.Reader
}

// source remembers why its bytes ended, if that was not their end.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

func (in *reader) all(into Into) (manifest Manifest, proof Proof, err error) {
	if err := in.json(manifestName, maxManifest, &manifest, false); err != nil {
		return manifest, proof, err
	}
	if manifest.Format != Format || manifest.Version < 1 {
		return manifest, proof, damaged("its manifest is not one of a backup")
	}
	if manifest.Version > Version {
		return manifest, proof, fmt.Errorf("%w: it has version %d, this Doze reads up to %d: use the Doze that made it (%.64q) or a newer one",
			ErrVersion, manifest.Version, Version, manifest.By)
	}
	state, err := in.state()
	if err != nil {
		return manifest, proof, err
	}
	if state.Index != manifest.Index {
		return manifest, proof, damaged("the state is of index %d, the manifest of %d", state.Index, manifest.Index)
	}
	if into.State != nil {
		if err := into.State(manifest, state); err != nil {
			return manifest, proof, err
		}
	}
	want := proofOf(state)
	header, err := in.packages(state, &want, into)
	if err != nil {
		return manifest, proof, err
	}
	if err := in.decode(header, proofName, maxProof, &proof, true); err != nil {
		return manifest, proof, err
	}
	if !reflect.DeepEqual(proof, want) {
		return manifest, proof, damaged("its proof is not that of what it holds")
	}
	if _, err := in.tar.Next(); !errors.Is(err, io.EOF) {
		return manifest, proof, damaged("something follows the proof")
	}
	var more [1]byte
	if n, err := in.from.Read(more[:]); n > 0 || !errors.Is(err, io.EOF) {
		return manifest, proof, damaged("something follows the archive")
	}
	return manifest, proof, nil
}

// next is the next part's header: an ordinary file, and nothing that a reader of archives would have to
// know more about.
func (in *reader) next() (*tar.Header, error) {
	h, err := in.tar.Next()
	if err != nil {
		return nil, damaged("it ends too early, or is no archive (%v)", err)
	}
	if h.Typeflag != tar.TypeReg || len(h.PAXRecords) > 0 || h.Size < 0 {
		return nil, damaged("%.64q is no ordinary part", h.Name)
	}
	return h, nil
}

// json reads the next part, which must have the name.
func (in *reader) json(name string, limit int64, v any, strict bool) error {
	h, err := in.next()
	if err != nil {
		return err
	}
	return in.decode(h, name, limit, v, strict)
}

// decode reads the part whose header was read. What is not strict may have members of newer versions.
func (in *reader) decode(h *tar.Header, name string, limit int64, v any, strict bool) error {
	if h.Name != name {
		return damaged("it has %.100q where %s should be", h.Name, name)
	}
	if h.Size > limit {
		return damaged("%s has %d bytes", name, h.Size)
	}
	decoder := json.NewDecoder(io.LimitReader(in.tar, limit))
	if strict {
		decoder.DisallowUnknownFields()
	}
	if err := decoder.Decode(v); err != nil {
		return damaged("%s: %v", name, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return damaged("%s has more than one value", name)
	}
	return nil
}

func (in *reader) state() (quorum.State, error) {
	h, err := in.next()
	if err != nil {
		return quorum.State{}, err
	}
	if h.Name != stateName || h.Size > MaxState {
		return quorum.State{}, damaged("it has %.100q of %d bytes where %s should be", h.Name, h.Size, stateName)
	}
	// The hash in the proof covers it, as it is compared with what was read.
	state, err := quorum.ReadState(in.tar)
	if err != nil {
		return state, damaged("%v", err)
	}
	return state, nil
}

// packages reads the packages that the state names, counts them in want, and returns the header of what
// follows them.
func (in *reader) packages(state quorum.State, want *Proof, into Into) (*tar.Header, error) {
	named := state.Registry.Packages()
	for {
		h, err := in.next()
		if err != nil {
			return nil, err
		}
		sha, isCode := strings.CutPrefix(h.Name, codePrefix)
		if !isCode {
			for _, code := range named {
				want.Missing = append(want.Missing, code.SHA256)
			}
			return h, nil
		}
		sha = strings.TrimSuffix(sha, codeSuffix)
		if codeName(sha) != h.Name || !isHash(sha) || h.Size > MaxPackage {
			return nil, damaged("%.100q of %d bytes is no code package", h.Name, h.Size)
		}
		// They come in the order of their hashes; those that are passed over are missing.
		for len(named) > 0 && named[0].SHA256 < sha {
			want.Missing = append(want.Missing, named[0].SHA256)
			named = named[1:]
		}
		if len(named) == 0 || named[0].SHA256 != sha {
			return nil, damaged("code package %s is out of order, or nothing names it", sha)
		}
		named = named[1:]
		zip := &hashed{r: in.tar, sum: sha256.New(), sha: sha}
		if into.Package != nil {
			if err := into.Package(sha, h.Size, zip); err != nil {
				return nil, err
			}
		}
		if _, err := io.Copy(io.Discard, zip); err != nil {
			return nil, err
		}
		want.Packages++
		want.PackageBytes += h.Size
	}
}

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && hex.EncodeToString(b) == s
}

// hashed is a package's bytes; their end is an error if their hash is wrong.
type hashed struct {
	r   io.Reader
	sum hash.Hash
	sha string
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.sum.Write(p[:n]) // a hash never fails
	switch {
	case errors.Is(err, io.EOF) && hex.EncodeToString(h.sum.Sum(nil)) != h.sha:
		return n, damaged("code package %s does not have its hash", h.sha)
	case err != nil && !errors.Is(err, io.EOF):
		return n, damaged("code package %s: %v", h.sha, err)
	}
	return n, err
}
