package registry

// Unsettled is the functions with a version that is Pending or InProgress: what whoever settles
// looks at when it begins. It walks a point-in-time copy.
func (s *State) Unsettled() []*Function {
	var found []*Function
	for f := range s.Snapshot().all {
		unsettled := !f.Latest.settled()
		for _, v := range f.Versions {
			unsettled = unsettled || !v.settled()
		}
		if unsettled {
			found = append(found, f)
		}
	}
	return found
}

// Unsettled says whether the version waits for a Settle.
func (v *Version) Unsettled() bool { return !v.settled() }
