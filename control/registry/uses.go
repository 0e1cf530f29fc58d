package registry

// Use is a runtime, and a size of memory, in MB, and a network that some function has it with.
type Use struct {
	Runtime  string
	MemoryMB int
	Network  string // as in Config
}

// Uses are those of all functions' $LATEST and published versions, up to a bound and each once, in no
// order. It looks at every version.
func (s *Snapshot) Uses(bound int) map[Use]struct{} {
	uses := map[Use]struct{}{}
	add := func(v *Version) {
		if v != nil && len(uses) < bound {
			uses[Use{v.Config.Runtime, v.Config.MemorySize, v.Config.Network}] = struct{}{}
		}
	}
	for f := range s.all {
		add(f.Latest)
		for _, v := range f.Versions {
			add(v)
		}
	}
	return uses
}

// Same says whether nothing has changed between the two.
func (s *Snapshot) Same(other *Snapshot) bool { return other != nil && s.accounts == other.accounts }
