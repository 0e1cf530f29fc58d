package nodetls

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const (
	// NodeFile is a node's certificate with its key, in the folder that the node is given. CertFile
	// and GossipFile are beside it.
	NodeFile = "node.pem"
	// GossipFile holds the key that encrypts what nodes tell one another of who is there: 32 bytes
	// in base64. All nodes of a cluster have the same.
	GossipFile = "gossip.key"

	gossipBytes = 32
)

// LoadDir reads the folder that Authority.WriteDir made. log is told when its files, changed, cannot
// be read again.
func LoadDir(dir string, log *slog.Logger) (*Node, error) {
	n, err := Load(filepath.Join(dir, NodeFile), filepath.Join(dir, CertFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the folder is to be one that `doze ca issue NAME --role ROLE` made, copied whole", err)
	}
	if err != nil {
		return nil, err
	}
	n.log = log
	return n, nil
}

// LoadGossipKey reads the key from a node's folder.
func LoadGossipKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, GossipFile)
	text, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != gossipBytes {
		return nil, fmt.Errorf("nodetls: %s does not hold %d bytes in base64", path, gossipBytes)
	}
	return key, nil
}

// WriteDir makes a node's folder: its certificate, and what all nodes of the cluster have. dir is the
// authority's folder. Only with replace does it take the place of files that are there.
func (i *Issued) WriteDir(to, dir string, replace bool) error {
	common := map[string]fs.FileMode{CertFile: 0o644, GossipFile: 0o600}
	texts := map[string][]byte{}
	for name := range common {
		var err error
		if texts[name], err = readBounded(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fmt.Errorf("nodetls: %w", err)
	}
	// What is the same for all goes in first: a folder with a certificate is whole.
	if _, err := os.Lstat(filepath.Join(to, NodeFile)); err == nil && !replace {
		return fmt.Errorf("nodetls: %s: %w", filepath.Join(to, NodeFile), fs.ErrExist)
	}
	for name, mode := range common {
		if err := write(filepath.Join(to, name), texts[name], mode, true); err != nil {
			return err
		}
	}
	return i.Write(filepath.Join(to, NodeFile), replace)
}

// newGossipKey is the text of a new GossipFile.
func newGossipKey() []byte {
	var key [gossipBytes]byte
	_, _ = rand.Read(key[:]) // never fails, as documented
	return append(base64.StdEncoding.AppendEncode(nil, key[:]), '\n')
}
