package quorum

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// segmentBytes is the size of a file of the log. The library's 64 MiB would make a small
// installation's folder look like a large one's, and the log is cut by whole files.
const segmentBytes = 16 << 20

// store is raft's log and its few durable words (term, vote), in one folder.
//
// A write that fails, most likely for lack of room, leaves the WAL (v0.4.0) unable to write ever
// again. The store opens it anew before the next write, so that a node whose disk was full goes on
// when there is room.
type store struct {
	dir    string
	logger hclog.Logger

	// meta is the WAL's table of files, and holds the few words. The WAL (v0.4.0) does not close it.
	meta *metaStore

	mu     sync.RWMutex // read: using wal; write: replacing it
	wal    *wal.WAL     // nil after it could not be opened again
	broken error        // why the last write failed; nil when it did not
	closed bool
}

func openStore(dir string, logger hclog.Logger) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("quorum: %w", err)
	}
	s := &store{dir: dir, logger: logger, meta: &metaStore{}}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.meta.Close())
	}
	return s, nil
}

func (s *store) open() error {
	log, err := wal.Open(s.dir, wal.WithLogger(s.logger), wal.WithSegmentSize(segmentBytes), wal.WithMetaStore(s.meta))
	if err != nil {
		return fmt.Errorf("quorum: open log in %s: %w", s.dir, err)
	}
	s.wal = log
	return nil
}

// Close closes both; raft must have been shut down.
func (s *store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	// A file lock that is left would make the next Open in this process wait for ever.
	return errors.Join(s.shut(), s.meta.Close())
}

func (s *store) shut() error {
	if s.wal == nil {
		return nil
	}
	err := s.wal.Close()
	s.wal = nil
	return err
}

// Err is why the log cannot be written, nil while it can.
func (s *store) Err() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.broken
}

// use runs f on the WAL.
func (s *store) use(f func(*wal.WAL) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.wal == nil {
		return errors.Join(s.broken, wal.ErrClosed)
	}
	return f(s.wal)
}

// StoreLogs implements raft.LogStore.
func (s *store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if s.Err() != nil {
		if err := s.reopen(logs[0].Index); err != nil {
			return err
		}
	}
	return s.write(func(w *wal.WAL) error { return w.StoreLogs(logs) })
}

// write runs a change of the WAL, and remembers when it failed.
func (s *store) write(f func(*wal.WAL) error) error {
	err := s.use(f)
	if err != nil {
		s.mu.Lock()
		s.broken = err
		s.mu.Unlock()
	}
	return err
}

// reopen opens the WAL anew after a failed write. What that write may have left from the given
// index on was not acknowledged, and raft is about to write there.
func (s *store) reopen(from uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return wal.ErrClosed
	}
	err := s.shut()
	if err == nil {
		err = s.open()
	}
	if err == nil {
		var last uint64
		if last, err = s.wal.LastIndex(); err == nil && last >= from {
			err = s.wal.DeleteRange(from, last)
		}
	}
	if err != nil {
		s.broken = err
		return err
	}
	s.logger.Info("opened again after a failed write", "failure", s.broken)
	s.broken = nil
	return nil
}

// StoreLog implements raft.LogStore.
func (s *store) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// FirstIndex implements raft.LogStore.
func (s *store) FirstIndex() (index uint64, err error) {
	err = s.use(func(w *wal.WAL) error { index, err = w.FirstIndex(); return err })
	return index, err
}

// LastIndex implements raft.LogStore.
func (s *store) LastIndex() (index uint64, err error) {
	err = s.use(func(w *wal.WAL) error { index, err = w.LastIndex(); return err })
	return index, err
}

// GetLog implements raft.LogStore.
func (s *store) GetLog(index uint64, log *raft.Log) error {
	return s.use(func(w *wal.WAL) error { return w.GetLog(index, log) })
}

// DeleteRange implements raft.LogStore.
func (s *store) DeleteRange(first, last uint64) error {
	return s.write(func(w *wal.WAL) error { return w.DeleteRange(first, last) })
}

// IsMonotonic implements raft.MonotonicLogStore: the WAL takes no log with gaps.
func (s *store) IsMonotonic() bool { return true }

// Set implements raft.StableStore. It needs the table only: raft gives up the process when it
// cannot note its term, and a full disk is no reason for that.
func (s *store) Set(key, value []byte) error { return s.meta.SetStable(key, value) }

// Get implements raft.StableStore.
func (s *store) Get(key []byte) ([]byte, error) { return s.meta.GetStable(key) }

// SetUint64 implements raft.StableStore.
func (s *store) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.LittleEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore: 0 for a key that was never set.
func (s *store) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil || len(value) == 0 {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("quorum: %q is no number", key)
	}
	return binary.LittleEndian.Uint64(value), nil
}
