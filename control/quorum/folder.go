package quorum

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Of the data folder: the file that says what it is, and the log. Snapshots are in "snapshots",
// a name that raft gives.
const (
	markFile      = "raft.json"
	walFolder     = "wal"
	folderFormat  = "doze-raft"
	folderVersion = 1
	maxMark       = 4096 // bytes
)

// mark is what stands in markFile. It is written once, before anything else is in the folder.
type mark struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	Node    string `json:"node"`
}

// prepareFolder makes the folder, or checks that it is one of this format and this node.
func prepareFolder(dir, node string) error {
	path := filepath.Join(dir, markFile)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	data, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, walFolder)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s has a log but no %s", ErrFormat, dir, markFile)
		}
		return writeMark(dir, mark{folderFormat, folderVersion, node})
	}
	if err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	var m mark
	if err := json.Unmarshal(data, &m); err != nil || m.Format != folderFormat {
		return fmt.Errorf("%w: %s is not a Doze Raft folder's", ErrFormat, path)
	}
	if m.Version != folderVersion {
		return fmt.Errorf("%w: %s was written in format %d, this Doze reads and writes format %d: run the Doze that wrote it, or use another folder",
			ErrFormat, dir, m.Version, folderVersion)
	}
	if m.Node != node {
		return fmt.Errorf("%w: %s belongs to node %q, this is node %q", ErrNodeID, dir, m.Node, node)
	}
	return nil
}

// HasState tells whether a node's folder has any of the replicated state: whether it has taken part in
// a cluster. No Node may have the folder open.
func HasState(dir string, log *slog.Logger) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, markFile)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	logger := newLogger(log)
	store, err := openStore(filepath.Join(dir, walFolder), logger.Named("wal"))
	if err != nil {
		return false, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, keepSnapshots, logger.Named("snapshot"))
	has := false
	if err == nil {
		has, err = raft.HasExistingState(store, store, snapshots)
	}
	if err = errors.Join(err, store.Close()); err != nil {
		return false, fmt.Errorf("quorum: look into %s: %w", dir, err)
	}
	return has, nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxMark {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrFormat, path, info.Size())
	}
	return os.ReadFile(path)
}

// writeMark writes the file so that after a crash it is there whole or not at all.
func writeMark(dir string, m mark) (err error) {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	f, err := os.CreateTemp(dir, markFile+".*")
	if err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("quorum: write %s: %w", markFile, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, markFile)); err != nil {
		return err
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
