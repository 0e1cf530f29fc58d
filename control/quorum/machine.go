package quorum

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/doze-run/doze/control/internal/ndjson"
	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/registry"
)

// Machine is what the log is applied to. It knows no Raft, so that a log or a snapshot can be
// looked at offline too.
type Machine struct {
	Registry *registry.State
	Ledger   *ledger.Ledger
}

// NewMachine is the machine before the first entry.
func NewMachine() Machine { return Machine{Registry: registry.New(), Ledger: ledger.New()} }

// MaxEntry bounds one log entry, in bytes.
const MaxEntry = 1 + max(registry.MaxCommand, ledger.MaxEntry)

// The first byte of a log entry says whose it is. Never reused.
const (
	forRegistry = 1
	forLedger   = 2
)

// errEntry is an entry that cannot be applied at all, in contrast to one that was refused.
var errEntry = errors.New("quorum: log entry not understood")

// Apply applies one log entry. answer and refused are the command's own; err is set when the entry
// is not one that this Doze understands, and then nothing changed.
func (m Machine) Apply(entry []byte) (answer any, refused, err error) {
	if len(entry) == 0 {
		return nil, nil, fmt.Errorf("%w: empty", errEntry)
	}
	switch entry[0] {
	case forRegistry:
		cmd, err := registry.Decode(entry[1:])
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errEntry, err)
		}
		answer, refused = m.Registry.Apply(cmd)
		return answer, refused, nil
	case forLedger:
		batches, err := ledger.Decode(entry[1:])
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", errEntry, err)
		}
		return m.Ledger.Apply(batches), nil, nil
	}
	return nil, nil, fmt.Errorf("%w: machine %d", errEntry, entry[0])
}

// Of the snapshot: a header line, then the registry's lines, then the ledger's.
const (
	stateFormat  = "doze-state"
	stateVersion = 1
)

type stateHeader struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	// Index is the log index of the last command in the snapshot.
	Index uint64 `json:"index"`
}

func writeState(w io.Writer, index uint64, r *registry.Snapshot, l *ledger.Snapshot) error {
	out := ndjson.NewWriter(w)
	if err := out.Write(stateHeader{stateFormat, stateVersion, index}); err != nil {
		return fmt.Errorf("quorum: write snapshot: %w", err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("quorum: write snapshot: %w", err)
	}
	if err := r.Write(w); err != nil {
		return err
	}
	return l.Write(w)
}

// readState reads what writeState wrote, to the end of the stream.
func readState(from io.Reader) (index uint64, r *registry.Snapshot, l *ledger.Snapshot, err error) {
	buf := bufio.NewReaderSize(from, 256<<10)
	var h stateHeader
	if err := ndjson.NewReader(buf).Read(&h); err != nil {
		return 0, nil, nil, fmt.Errorf("quorum: read snapshot: %w", err)
	}
	if h.Format != stateFormat || h.Version != stateVersion {
		return 0, nil, nil, fmt.Errorf("%w: snapshot is %q version %d, this Doze reads %q version %d",
			ErrFormat, h.Format, h.Version, stateFormat, stateVersion)
	}
	if r, err = registry.ReadSnapshot(buf); err != nil {
		return 0, nil, nil, err
	}
	if l, err = ledger.ReadSnapshot(buf); err != nil {
		return 0, nil, nil, err
	}
	if _, err := buf.ReadByte(); !errors.Is(err, io.EOF) {
		return 0, nil, nil, errors.New("quorum: read snapshot: bytes after the end")
	}
	return h.Index, r, l, nil
}

func hashOf(r *registry.Snapshot, l *ledger.Snapshot) [sha256.Size]byte {
	a, b := r.Hash(), l.Hash()
	return sha256.Sum256(append(a[:], b[:]...))
}
