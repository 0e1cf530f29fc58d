package quorum

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// halfwayMeta is the table of a process that is killed when a file of the log is full: its
// successor never gets into the table.
type halfwayMeta struct{ metaStore }

func (m *halfwayMeta) CommitState(state types.PersistentState) error {
	if len(state.Segments) > 1 {
		return errors.New("killed")
	}
	return m.metaStore.CommitState(state)
}

// fullSegment makes a folder whose only file is full while the table has no other, and answers its
// name and the index of its last entry.
func fullSegment(t *testing.T) (dir, name string, last uint64) {
	t.Helper()
	dir = t.TempDir()
	meta := &halfwayMeta{}
	log, err := wal.Open(dir, wal.WithLogger(hclog.NewNullLogger()), wal.WithSegmentSize(segmentBytes), wal.WithMetaStore(meta))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		last++
		err = log.StoreLogs([]*raft.Log{entry(last)})
	}
	if !errors.Is(err, types.ErrSealed) {
		t.Fatal(err)
	}
	last--
	if err := errors.Join(log.Close(), meta.Close()); err != nil {
		t.Fatal(err)
	}
	return dir, segment.FileName(types.SegmentInfo{BaseIndex: 1}), last
}

func entry(index uint64) *raft.Log {
	data := bytes.Repeat([]byte{byte(index)}, 512<<10)
	return &raft.Log{Index: index, Term: 1, Data: data}
}

// Whatever the moment at which a process ended while it filled a file of the log, the next one has
// what was acknowledged and can go on.
func TestLogGoesOnAfterAFullFile(t *testing.T) {
	full, name, entries := fullSegment(t)
	for _, test := range []struct {
		name string
		// cut says where the file ends, given where its last frames begin: the last batch, the list of
		// entries, the commit of both.
		cut  func(batch, index, commit int64) int64
		lost uint64
	}{
		{"whole", func(_, _, commit int64) int64 { return commit + frameHead }, 0},
		{"without its commit", func(_, _, commit int64) int64 { return commit }, 1},
		{"in its list of entries", func(_, index, _ int64) int64 { return index + frameHead + 4 }, 1},
		{"in the last entry", func(batch, _, _ int64) int64 { return batch + frameHead + 1000 }, 1},
		{"before the last entry", func(batch, _, _ int64) int64 { return batch }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, last := t.TempDir(), entries
			if err := os.CopyFS(dir, os.DirFS(full)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, name)
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			at := test.cut(lastFrames(t, raw))
			clear(raw[at:])
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // what was mended stays so
				s, err := openStore(dir, hclog.NewNullLogger())
				if err != nil {
					t.Fatal(err)
				}
				if got, err := s.LastIndex(); err != nil || got != last-test.lost {
					t.Fatalf("last index %d, %v; %d were stored, of which %d were not acknowledged", got, err, last, test.lost)
				}
				for index := uint64(1); index <= last-test.lost; index++ {
					var got raft.Log
					if err := s.GetLog(index, &got); err != nil || !bytes.Equal(got.Data, entry(index).Data) {
						t.Fatalf("entry %d: %v, %d bytes", index, err, len(got.Data))
					}
				}
				last, test.lost = last-test.lost+1, 0
				if err := s.StoreLog(entry(last)); err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// lastFrames finds where the last entry, the index and the commit frame of a full file begin.
func lastFrames(t *testing.T, raw []byte) (batch, index, commit int64) {
	t.Helper()
	for at := int64(segmentHeader); at+frameHead <= int64(len(raw)); {
		length := int64(binary.LittleEndian.Uint32(raw[at+4:]))
		switch raw[at] {
		case frameEntry:
			batch = at
		case frameIndex:
			index = at
		case frameCommit:
			commit, length = at, 0
		default:
			at = int64(len(raw))
			continue
		}
		at += frameHead + (length+frameHead-1)/frameHead*frameHead
	}
	if index == 0 || commit < index {
		t.Fatal("the file is not full")
	}
	return batch, index, commit
}

// A failed write of the log costs the proposals of that moment; then the node goes on by itself.
func TestNodeGoesOnAfterFailedWrite(t *testing.T) {
	dir := t.TempDir()
	n := openOne(t, dir)
	ctx := deadline(t)
	for i := range 3 {
		if _, err := n.Propose(ctx, create(fmt.Sprintf("before-%d", i))); err != nil {
			t.Fatal(err)
		}
		if err := n.store.wal.Close(); err != nil { // every write fails from here on
			t.Fatal(err)
		}
		if _, err := n.Propose(ctx, create(fmt.Sprintf("lost-%d", i))); err == nil {
			t.Fatal("a proposal was acknowledged that was not written")
		}
		// It hears of its lost leadership a little later, and stands again.
		for _, err := n.Propose(ctx, create(fmt.Sprintf("after-%d", i))); err != nil; _, err = n.Propose(ctx, create(fmt.Sprintf("after-%d", i))) {
			if !errors.Is(err, ErrNotLeader) && n.LogErr() == nil {
				t.Fatalf("%v, and the node does not say why", err)
			}
			if err := n.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.LogErr(); err != nil {
			t.Errorf("it goes on, but says %v", err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = openOne(t, dir)
	for i := range 3 {
		for name, want := range map[string]bool{"before": true, "lost": false, "after": true} {
			if _, ok := n.Registry().Function("000000000000", fmt.Sprintf("%s-%d", name, i)); ok != want {
				t.Errorf("%s-%d is there: %v", name, i, ok)
			}
		}
	}
}
