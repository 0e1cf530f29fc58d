package registry

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// aliased is a function with $LATEST, versions 1 to 3 and the alias live of version 1.
func aliased(t *testing.T) *State {
	t.Helper()
	s := New()
	active(t, s, "f")
	for n := range 3 {
		rev := fmt.Sprintf("p%d", n)
		do(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: rev},
			UpdateCode{Account: acct, Name: "f", Code: Code{fmt.Sprint("bb", n), 1}, RevisionID: "u" + rev},
			Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "u" + rev, RevisionID: "s" + rev})
	}
	do(t, s, CreateAlias{Account: acct, Name: "f", Alias: Alias{Name: "live", Version: "1", RevisionID: "a1"}})
	return s
}

func TestAliasLife(t *testing.T) {
	s := aliased(t)
	two, text := "2", "the next one"
	a := do(t, s, UpdateAlias{Account: acct, Name: "f", Alias: "live", Version: &two, Description: &text, RevisionID: "a2", IfRevisionID: "a1"}).(*Alias)
	if *a != (Alias{Name: "live", Version: "2", Description: text, RevisionID: "a2"}) {
		t.Errorf("updated to %+v", *a)
	}
	if _, v, ok := s.Resolve(acct, "f", "live"); !ok || v.Version != "2" {
		t.Errorf("live resolves to %v, %v", v, ok)
	}
	// What is not given stays.
	a = do(t, s, UpdateAlias{Account: acct, Name: "f", Alias: "live", Routing: &Routing{"3", 0.25}, RevisionID: "a3"}).(*Alias)
	if *a != (Alias{Name: "live", Version: "2", Description: text, RevisionID: "a3", Additional: "3", Weight: 0.25}) {
		t.Errorf("updated to %+v", *a)
	}
	do(t, s, AddPermission{Account: acct, Name: "f", Qualifier: "live", Statement: Statement{"s", "{}"}, RevisionID: "a4", IfRevisionID: "a3"})
	f := get(t, s, "f")
	if a, _ := f.Alias("live"); a.RevisionID != "a4" || f.Policies["live"] == nil {
		t.Errorf("after AddPermission: %+v, %v", a, f.Policies)
	}
	do(t, s, DeleteAlias{Account: acct, Name: "f", Alias: "live"}, DeleteAlias{Account: acct, Name: "f", Alias: "live"})
	f = get(t, s, "f")
	if _, ok := f.Resolve("live"); ok || len(f.Policies) != 0 {
		t.Errorf("after DeleteAlias: %v", f.Policies)
	}
}

