package registry

import "maps"

// Bounds of what hangs on a function.
const (
	// MaxTags is how many tags a function may have (AWS).
	MaxTags = 50
	// MaxPolicyBytes bounds the statements of one policy together (AWS: 20 KB).
	MaxPolicyBytes = 20 << 10
)

// apply answers *Function. A reservation changes no incarnation: instances keep running.
func (c PutConcurrency) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	next := f.revised(c.RevisionID)
	next.Reserved = c.Reserved
	if c.Reserved != nil {
		if *c.Reserved < 0 {
			return nil, ErrInvalid.with("reserved")
		}
		unreserved := s.UnreservedConcurrency(c.Account) + f.reserved()
		if *c.Reserved > unreserved-MinUnreserved {
			return nil, ErrUnreserved
		}
	}
	s.replace(f, next)
	return next, nil
}

// apply answers *Policy.
func (c AddPermission) apply(s *State) (any, error) {
	f, p, err := s.policy(c.Account, c.Name, c.Qualifier, c.IfRevisionID)
	if err != nil {
		return nil, err
	}
	if c.Statement.ID == "" || c.RevisionID == "" {
		return nil, ErrInvalid.with("statement")
	}
	size := len(c.Statement.JSON)
	for _, st := range p.Statements {
		if st.ID == c.Statement.ID {
			return nil, ErrStatementExists.with(st.ID)
		}
		size += len(st.JSON)
	}
	if size > MaxPolicyBytes {
		return nil, ErrPolicyTooLong
	}
	next := &Policy{RevisionID: c.RevisionID}
	next.Statements = append(append(next.Statements, p.Statements...), c.Statement)
	s.setPolicy(f, c.Qualifier, next)
	return next, nil
}

// apply answers the *Policy that is left; with the last statement the policy itself goes.
func (c RemovePermission) apply(s *State) (any, error) {
	f, p, err := s.policy(c.Account, c.Name, c.Qualifier, c.IfRevisionID)
	if err != nil {
		return nil, err
	}
	next := &Policy{RevisionID: c.RevisionID}
	for _, st := range p.Statements {
		if st.ID != c.StatementID {
			next.Statements = append(next.Statements, st)
		}
	}
	if len(next.Statements) == len(p.Statements) {
		return nil, ErrStatementNotFound.with(c.StatementID)
	}
	s.setPolicy(f, c.Qualifier, next)
	return next, nil
}

// policy is the policy of a qualifier to build a new one from, empty when there is none. A caller
// may guard its change with the policy's revision or with that of the function, version or alias, which
// moves with every change of the policy too.
func (s *State) policy(account, name, qualifier, ifRevision string) (*Function, *Policy, error) {
	if qualifier == Latest {
		return nil, nil, ErrLatest
	}
	f, err := s.get(account, name)
	if err != nil {
		return nil, nil, err
	}
	v, ok := f.Resolve(qualifier)
	if !ok {
		return nil, nil, ErrNotFound.with(account + "/" + name + ":" + qualifier)
	}
	revision := v.RevisionID
	if a, ok := f.Alias(qualifier); ok {
		revision = a.RevisionID
	}
	p, ok := f.Policies[qualifier]
	if !ok {
		p = &Policy{}
	}
	if ifRevision != "" && ifRevision != revision && ifRevision != p.RevisionID {
		return nil, nil, ErrRevision
	}
	return f, p, nil
}

func (s *State) setPolicy(f *Function, qualifier string, p *Policy) {
	var next *Function
	if qualifier == "" {
		next = f.revised(p.RevisionID)
	} else if i, ok := f.findAlias(qualifier); ok {
		a := *f.Aliases[i]
		a.RevisionID = p.RevisionID
		next = f.withAlias(i, &a)
	} else {
		next = f.revisedVersion(qualifier, p.RevisionID)
	}
	if len(p.Statements) == 0 {
		next.Policies = without(f.Policies, qualifier)
	} else {
		next.Policies = maps.Clone(f.Policies)
		if next.Policies == nil {
			next.Policies = map[string]*Policy{}
		}
		next.Policies[qualifier] = p
	}
	s.replace(f, next)
}

// apply answers *Function.
func (c Tag) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	tags := maps.Clone(f.Tags)
	if tags == nil {
		tags = make(map[string]string, len(c.Tags))
	}
	maps.Copy(tags, c.Tags)
	if len(tags) > MaxTags {
		return nil, ErrTooManyTags
	}
	next := f.revised(c.RevisionID)
	next.Tags = tags
	s.replace(f, next)
	return next, nil
}

// apply answers *Function. Keys that are not there are no error (AWS).
func (c Untag) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	next := f.revised(c.RevisionID)
	next.Tags = maps.Clone(f.Tags)
	for _, k := range c.Keys {
		delete(next.Tags, k)
	}
	s.replace(f, next)
	return next, nil
}

// revised is a copy of f with a new $LATEST of another revision, and the same incarnation.
func (f *Function) revised(revision string) *Function {
	next := *f
	v := *f.Latest
	if revision != "" {
		v.RevisionID = revision
	}
	next.Latest = &v
	return &next
}

// revisedVersion is revised for a published version, which must exist.
func (f *Function) revisedVersion(number, revision string) *Function {
	next := *f
	i, _ := f.find(number)
	v := *f.Versions[i]
	v.RevisionID = revision
	next.Versions = append([]*Version(nil), f.Versions...)
	next.Versions[i] = &v
	return &next
}

// without is a copy of what hangs on qualifiers less one, nil when none is left.
func without[V any](all map[string]*V, qualifier string) map[string]*V {
	if _, ok := all[qualifier]; !ok {
		return all
	}
	if len(all) == 1 {
		return nil
	}
	rest := maps.Clone(all)
	delete(rest, qualifier)
	return rest
}

// forget drops what hangs on a qualifier that is being deleted. f must be the caller's own copy.
func (f *Function) forget(qualifier string) {
	f.Policies = without(f.Policies, qualifier)
	f.EventInvokes = without(f.EventInvokes, qualifier)
}
