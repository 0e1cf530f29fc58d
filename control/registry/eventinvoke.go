package registry

import (
	"maps"
	"slices"
	"strings"
)

// EventInvoke is how asynchronous invocations of one qualifier are tried and where their records go:
// AWS's EventInvokeConfig. An *EventInvoke that a query returned never changes.
type EventInvoke struct {
	// MaxRetries (0 to 2) and MaxAge (60 to 21,600 seconds); nil for the default.
	MaxRetries *int `json:"maxRetries,omitempty"`
	MaxAge     *int `json:"maxAge,omitempty"`
	// OnSuccess and OnFailure are ARNs, "" for none.
	OnSuccess    string `json:"onSuccess,omitempty"`
	OnFailure    string `json:"onFailure,omitempty"`
	LastModified int64  `json:"lastModified"` // unix milliseconds
}

// PutEventInvoke sets the EventInvoke of a qualifier ("$LATEST", a version or an alias), as a whole or,
// with Merge, only what is given. Answers *EventInvoke. ErrNotFound (the function or qualifier);
// ErrNoEventInvoke when there is nothing to merge with.
type PutEventInvoke struct {
	Account, Name, Qualifier string
	MaxRetries, MaxAge       *int
	OnSuccess, OnFailure     *string
	Merge                    bool
	At                       int64
}

// DeleteEventInvoke removes it. Answers *Function. ErrNotFound, ErrNoEventInvoke.
type DeleteEventInvoke struct {
	Account, Name, Qualifier string
}

// EventInvokeFor is what is set for a qualifier; "" is $LATEST.
func (f *Function) EventInvokeFor(qualifier string) (*EventInvoke, bool) {
	if qualifier == "" {
		qualifier = Latest
	}
	e, ok := f.EventInvokes[qualifier]
	return e, ok
}

// apply answers *EventInvoke.
func (c PutEventInvoke) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	if _, ok := f.Resolve(c.Qualifier); !ok || c.Qualifier == "" {
		return nil, ErrNotFound.with(c.Account + "/" + c.Name + ":" + c.Qualifier)
	}
	e := EventInvoke{}
	if c.Merge {
		was, ok := f.EventInvokeFor(c.Qualifier)
		if !ok {
			return nil, ErrNoEventInvoke.with(c.Qualifier)
		}
		e = *was
	}
	e.LastModified = c.At
	if c.MaxRetries != nil {
		e.MaxRetries = c.MaxRetries
	}
	if c.MaxAge != nil {
		e.MaxAge = c.MaxAge
	}
	if c.OnSuccess != nil {
		e.OnSuccess = *c.OnSuccess
	}
	if c.OnFailure != nil {
		e.OnFailure = *c.OnFailure
	}
	next := *f
	next.EventInvokes = maps.Clone(f.EventInvokes)
	if next.EventInvokes == nil {
		next.EventInvokes = map[string]*EventInvoke{}
	}
	next.EventInvokes[c.Qualifier] = &e
	s.replace(f, &next)
	return &e, nil
}

// apply answers *Function.
func (c DeleteEventInvoke) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	if _, ok := f.EventInvokes[c.Qualifier]; !ok {
		return nil, ErrNoEventInvoke.with(c.Qualifier)
	}
	next := *f
	next.EventInvokes = without(f.EventInvokes, c.Qualifier)
	s.replace(f, &next)
	return &next, nil
}

// QualifiersWithEventInvoke lists them, sorted.
func (f *Function) QualifiersWithEventInvoke() []string {
	return slices.SortedFunc(maps.Keys(f.EventInvokes), strings.Compare)
}