func TestAliasRefusals(t *testing.T) {
	s := aliased(t)
	do(t, s, UpdateAlias{Account: acct, Name: "f", Alias: "live", Routing: &Routing{"2", 0.5}, RevisionID: "a2"})
	latest, nine, two := Latest, "9", "2"
	alias := func(a Alias) CreateAlias {
		a.RevisionID = "r"
		return CreateAlias{Account: acct, Name: "f", Alias: a}
	}
	for _, test := range []struct {
		name string
		cmd  Command
		want error
	}{
		{"no function", CreateAlias{Account: acct, Name: "g", Alias: Alias{Name: "a", Version: "1", RevisionID: "r"}}, ErrNotFound},
		{"exists", alias(Alias{Name: "live", Version: "1"}), ErrAliasExists},
		{"a number", alias(Alias{Name: "12", Version: "1"}), ErrInvalid},
		{"no version", alias(Alias{Name: "a", Version: "9"}), ErrVersionNotFound},
		{"an alias as version", alias(Alias{Name: "a", Version: "live"}), ErrVersionNotFound},
		{"no second version", alias(Alias{Name: "a", Version: "1", Additional: "9", Weight: 0.1}), ErrVersionNotFound},
		{"$LATEST and another", alias(Alias{Name: "a", Version: Latest, Additional: "1", Weight: 0.1}), ErrAliasLatest},
		{"twice the same", alias(Alias{Name: "a", Version: "1", Additional: "1", Weight: 0.1}), ErrAliasTwice},
		{"heavy", alias(Alias{Name: "a", Version: "1", Additional: "2", Weight: 1.5}), ErrInvalid},
		{"update of none", UpdateAlias{Account: acct, Name: "f", Alias: "a", RevisionID: "r"}, ErrAliasNotFound},
		{"stale", UpdateAlias{Account: acct, Name: "f", Alias: "live", RevisionID: "r", IfRevisionID: "a1"}, ErrRevision},
		{"to $LATEST with a second", UpdateAlias{Account: acct, Name: "f", Alias: "live", Version: &latest, RevisionID: "r"}, ErrAliasLatest},
		{"to its second", UpdateAlias{Account: acct, Name: "f", Alias: "live", Version: &two, RevisionID: "r"}, ErrAliasTwice},
		{"to no version", UpdateAlias{Account: acct, Name: "f", Alias: "live", Version: &nine, RevisionID: "r"}, ErrVersionNotFound},
		{"delete its version", DeleteFunction{Account: acct, Name: "f", Version: "1"}, ErrAliased},
		{"delete its second version", DeleteFunction{Account: acct, Name: "f", Version: "2"}, ErrAliased},
	} {
		t.Run(test.name, func(t *testing.T) { refused(t, s, test.cmd, test.want) })
	}
	do(t, s, DeleteFunction{Account: acct, Name: "f", Version: "3"})
}

func TestRoute(t *testing.T) {
	s := aliased(t)
	do(t, s, UpdateAlias{Account: acct, Name: "f", Alias: "live", Routing: &Routing{"2", 0.1}, RevisionID: "a2"})
	f := get(t, s, "f")
	for _, test := range []struct {
		qualifier string
		draw      float64
		want      string
	}{
		{"live", 0, "2"}, {"live", 0.099, "2"}, {"live", 0.1, "1"}, {"live", 0.999, "1"},
		{"", 0, Latest}, {Latest, 0, Latest}, {"3", 0, "3"},
	} {
		if v, ok := f.Route(test.qualifier, test.draw); !ok || v.Version != test.want {
			t.Errorf("%q at %v: %v, %v, want version %s", test.qualifier, test.draw, v, ok, test.want)
		}
	}
	if _, ok := f.Route("none", 0); ok {
		t.Error("no such alias, and it is routed")
	}
}

func TestAliasesInSnapshots(t *testing.T) {
	s := aliased(t)
	do(t, s, CreateAlias{Account: acct, Name: "f", Alias: Alias{Name: "beta", Version: "2", Additional: "3", Weight: 0.5, RevisionID: "b"}})
	var b bytes.Buffer
	if err := s.Snapshot().Write(&b); err != nil {
		t.Fatal(err)
	}
	snap, err := ReadSnapshot(bufio.NewReader(bytes.NewReader(b.Bytes())))
	if err != nil || snap.Hash() != s.Snapshot().Hash() {
		t.Fatalf("read back: %v", err)
	}
	for _, broken := range [][2]string{{`"version":"2"`, `"version":"7"`}, {`"name":"beta"`, `"name":"zeta"`}, {`"weight":0.5`, `"weight":5`}} {
		damaged := bytes.Replace(b.Bytes(), []byte(broken[0]+","), []byte(broken[1]+","), -1)
		damaged = bytes.Replace(damaged, []byte(broken[0]+"}"), []byte(broken[1]+"}"), -1)
		if bytes.Equal(damaged, b.Bytes()) {
			t.Fatalf("%s is not in the snapshot", broken[0])
		}
		if _, err := ReadSnapshot(bufio.NewReader(bytes.NewReader(damaged))); !errors.Is(err, ErrSnapshot) {
			t.Errorf("with %s: %v", broken[1], err)
		}
	}
}
