package registry

import (
	"maps"
	"slices"
	"strings"
)

// Packages are the code packages that versions name, each once, by hash.
func (s *Snapshot) Packages() []Code {
	found := map[string]Code{}
	add := func(v *Version) {
		if v != nil && v.Code.SHA256 != "" {
			found[v.Code.SHA256] = v.Code
		}
	}
	for f := range s.all {
		add(f.Latest)
		for _, v := range f.Versions {
			add(v)
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b Code) int { return strings.Compare(a.SHA256, b.SHA256) })
}

// AccessKeys goes through the access keys by id.
func (s *Snapshot) AccessKeys(yield func(*AccessKey) bool) { s.accessKeys(yield) }

// Keys is the number of access keys.
func (s *Snapshot) Keys() int { return s.keys.Len() }
