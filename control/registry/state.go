package registry

import (
	"sort"
	"strings"
	"sync"

	"github.com/benbjohnson/immutable"
)

// Account limits.
const (
	// AccountConcurrency is an account's limit of concurrent executions (AWS's default).
	AccountConcurrency = 1000
	// MinUnreserved is what reservations must leave of it to the functions without one (AWS).
	MinUnreserved = 100
)

// State is the functions and access keys of all accounts. Queries may run at any time, at once with each other
// and with Apply; Apply calls wait for each other.
//
// It holds the functions twice, on purpose. The map answers the path of an invocation: one read
// lock, one lookup, no allocation. The tree is persistent (a change copies the few nodes on its
// way), so that its root is at once the sorted index for lists and a point-in-time copy that a
// snapshot can walk while Apply goes on.
type State struct {
	// applying is held for a whole Apply: it makes the reads that decide and the write one step.
	applying sync.Mutex

	// mu guards what follows. It is held for the swap of pointers only.
	mu       sync.RWMutex
	byName   map[key]*Function
	accounts *tree[*account]
	// keys are by id. They are few, so one tree is enough.
	keys *tree[*AccessKey]
}

type key struct{ account, name string }

type tree[V any] = immutable.SortedMap[string, V]

// account is what one account has. It never changes; a change replaces it.
type account struct {
	functions *tree[*Function]
	// codeSize is the bytes of all functions' code, each version counted.
	codeSize int64
	// reserved is the sum of reserved concurrency.
	reserved int
}

// bytewise orders names by their bytes, as AWS's lists are.
type bytewise struct{}

func (bytewise) Compare(a, b string) int { return strings.Compare(a, b) }

func newTree[V any]() *tree[V] { return immutable.NewSortedMap[string, V](bytewise{}) }

// New is the state before the first command.
func New() *State {
	return &State{byName: map[key]*Function{}, accounts: newTree[*account](), keys: newTree[*AccessKey]()}
}

// Function finds a function. What it answers never changes.
func (s *State) Function(account, name string) (*Function, bool) {
	s.mu.RLock()
	f, ok := s.byName[key{account, name}]
	s.mu.RUnlock()
	return f, ok
}

// Resolve finds the version that a qualifier names: "" and "$LATEST" are the unpublished one,
// digits a published one, and an alias stands for its (first) version. When the function exists and the qualifier does not resolve, the
// function is answered with ok false, so that the caller can tell the two.
func (s *State) Resolve(account, name, qualifier string) (f *Function, v *Version, ok bool) {
	f, ok = s.Function(account, name)
	if !ok {
		return nil, nil, false
	}
	v, ok = f.Resolve(qualifier)
	return f, v, ok
}

// Route is Resolve for a call: see Function.Route.
func (s *State) Route(account, name, qualifier string, draw float64) (f *Function, v *Version, ok bool) {
	f, ok = s.Function(account, name)
	if !ok {
		return nil, nil, false
	}
	v, ok = f.Route(qualifier, draw)
	return f, v, ok
}

// List is up to max functions of an account, by name, beginning after the given name ("" for the
// start). more says whether there are others behind.
func (s *State) List(account, after string, max int) (page []*Function, more bool) {
	a, ok := s.account(account)
	if !ok || max <= 0 {
		return nil, ok && max <= 0
	}
	page = make([]*Function, 0, min(max, a.functions.Len()))
	for it := seek(a.functions, after); !it.Done(); {
		name, f, _ := it.Next()
		if name == after {
			continue
		}
		if len(page) == max {
			return page, true
		}
		page = append(page, f)
	}
	return page, false
}

// Usage is what GetAccountSettings shows as AccountUsage.
type Usage struct {
	// TotalCodeSize is the bytes of the zips of all functions, every version counted.
	TotalCodeSize int64
	FunctionCount int
}

// Usage of one account; zero for one that has nothing.
func (s *State) Usage(account string) Usage {
	a, ok := s.account(account)
	if !ok {
		return Usage{}
	}
	return Usage{TotalCodeSize: a.codeSize, FunctionCount: a.functions.Len()}
}

// UnreservedConcurrency is what the account's reservations leave of AccountConcurrency.
func (s *State) UnreservedConcurrency(account string) int {
	a, ok := s.account(account)
	if !ok {
		return AccountConcurrency
	}
	return AccountConcurrency - a.reserved
}

// ReferencedCode is the set of code packages (lower-case hex SHA-256) that any version of any
// function names: what garbage collection must keep. It walks a point-in-time copy, at leisure.
func (s *State) ReferencedCode() map[string]struct{} {
	hashes := map[string]struct{}{}
	for f := range s.Snapshot().all {
		hashes[f.Latest.Code.SHA256] = struct{}{}
		for _, v := range f.Versions {
			hashes[v.Code.SHA256] = struct{}{}
		}
	}
	return hashes
}

// Resolve finds one of the function's versions; see State.Resolve.
func (f *Function) Resolve(qualifier string) (*Version, bool) {
	if qualifier == "" || qualifier == Latest {
		return f.Latest, true
	}
	if a, ok := f.Alias(qualifier); ok {
		return f.Resolve(a.Version)
	}
	if !IsVersionNumber(qualifier) {
		return nil, false
	}
	i, ok := f.find(qualifier)
	if !ok {
		return nil, false
	}
	return f.Versions[i], true
}

// find is the place of a published version.
func (f *Function) find(version string) (int, bool) {
	return sort.Find(len(f.Versions), func(i int) int {
		return compareNumbers(version, f.Versions[i].Version)
	})
}

// compareNumbers orders decimal numbers without leading zeros by value.
func compareNumbers(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

func (f *Function) codeSize() int64 {
	size := f.Latest.Code.Size
	for _, v := range f.Versions {
		size += v.Code.Size
	}
	return size
}

func (f *Function) reserved() int {
	if f.Reserved == nil {
		return 0
	}
	return *f.Reserved
}

func (s *State) account(id string) (*account, bool) {
	s.mu.RLock()
	accounts := s.accounts
	s.mu.RUnlock()
	return accounts.Get(id)
}

// seek is an iterator that stands at the first name that is not before the given one.
func seek[V any](t *tree[V], name string) *immutable.SortedMapIterator[string, V] {
	it := t.Iterator()
	if name == "" {
		it.First()
	} else {
		it.Seek(name)
	}
	return it
}

// replace publishes next in the place of old; either may be nil. The caller holds applying.
func (s *State) replace(old, next *Function) {
	f := next
	if f == nil {
		f = old
	}
	a := account{functions: newTree[*Function]()}
	if was, ok := s.account(f.Account); ok {
		a = *was
	}
	if old != nil {
		a.codeSize -= old.codeSize()
		a.reserved -= old.reserved()
	}
	if next != nil {
		a.codeSize += next.codeSize()
		a.reserved += next.reserved()
		a.functions = a.functions.Set(next.Name, next)
	} else {
		a.functions = a.functions.Delete(old.Name)
	}
	accounts := s.accounts
	if a.functions.Len() > 0 {
		accounts = accounts.Set(f.Account, &a)
	} else {
		accounts = accounts.Delete(f.Account)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts = accounts
	if next != nil {
		s.byName[key{next.Account, next.Name}] = next
	} else {
		delete(s.byName, key{old.Account, old.Name})
	}
}
