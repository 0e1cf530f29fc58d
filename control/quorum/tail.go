package quorum

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// metaStore is the WAL's table of files. Loading it also mends the last file.
//
// The WAL (v0.4.0) takes a file in which it finds an index for one that is full, and will neither
// write to it nor go on to the next. Such a file is left behind when the process is killed, or the
// disk is full, between the write that fills a file and the entry of its successor in the table:
// every later start would have a log that takes no entries.
type metaStore struct{ metadb.BoltMetaDB }

// Load implements types.MetaStore.
func (m *metaStore) Load(dir string) (types.PersistentState, error) {
	state, err := m.BoltMetaDB.Load(dir)
	if err != nil || len(state.Segments) == 0 {
		return state, err
	}
	last := &state.Segments[len(state.Segments)-1]
	if !last.SealTime.IsZero() {
		return state, nil
	}
	path := filepath.Join(dir, segment.FileName(*last))
	end, err := scanSegment(path, last.BaseIndex)
	if errors.Is(err, fs.ErrNotExist) {
		return state, nil // the WAL makes it
	}
	if err != nil {
		return state, fmt.Errorf("quorum: read the end of the log: %w", err)
	}
	if end.torn {
		if err := cutSegment(path, end.offset, int64(last.SizeLimit)); err != nil {
			return state, fmt.Errorf("quorum: cut the end of the log: %w", err)
		}
	}
	if end.index == 0 {
		return state, nil
	}
	// It is full and whole: do what the WAL would have done next.
	now := time.Now()
	last.SealTime, last.MaxIndex, last.IndexStart = now, end.last, uint64(end.index)
	state.Segments = append(state.Segments, types.SegmentInfo{
		ID: state.NextSegmentID, BaseIndex: end.last + 1, MinIndex: end.last + 1,
		Codec: last.Codec, CreateTime: now, SizeLimit: segmentBytes,
	})
	state.NextSegmentID++
	if err := m.CommitState(state); err != nil {
		return state, fmt.Errorf("quorum: enter the next file of the log: %w", err)
	}
	return state, nil
}

// Of the WAL's file format, version 0: a header, then frames, each with a head and padded to the
// size of one. A commit frame has the CRC-32C of everything since the last one.
const (
	segmentHeader = 32
	frameHead     = 8
	frameEntry    = 1
	frameIndex    = 2
	frameCommit   = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segmentEnd is where the last file of the log ends.
type segmentEnd struct {
	// offset is behind the last commit whose bytes are all there.
	offset int64
	// last is the log index of the last committed entry, the file's base less one if there is none.
	last uint64
	// index is where the list of entries begins, if it is committed: the file is full.
	index int64
	// torn says that something stands behind the last commit.
	torn bool
}

// scanSegment reads a file of the log up to its end. Like the WAL it takes what is before the last
// commit for granted, since that has been acknowledged; only the last commit is verified.
func scanSegment(path string, base uint64) (segmentEnd, error) {
	f, err := os.Open(path)
	if err != nil {
		return segmentEnd{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return segmentEnd{}, err
	}
	size := info.Size()

	good := segmentEnd{last: base - 1} // up to the last commit but one
	at := good                         // up to the last commit
	var begin int64                    // of the last commit's bytes
	var sum uint32
	var entries, committed uint64
	var index int64
	var head [frameHead]byte
	offset := int64(segmentHeader)
scan:
	for offset+frameHead <= size {
		if _, err := f.ReadAt(head[:], offset); err != nil {
			return segmentEnd{}, err
		}
		length := int64(binary.LittleEndian.Uint32(head[4:]))
		switch head[0] {
		case frameEntry:
			entries++
		case frameIndex:
			index = offset + frameHead
		case frameCommit:
			good, begin, sum, committed = at, at.offset, uint32(length), entries
			at = segmentEnd{offset: offset + frameHead, last: base + entries - 1, index: index}
			length = 0
		default:
			break scan
		}
		offset += frameHead + (length+frameHead-1)/frameHead*frameHead
	}
	// Entries behind it were written after it had been acknowledged.
	if at.offset > 0 && entries == committed {
		crc := crc32.New(castagnoli)
		if _, err := io.Copy(crc, io.NewSectionReader(f, begin, at.offset-frameHead-begin)); err != nil {
			return segmentEnd{}, err
		}
		if crc.Sum32() != sum {
			at = good
		}
	}
	at.torn, err = written(f, at.offset, size)
	return at, err
}

// written tells whether any byte from offset on is not zero.
func written(f *os.File, offset, size int64) (bool, error) {
	block, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for offset < size {
		n, err := f.ReadAt(block[:min(int64(len(block)), size-offset)], offset)
		if !bytes.Equal(block[:n], zeros[:n]) {
			return true, nil
		}
		offset += int64(n)
		if err != nil && !errors.Is(err, io.EOF) || n == 0 {
			return false, err
		}
	}
	return false, nil
}

// cutSegment removes what stands behind the last commit, and gives the file its size again.
func cutSegment(path string, offset, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(offset), f.Truncate(max(offset, size)), f.Sync(), f.Close())
}
