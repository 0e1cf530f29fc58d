package registry

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/benbjohnson/immutable"

	"github.com/doze-run/doze/control/internal/ndjson"
)

// Of the snapshot: a header line, then a line for each function, by account and name, then a line
// for each access key, by id. Version 1 had no keys and is still read. A released format keeps a
// file in testdata for ever.
const (
	snapshotFormat  = "doze-registry"
	snapshotVersion = 2
)

// ErrSnapshot is a snapshot that cannot be read: damaged, or of another format.
var ErrSnapshot = errors.New("registry: unreadable snapshot")

type snapshotHeader struct {
	Format    string `json:"format"`
	Version   int    `json:"version"`
	Functions int    `json:"functions"`
	Keys      int    `json:"keys"`
}

// Snapshot is the state at one point in time. It never changes and costs nothing to take.
type Snapshot struct {
	accounts *tree[*account]
	keys     *tree[*AccessKey]
}

// Snapshot is the state as it is now.
func (s *State) Snapshot() *Snapshot {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &Snapshot{accounts: s.accounts, keys: s.keys}
}

// Restore replaces the whole state.
func (s *State) Restore(from *Snapshot) {
	byName := make(map[key]*Function, from.Len())
	for f := range from.all {
		byName[key{f.Account, f.Name}] = f
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byName, s.accounts, s.keys = byName, from.accounts, from.keys
}

// Len is the number of functions.
func (s *Snapshot) Len() int {
	n := 0
	for it := seek(s.accounts, ""); !it.Done(); {
		_, a, _ := it.Next()
		n += a.functions.Len()
	}
	return n
}

// all goes through the functions by account and name.
func (s *Snapshot) all(yield func(*Function) bool) {
	for accounts := seek(s.accounts, ""); !accounts.Done(); {
		_, a, _ := accounts.Next()
		for functions := seek(a.functions, ""); !functions.Done(); {
			if _, f, _ := functions.Next(); !yield(f) {
				return
			}
		}
	}
}

// accessKeys goes through the keys by id.
func (s *Snapshot) accessKeys(yield func(*AccessKey) bool) {
	for keys := seek(s.keys, ""); !keys.Done(); {
		if _, k, _ := keys.Next(); !yield(k) {
			return
		}
	}
}

// Write writes the canonical form: equal states give equal bytes.
func (s *Snapshot) Write(w io.Writer) error {
	out := ndjson.NewWriter(w)
	err := out.Write(snapshotHeader{snapshotFormat, snapshotVersion, s.Len(), s.keys.Len()})
	if err != nil {
		return fmt.Errorf("registry: write snapshot: %w", err)
	}
	for f := range s.all {
		if err := out.Write(f); err != nil {
			return fmt.Errorf("registry: write snapshot: %w", err)
		}
	}
	for k := range s.accessKeys {
		if err := out.Write(k); err != nil {
			return fmt.Errorf("registry: write snapshot: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("registry: write snapshot: %w", err)
	}
	return nil
}

// Hash is the SHA-256 of the canonical form: what replicas at the same index compare.
func (s *Snapshot) Hash() [sha256.Size]byte {
	h := sha256.New()
	// A hash never fails to be written to, and what the state holds always encodes.
	_ = s.Write(h)
	return [sha256.Size]byte(h.Sum(nil))
}

// ReadSnapshot reads what Write wrote, and no byte more when r is a *bufio.Reader. Everything is
// checked that queries rely on; the error is ErrSnapshot.
func ReadSnapshot(r io.Reader) (*Snapshot, error) {
	in := ndjson.NewReader(r)
	var h snapshotHeader
	if err := in.Read(&h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	if h.Format != snapshotFormat || h.Version < 1 || h.Version > snapshotVersion || h.Version == 1 && h.Keys != 0 || h.Keys > MaxKeys {
		return nil, fmt.Errorf("%w: %q version %d, this Doze reads %q up to version %d",
			ErrSnapshot, h.Format, h.Version, snapshotFormat, snapshotVersion)
	}
	accounts := immutable.NewSortedMapBuilder[string, *account](bytewise{})
	var (
		current   string
		functions *immutable.SortedMapBuilder[string, *Function]
		sum       account
		last      key
	)
	flush := func() {
		if functions != nil {
			a := sum
			a.functions = functions.Map()
			accounts.Set(current, &a)
		}
	}
	for i := range h.Functions {
		f := new(Function)
		if err := in.Read(f); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
		}
		this := key{f.Account, f.Name}
		if !f.whole() || i > 0 && !last.before(this) {
			return nil, fmt.Errorf("%w: function %d is damaged or out of order", ErrSnapshot, i+1)
		}
		f.share()
		if functions == nil || f.Account != current {
			flush()
			current, functions, sum = f.Account, immutable.NewSortedMapBuilder[string, *Function](bytewise{}), account{}
		}
		functions.Set(f.Name, f)
		sum.codeSize += f.codeSize()
		sum.reserved += f.reserved()
		last = this
	}
	flush()
	keys, err := readKeys(in, h.Keys)
	if err != nil {
		return nil, err
	}
	return &Snapshot{accounts: accounts.Map(), keys: keys}, nil
}

func readKeys(in *ndjson.Reader, n int) (*tree[*AccessKey], error) {
	keys := immutable.NewSortedMapBuilder[string, *AccessKey](bytewise{})
	last := ""
	for i := range n {
		k := new(AccessKey)
		if err := in.Read(k); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
		}
		if !k.whole() || k.ID <= last {
			return nil, fmt.Errorf("%w: access key %d is damaged or out of order", ErrSnapshot, i+1)
		}
		k.Account, k.Role = same(k.Account), same(k.Role)
		keys.Set(k.ID, k)
		last = k.ID
	}
	return keys.Map(), nil
}

func (k key) before(l key) bool {
	return k.account < l.account || k.account == l.account && k.name < l.name
}

// whole reports whether f is as Apply would have left it, as far as queries rely on it.
func (f *Function) whole() bool {
	if !isWord(f.Account) || !IsName(f.Name) || f.Latest == nil || f.Latest.Version != Latest || f.reserved() < 0 {
		return false
	}
	for i, v := range f.Versions {
		if v == nil || !IsVersionNumber(v.Version) || i > 0 && compareNumbers(f.Versions[i-1].Version, v.Version) >= 0 {
			return false
		}
	}
	for _, p := range f.Policies {
		if p == nil {
			return false
		}
	}
	for _, e := range f.EventInvokes {
		if e == nil {
			return false
		}
	}
	return f.soundAliases()
}
