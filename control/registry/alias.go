package registry

import (
	"slices"
	"strings"
)

// Alias is a name for a version that callers use and its owner moves. It may split calls between two
// versions. An *Alias that a query returned never changes.
type Alias struct {
	Name string `json:"name"`
	// Version is what it names: "$LATEST" or a published version's number.
	Version     string `json:"version"`
	Description string `json:"description,omitempty"`
	RevisionID  string `json:"revisionId"`
	// Additional is a second version, which gets Weight (0.0 to 1.0) of the calls; "" for none. Then
	// neither of the two is $LATEST.
	Additional string  `json:"additional,omitempty"`
	Weight     float64 `json:"weight,omitempty"`
}

// CreateAlias makes an alias. Answers *Alias. ErrNotFound (the function), ErrVersionNotFound,
// ErrAliasExists, ErrAliasLatest, ErrAliasTwice.
type CreateAlias struct {
	Account, Name string
	Alias         Alias
}

// UpdateAlias changes what is given of an alias. Answers *Alias. Errors as CreateAlias, and
// ErrAliasNotFound, ErrRevision.
type UpdateAlias struct {
	Account, Name, Alias string
	Version, Description *string
	// Routing replaces Additional and Weight; nil leaves them.
	Routing      *Routing
	RevisionID   string
	IfRevisionID string
}

// Routing is the second version of an alias; Version is "" for none.
type Routing struct {
	Version string
	Weight  float64
}

// DeleteAlias removes an alias with its policy. Answers *Function. An alias that is not there is no
// error (recorded from AWS); ErrNotFound (the function).
type DeleteAlias struct {
	Account, Name, Alias string
}

// IsAlias reports whether s can name an alias: a qualifier that is no number.
func IsAlias(s string) bool { return s != Latest && IsQualifier(s) && !isDigits(s) }

// Alias finds one of the function's aliases.
func (f *Function) Alias(name string) (*Alias, bool) {
	i, ok := f.findAlias(name)
	if !ok {
		return nil, false
	}
	return f.Aliases[i], true
}

func (f *Function) findAlias(name string) (int, bool) {
	return slices.BinarySearchFunc(f.Aliases, name, func(a *Alias, name string) int { return strings.Compare(a.Name, name) })
}

// Route finds the version that a call to a qualifier runs. It is Resolve but for an alias with two
// versions: draw, from [0, 1), chooses between them.
func (f *Function) Route(qualifier string, draw float64) (*Version, bool) {
	if a, ok := f.Alias(qualifier); ok && a.Additional != "" && draw < a.Weight {
		return f.Resolve(a.Additional)
	}
	return f.Resolve(qualifier)
}

// apply answers *Alias.
func (c CreateAlias) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	a := c.Alias
	if !IsAlias(a.Name) || a.RevisionID == "" {
		return nil, ErrInvalid.with("alias")
	}
	i, exists := f.findAlias(a.Name)
	if exists {
		return nil, ErrAliasExists.with(a.Name)
	}
	if err := f.checkAlias(&a); err != nil {
		return nil, err
	}
	next := *f
	next.Aliases = slices.Insert(slices.Clone(f.Aliases), i, &a)
	s.replace(f, &next)
	return &a, nil
}

// apply answers *Alias.
func (c UpdateAlias) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	i, ok := f.findAlias(c.Alias)
	if !ok {
		return nil, ErrAliasNotFound.with(c.Alias)
	}
	a := *f.Aliases[i]
	if c.IfRevisionID != "" && c.IfRevisionID != a.RevisionID {
		return nil, ErrRevision
	}
	if c.RevisionID == "" {
		return nil, ErrInvalid.with("revision")
	}
	a.RevisionID = c.RevisionID
	if c.Version != nil {
		a.Version = *c.Version
	}
	if c.Description != nil {
		a.Description = *c.Description
	}
	if c.Routing != nil {
		a.Additional, a.Weight = c.Routing.Version, c.Routing.Weight
	}
	if err := f.checkAlias(&a); err != nil {
		return nil, err
	}
	next := f.withAlias(i, &a)
	s.replace(f, next)
	return &a, nil
}

// apply answers *Function.
func (c DeleteAlias) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	i, ok := f.findAlias(c.Alias)
	if !ok {
		return f, nil
	}
	next := *f
	next.Aliases = slices.Delete(slices.Clone(f.Aliases), i, i+1)
	next.forget(c.Alias)
	s.replace(f, &next)
	return &next, nil
}

// checkAlias refuses an alias that names what is not there.
func (f *Function) checkAlias(a *Alias) error {
	if a.Additional != "" {
		switch {
		case a.Version == Latest || a.Additional == Latest:
			return ErrAliasLatest
		case a.Version == a.Additional:
			return ErrAliasTwice.with(a.Version)
		case !(a.Weight >= 0 && a.Weight <= 1):
			return ErrInvalid.with("weight")
		}
	} else if a.Weight != 0 {
		return ErrInvalid.with("weight")
	}
	versions := []string{a.Version}
	if a.Additional != "" {
		versions = append(versions, a.Additional)
	}
	for _, version := range versions {
		if _, ok := f.find(version); !ok && version != Latest {
			return ErrVersionNotFound.with(version)
		}
	}
	return nil
}

// withAlias is a copy of f with another alias in the place of its i-th.
func (f *Function) withAlias(i int, a *Alias) *Function {
	next := *f
	next.Aliases = slices.Clone(f.Aliases)
	next.Aliases[i] = a
	return &next
}

// aliasesOf names the aliases that call a version.
func (f *Function) aliasesOf(version string) (names []string) {
	for _, a := range f.Aliases {
		if a.Version == version || a.Additional == version {
			names = append(names, a.Name)
		}
	}
	return names
}

// soundAliases reports whether the aliases are as Apply leaves them.
func (f *Function) soundAliases() bool {
	for i, a := range f.Aliases {
		if a == nil || !IsAlias(a.Name) || f.checkAlias(a) != nil || i > 0 && f.Aliases[i-1].Name >= a.Name {
			return false
		}
	}
	return true
}
