// Package clusterkey is the key with which a cluster encrypts what must not stand in clear in its
// log, its snapshots and its backups: secrets of access keys, environment variables.
//
// All control nodes have the same key, in a file that is part of no backup that Doze makes. The
// package knows bytes and that file. It must not know what it encrypts, nor the replicated state.
package clusterkey

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	keyBytes = 32
	// word begins the file, so that a mistyped path is not taken for a key.
	word = "doze-cluster-key-1"
	// maxFile bounds what is read of the file, in bytes; ours has about 64.
	maxFile = 1 << 10

	// Of a sealed text: its format, which key, then nonce and ciphertext.
	format = 1
	idLen  = 8
)

var (
	// ErrFile: the file is not a cluster key, or others may read it.
	ErrFile = errors.New("cluster key file")
	// ErrOtherKey: the text was sealed with another cluster key.
	ErrOtherKey = errors.New("sealed with another cluster key")
	// ErrSealed: the text is damaged, or was sealed for another purpose.
	ErrSealed = errors.New("not a sealed text of this purpose")
)

// Key seals and opens. It is safe for concurrent use.
type Key struct {
	aead cipher.AEAD
	id   [idLen]byte
}

// New is the key of these 32 bytes.
func New(secret [keyBytes]byte) (*Key, error) {
	block, err := aes.NewCipher(secret[:])
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	// Nonces are random: safe for 2^32 texts, which is more than a cluster ever seals.
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	k := &Key{aead: aead}
	sum := sha256.Sum256(append([]byte("doze cluster key id\n"), secret[:]...))
	copy(k.id[:], sum[:])
	return k, nil
}

// Open reads the key from its file, which only its owner may be able to read. When there is none
// it makes one (mode 0600), synced before it is used.
//
// Errors: ErrFile, or what the system said.
func Open(path string) (*Key, error) {
	k, err := read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if err := create(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the cluster key: %w", err)
	}
	return read(path)
}

func read(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w %s: others may read it (mode %04o): chmod 600, and think about who has", ErrFile, path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(data)), word+" ")
	secret, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(secret) != keyBytes {
		return nil, fmt.Errorf("%w %s: it does not hold a cluster key (%q and 32 bytes in base64)", ErrFile, path, word)
	}
	return New([keyBytes]byte(secret))
}

// create makes the file whole or not at all: it gets its name when it is on the disk.
func create(path string) (err error) {
	var secret [keyBytes]byte
	_, _ = rand.Read(secret[:])
	f, err := os.CreateTemp(filepath.Dir(path), ".cluster-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = fmt.Fprintf(f, "%s %s\n", word, base64.StdEncoding.EncodeToString(secret[:]))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// Not a rename: another process that was quicker must not lose its key.
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// ID tells keys apart, in hex, and tells nothing else of them.
func (k *Key) ID() string { return hex.EncodeToString(k.id[:]) }

// Seal encrypts a text. purpose says what it is and whose ("access key AKIA..."); it is not in
// the result, and only the same one opens it: a sealed text cannot be put in another's place.
func (k *Key) Seal(plain []byte, purpose string) []byte {
	sealed := append(append(make([]byte, 0, 1+idLen+k.aead.Overhead()+len(plain)), format), k.id[:]...)
	return k.aead.Seal(sealed, nil, plain, []byte(purpose))
}

// Open decrypts. Errors: ErrOtherKey, ErrSealed.
func (k *Key) Open(sealed []byte, purpose string) ([]byte, error) {
	if len(sealed) < 1+idLen || sealed[0] != format {
		return nil, ErrSealed
	}
	if [idLen]byte(sealed[1:1+idLen]) != k.id {
		return nil, ErrOtherKey
	}
	plain, err := k.aead.Open(nil, nil, sealed[1+idLen:], []byte(purpose))
	if err != nil {
		return nil, ErrSealed
	}
	return plain, nil
}
