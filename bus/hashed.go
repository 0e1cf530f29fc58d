package bus

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
)

// hashedReader reads an object that comes in chunks, and holds it against its hash: io.EOF says that it was
// whole and unharmed.
type hashedReader struct {
	chunk  func() ([]byte, error) // the next one; io.EOF after the last
	sha    string
	digest hash.Hash
	rest   []byte // of the chunk at hand
	err    error
}

func newHashedReader(sha string, chunk func() ([]byte, error)) *hashedReader {
	return &hashedReader{chunk: chunk, sha: sha, digest: sha256.New()}
}

func (r *hashedReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		r.rest, r.err = r.chunk()
		if r.err == io.EOF && hex.EncodeToString(r.digest.Sum(nil)) != r.sha {
			r.err = ErrObjectHash
		}
		r.digest.Write(r.rest)
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close ends reading.
func (r *hashedReader) Close() error {
	r.rest, r.err = nil, errors.New("bus: read of a closed object")
	return nil
}
