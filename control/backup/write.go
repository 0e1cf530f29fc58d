package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/doze-run/doze/control/quorum"
)

// Packages is where code packages come from. Get's error is fs.ErrNotExist when there is none of the
// hash; the caller closes the reader.
type Packages interface {
	Get(ctx context.Context, sha256 string) (zip io.ReadCloser, size int64, err error)
}

// Write writes a backup of the state and of the packages that it names. by and cluster are for the
// manifest, now is the time in it. When it fails, what was written is not whole, and Read says so.
func Write(ctx context.Context, w io.Writer, by, cluster string, now time.Time, state quorum.State, packages Packages) (Proof, error) {
	now = now.UTC().Truncate(time.Second)
	out := &writer{tar: tar.NewWriter(w), at: now}
	proof := proofOf(state)
	err := out.json(manifestName, Manifest{Format, Version, now.Format(time.RFC3339), by, cluster, state.Index})
	if err == nil {
		err = out.state(state)
	}
	if err != nil {
		return Proof{}, err
	}
	for _, code := range state.Registry.Packages() {
		size, err := out.code(ctx, packages, code.SHA256)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			proof.Missing = append(proof.Missing, code.SHA256)
		case err != nil:
			return Proof{}, err
		default:
			proof.Packages++
			proof.PackageBytes += size
		}
	}
	if err := out.json(proofName, proof); err != nil {
		return Proof{}, err
	}
	if err := out.tar.Close(); err != nil {
		return Proof{}, fmt.Errorf("backup: %w", err)
	}
	return proof, nil
}

type writer struct {
	tar *tar.Writer
	at  time.Time
}

// part begins an entry. The same content gives the same bytes.
func (w *writer) part(name string, size int64) error {
	err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: w.at, Format: tar.FormatUSTAR})
	if err != nil {
		return fmt.Errorf("backup: write %s: %w", name, err)
	}
	return nil
}

func (w *writer) json(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := w.part(name, int64(len(data))+1); err != nil {
		return err
	}
	if _, err := w.tar.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("backup: write %s: %w", name, err)
	}
	return nil
}

// state writes the state twice, the first time for its size: it is larger than its memory should be.
func (w *writer) state(state quorum.State) error {
	size := counter(0)
	err := state.Write(&size)
	if err == nil && size > MaxState {
		err = fmt.Errorf("backup: the state has %d bytes, the most is %d", size, int64(MaxState))
	}
	if err == nil {
		err = w.part(stateName, int64(size))
	}
	if err == nil {
		err = state.Write(w.tar)
	}
	return err
}

func (w *writer) code(ctx context.Context, packages Packages, sha string) (int64, error) {
	zip, size, err := packages.Get(ctx, sha)
	if err != nil {
		return 0, fmt.Errorf("backup: code package %s: %w", sha, err)
	}
	defer zip.Close()
	if err := w.part(codeName(sha), size); err != nil {
		return 0, err
	}
	digest := sha256.New()
	n, err := io.Copy(io.MultiWriter(w.tar, digest), zip)
	switch {
	case err != nil:
		// Not in the sense of fs.ErrNotExist: its header is written.
		return 0, fmt.Errorf("backup: code package %s: %v", sha, err)
	case n != size || hex.EncodeToString(digest.Sum(nil)) != sha:
		return 0, fmt.Errorf("backup: code package %s does not have its hash", sha)
	}
	return size, nil
}

// counter counts what is written.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
