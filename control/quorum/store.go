package quorum

import (
	"errors"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
)

// segmentBytes is the size of a file of the log. The library's 64 MiB would make a small
// installation's folder look like a large one's, and the log is cut by whole files.
const segmentBytes = 16 << 20

// store is raft's log and its few durable words (term, vote), in one folder.
type store struct {
	*wal.WAL
	// meta is the WAL's table of files. The WAL (v0.4.0) does not close it, and its file lock would
	// make the next Open in this process wait for ever.
	meta *metadb.BoltMetaDB
}

func openStore(dir string, logger hclog.Logger) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("quorum: %w", err)
	}
	meta := &metadb.BoltMetaDB{}
	log, err := wal.Open(dir, wal.WithLogger(logger), wal.WithSegmentSize(segmentBytes), wal.WithMetaStore(meta))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("quorum: open log in %s: %w", dir, err), meta.Close())
	}
	return &store{WAL: log, meta: meta}, nil
}

// Close closes both; raft must have been shut down.
func (s *store) Close() error { return errors.Join(s.WAL.Close(), s.meta.Close()) }
