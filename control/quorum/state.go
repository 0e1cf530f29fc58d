package quorum

import (
	"crypto/sha256"
	"io"

	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/registry"
)

// State is the whole replicated state at one index. It never changes.
type State struct {
	// Index is that of the last command in it.
	Index    uint64
	Registry *registry.Snapshot
	Ledger   *ledger.Snapshot
}

// State is this node's copy as it is now; see Read for when that is not enough. It costs little to
// take.
func (n *Node) State() State { return n.fsm.state() }

func (f *fsm) state() State {
	index, r, l := f.capture()
	return State{index, r, l}
}

// Write writes the canonical form, which is that of snapshots: equal states at one index give equal
// bytes.
func (s State) Write(w io.Writer) error { return writeState(w, s.Index, s.Registry, s.Ledger) }

// Hash is what Node.StateHash tells, whatever the index.
func (s State) Hash() [sha256.Size]byte { return hashOf(s.Registry, s.Ledger) }

// ReadState reads what Write wrote, to the end of the stream. Memory is spent as bytes come, whatever
// they announce.
func ReadState(r io.Reader) (State, error) {
	index, functions, usage, err := readState(r)
	return State{index, functions, usage}, err
}
