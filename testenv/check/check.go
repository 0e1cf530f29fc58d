// Package check says whether a history keeps the promises of Doze. It is pure: the same history has the same verdict.
//
// It knows histories and promises. It must not know how a history came about, nor which faults were meant to do what:
// a promise holds whatever dies.
package check

import (
	"fmt"
	"slices"
	"time"

	"github.com/doze-run/doze/testenv/history"
)

// Violation is one broken promise.
type Violation struct {
	// Promise is the checker's name.
	Promise string
	// At is when in the history it shows, and What says how.
	At   time.Duration
	What string
}

func (v Violation) String() string {
	return fmt.Sprintf("%s, at %v: %s", v.Promise, v.At.Round(time.Millisecond), v.What)
}

// Checker looks at one promise.
type Checker struct {
	// Name is short, Promise a sentence.
	Name, Promise string
	Check         func([]history.Event) []Violation
}

// Checkers are all of them. Caps are the reserved concurrencies that functions had for the whole of the run.
func Checkers(caps map[string]int) []Checker {
	list := []Checker{
		{"answers", "every sync call got exactly one answer within its timeout and 5 s", answers},
		{"callers", "no answer went to another's call", callers},
		{"once", "no handler got a sync call twice", once},
		{"events", "every accepted event ended, in a success or at its destination", events},
		{"ledger", "what is billed is what ran", ledger},
		{"replicas", "control nodes that applied the same have the same state and bill", replicas},
		{"caps", "no more ran at once than a function's reserved concurrency", func(h []history.Event) []Violation { return concurrency(h, caps) }},
		{"updates", "no call that began after an update was Successful ran older code", updates},
		{"operations", "operations on a function are linearizable", operations},
	}
	for i := range list {
		check := list[i].Check
		name := list[i].Name
		list[i].Check = func(h []history.Event) []Violation {
			all := check(h)
			for j := range all {
				all[j].Promise = name
			}
			return all
		}
	}
	return list
}

func violation(at int64, format string, args ...any) Violation {
	return Violation{At: time.Duration(at), What: fmt.Sprintf(format, args...)}
}

// call is what a history has of one call.
type call struct {
	id      string
	ask     history.Event
	answers []history.Event
	begins  []history.Event
	ends    []history.Event
	left    []history.Event
}

// accepted tells whether an event was taken.
func (c *call) accepted() bool {
	return c.ask.Async && slices.ContainsFunc(c.answers, func(a history.Event) bool { return a.Status == 202 })
}

// ran tells whether the caller was told what the handler said.
func (c *call) ran() bool {
	return !c.ask.Async && slices.ContainsFunc(c.answers, func(a history.Event) bool { return a.Status == 200 })
}

// calls are those of a history, in the order of their asks.
func calls(h []history.Event) []*call {
	var all []*call
	by := map[string]*call{}
	of := func(e history.Event) *call {
		c := by[e.Call]
		if c == nil {
			c = &call{id: e.Call}
			by[e.Call] = c
			all = append(all, c)
		}
		return c
	}
	for _, e := range h {
		switch e.Kind {
		case history.Ask:
			of(e).ask = e
		case history.Answer:
			c := of(e)
			c.answers = append(c.answers, e)
		case history.Begin:
			c := of(e)
			c.begins = append(c.begins, e)
		case history.End:
			c := of(e)
			c.ends = append(c.ends, e)
		case history.Left:
			c := of(e)
			c.left = append(c.left, e)
		}
	}
	return all
}
