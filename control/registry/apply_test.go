package registry

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
)

const acct = "000000000000"

func version(rev string) Version {
	return Version{
		RevisionID: rev, LastModified: 1000,
		Config: Config{Runtime: "python3.12", Role: "arn:aws:iam::000000000000:role/r", Handler: "m.h",
			Timeout: 3, MemorySize: 128, EphemeralSize: 512, PackageType: "Zip",
			Architectures: []string{"x86_64"}, TracingMode: "PassThrough", SnapStart: "None",
			LogFormat: "Text", LogGroup: "/aws/lambda/f"},
		Code: Code{SHA256: "aa01", Size: 100},
	}
}

// do applies the commands, which must all succeed, and answers the last answer.
func do(t testing.TB, s *State, cmds ...Command) any {
	t.Helper()
	var answer any
	for _, cmd := range cmds {
		var err error
		if answer, err = s.Apply(cmd); err != nil {
			t.Fatalf("%T: %v", cmd, err)
		}
	}
	return answer
}

func refused(t testing.TB, s *State, cmd Command, want error) {
	t.Helper()
	before := s.Snapshot().Hash()
	if _, err := s.Apply(cmd); !errors.Is(err, want) {
		t.Fatalf("%T: %v, want %v", cmd, err, want)
	}
	if s.Snapshot().Hash() != before {
		t.Fatalf("%T was refused and changed the state", cmd)
	}
}

// active makes a function that is settled at revision r1 (incarnation r0).
func active(t testing.TB, s *State, name string) {
	t.Helper()
	do(t, s, CreateFunction{Account: acct, Name: name, Version: version("r0")},
		Settle{Account: acct, Name: name, Version: Latest, Incarnation: "r0", RevisionID: "r1"})
}

func get(t testing.TB, s *State, name string) *Function {
	t.Helper()
	f, ok := s.Function(acct, name)
	if !ok {
		t.Fatalf("%s is not there", name)
	}
	return f
}

func TestCreateAndSettle(t *testing.T) {
	s := New()
	v := do(t, s, CreateFunction{Account: acct, Name: "f", Version: version("r0")}).(*Version)
	if v.Version != Latest || v.State != StatePending || v.StateReason != "The function is being created." ||
		v.StateReasonCode != "Creating" || v.UpdateStatus != "" || v.Incarnation != "r0" {
		t.Fatalf("created: %+v", v)
	}
	refused(t, s, CreateFunction{Account: acct, Name: "f", Version: version("x")}, ErrExists)
	refused(t, s, UpdateCode{Account: acct, Name: "f", RevisionID: "x"}, ErrBusy)
	refused(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "x"}, ErrBusy)
	refused(t, s, UpdateConfig{Account: acct, Name: "f", RevisionID: "x", BaseRevisionID: "r0"}, ErrBusy)

	// Another incarnation's settling is none of its business.
	do(t, s, Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "old", RevisionID: "x"})
	if get(t, s, "f").Latest.State != StatePending {
		t.Fatal("settled by another incarnation")
	}
	v = do(t, s, Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "r0", RevisionID: "r1"}).(*Version)
	if v.State != StateActive || v.StateReason != "" || v.UpdateStatus != UpdateSuccessful || v.RevisionID != "r1" || v.Incarnation != "r0" {
		t.Fatalf("settled: %+v", v)
	}
	// Settling again changes nothing.
	do(t, s, Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "r0", RevisionID: "r2", Failed: true})
	if got := get(t, s, "f").Latest; got.RevisionID != "r1" || got.State != StateActive {
		t.Fatalf("settled twice: %+v", got)
	}
	refused(t, s, Settle{Account: acct, Name: "g"}, ErrNotFound)
}

func TestCreateRefuses(t *testing.T) {
	s := New()
	tags := map[string]string{}
	for i := range MaxTags + 1 {
		tags[fmt.Sprint(i)] = ""
	}
	refused(t, s, CreateFunction{Account: acct, Name: "f", Version: version("r"), Tags: tags}, ErrTooManyTags)
	refused(t, s, CreateFunction{Account: acct, Name: "a b", Version: version("r")}, ErrInvalid)
	refused(t, s, CreateFunction{Name: "f", Version: version("r")}, ErrInvalid)
	refused(t, s, CreateFunction{Account: acct, Name: "f"}, ErrInvalid)
}

func TestFailedCreateAndFailedUpdate(t *testing.T) {
	s := New()
	do(t, s, CreateFunction{Account: acct, Name: "f", Version: version("r0"), PublishRevisionID: "p1"})
	do(t, s, Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "r0", RevisionID: "r1", Failed: true, Reason: "bad", ReasonCode: "Bad"})
	f := get(t, s, "f")
	for _, v := range []*Version{f.Latest, f.Versions[0]} {
		if v.State != StateFailed || v.StateReason != "bad" || v.StateReasonCode != "Bad" || v.UpdateStatus != "" {
			t.Fatalf("failed create: %+v", v)
		}
	}
	// An update may mend it.
	v := do(t, s, UpdateCode{Account: acct, Name: "f", Code: Code{"bb", 1}, RevisionID: "r2", At: 5}).(*Version)
	if v.UpdateStatus != UpdateInProgress || v.UpdateReason != "The function is being created." || v.UpdateReasonCode != "Creating" ||
		v.Incarnation != "r2" || v.RevisionID != "r2" || v.LastModified != 5 {
		t.Fatalf("updated: %+v", v)
	}
	do(t, s, Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "r2", RevisionID: "r3"})
	if v := get(t, s, "f").Latest; v.State != StateActive || v.UpdateStatus != UpdateSuccessful {
		t.Fatalf("mended: %+v", v)
	}
	do(t, s, UpdateCode{Account: acct, Name: "f", Code: Code{"cc", 1}, RevisionID: "r4"},
		Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "r4", RevisionID: "r5", Failed: true, Reason: "bad"})
	if v := get(t, s, "f").Latest; v.State != StateActive || v.UpdateStatus != UpdateFailed || v.UpdateReason != "bad" {
		t.Fatalf("failed update: %+v", v)
	}
}

func TestUpdateConfig(t *testing.T) {
	s := New()
	active(t, s, "f")
	c := version("").Config
	c.MemorySize = 256
	refused(t, s, UpdateConfig{Account: acct, Name: "f", Config: c, BaseRevisionID: "r0", RevisionID: "r2"}, ErrStale)
	refused(t, s, UpdateConfig{Account: acct, Name: "f", Config: c, BaseRevisionID: "r1", RevisionID: "r2", IfRevisionID: "r0"}, ErrRevision)
	refused(t, s, UpdateConfig{Account: acct, Name: "g", Config: c, RevisionID: "r2"}, ErrNotFound)
	before := get(t, s, "f")
	v := do(t, s, UpdateConfig{Account: acct, Name: "f", Config: c, BaseRevisionID: "r1", RevisionID: "r2", IfRevisionID: "r1", At: 7}).(*Version)
	if v.Config.MemorySize != 256 || v.Incarnation != "r2" || v.UpdateStatus != UpdateInProgress || v.State != StateActive {
		t.Fatalf("%+v", v)
	}
	if before.Latest.Config.MemorySize != 128 || before.Latest.Incarnation != "r0" {
		t.Fatal("a published *Function changed")
	}
}

func TestPublish(t *testing.T) {
	s := New()
	active(t, s, "f")
	refused(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p", IfCodeSHA256: "xx"}, ErrCodeMismatch)
	refused(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p", IfRevisionID: "xx"}, ErrRevision)
	text := "first"
	one := do(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p1", At: 9, Description: &text, IfCodeSHA256: "qgE="}).(*Version)
	if one.Version != "1" || one.Config.Description != "first" || one.RevisionID != "p1" || one.LastModified != 9 ||
		one.State != StateActive || one.Incarnation != "r0" {
		t.Fatalf("%+v", one)
	}
	if again := do(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p2"}).(*Version); again != one {
		t.Fatalf("published again: %+v", again)
	}
	// The zip it already has, and back to what was published: still no change.
	do(t, s, UpdateCode{Account: acct, Name: "f", Code: Code{"bb", 50}, RevisionID: "r2"},
		Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "r2", RevisionID: "r3"})
	two := do(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p3"}).(*Version)
	same := do(t, s, UpdateCode{Account: acct, Name: "f", Code: Code{"bb", 50}, RevisionID: "r4", PublishRevisionID: "p4"}).(*Version)
	if two.Version != "2" || same.Version != "2" {
		t.Fatalf("versions %s, %s", two.Version, same.Version)
	}
	do(t, s, Settle{Account: acct, Name: "f", Version: Latest, Incarnation: "r4", RevisionID: "r5"})

	// Update and publish in one: the version is Pending until its code is ready.
	three := do(t, s, UpdateCode{Account: acct, Name: "f", Code: Code{"cc", 7}, Architectures: []string{"arm64"}, RevisionID: "r6", PublishRevisionID: "p5"}).(*Version)
	if three.Version != "3" || three.State != StatePending || three.UpdateStatus != "" || three.Config.Architectures[0] != "arm64" {
		t.Fatalf("%+v", three)
	}
	settled := do(t, s, Settle{Account: acct, Name: "f", Version: "3", Incarnation: "r6", RevisionID: "r7"}).(*Version)
	if settled.Version != "3" || settled.State != StateActive {
		t.Fatalf("%+v", settled)
	}
	if get(t, s, "f").Latest.UpdateStatus != UpdateSuccessful {
		t.Fatal("$LATEST not settled with it")
	}

	// Numbers are not used again.
	do(t, s, DeleteFunction{Account: acct, Name: "f", Version: "3"})
	if v := do(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p6"}).(*Version); v.Version != "4" {
		t.Fatalf("%+v", v)
	}
	if u := s.Usage(acct); u.TotalCodeSize != 7+100+50+7 || u.FunctionCount != 1 {
		t.Fatalf("usage %+v", u)
	}
	if code := s.ReferencedCode(); !reflect.DeepEqual(code, map[string]struct{}{"aa01": {}, "bb": {}, "cc": {}}) {
		t.Fatalf("code %v", code)
	}
	for q, want := range map[string]string{"": Latest, Latest: Latest, "1": "1", "4": "4"} {
		if _, v, ok := s.Resolve(acct, "f", q); !ok || v.Version != want {
			t.Errorf("Resolve(%q) = %v, %v", q, v, ok)
		}
	}
	for _, q := range []string{"3", "5", "01", "prod", "99999999999999999999"} {
		if f, _, ok := s.Resolve(acct, "f", q); ok || f == nil {
			t.Errorf("Resolve(%q): found %v, function %v", q, ok, f != nil)
		}
	}
}

func TestDelete(t *testing.T) {
	s := New()
	active(t, s, "f")
	do(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p1"},
		AddPermission{Account: acct, Name: "f", Qualifier: "1", Statement: Statement{"a", "{}"}, RevisionID: "q"})
	refused(t, s, DeleteFunction{Account: acct, Name: "f", Version: Latest}, ErrLatest)
	do(t, s, DeleteFunction{Account: acct, Name: "f", Version: "77"}) // AWS: no error
	f := do(t, s, DeleteFunction{Account: acct, Name: "f", Version: "1"}).(*Function)
	if len(f.Versions) != 0 || len(f.Policies) != 0 {
		t.Fatalf("%+v", f)
	}
	do(t, s, DeleteFunction{Account: acct, Name: "f"})
	refused(t, s, DeleteFunction{Account: acct, Name: "f"}, ErrNotFound)
	if s.Snapshot().Hash() != New().Snapshot().Hash() {
		t.Fatal("something was left")
	}
}

func TestConcurrency(t *testing.T) {
	s := New()
	active(t, s, "f")
	active(t, s, "g")
	n := func(i int) *int { return &i }
	incarnation := get(t, s, "f").Latest.Incarnation
	refused(t, s, PutConcurrency{Account: acct, Name: "f", Reserved: n(901)}, ErrUnreserved)
	refused(t, s, PutConcurrency{Account: acct, Name: "f", Reserved: n(-1)}, ErrInvalid)
	f := do(t, s, PutConcurrency{Account: acct, Name: "f", Reserved: n(900), RevisionID: "r2"}).(*Function)
	if *f.Reserved != 900 || f.Latest.Incarnation != incarnation || f.Latest.RevisionID != "r2" {
		t.Fatalf("%+v", f)
	}
	if u := s.UnreservedConcurrency(acct); u != 100 {
		t.Fatalf("unreserved %d", u)
	}
	refused(t, s, PutConcurrency{Account: acct, Name: "g", Reserved: n(1)}, ErrUnreserved)
	do(t, s, PutConcurrency{Account: acct, Name: "g", Reserved: n(0)}, // blocks the function, reserves nothing
		PutConcurrency{Account: acct, Name: "f", Reserved: n(900)},
		PutConcurrency{Account: acct, Name: "f", Reserved: n(899)},
		PutConcurrency{Account: acct, Name: "g", Reserved: n(1)},
		PutConcurrency{Account: acct, Name: "f"})
	if u := s.UnreservedConcurrency(acct); u != 999 || s.UnreservedConcurrency("other") != AccountConcurrency {
		t.Fatalf("unreserved %d", u)
	}
	do(t, s, DeleteFunction{Account: acct, Name: "g"})
	if u := s.UnreservedConcurrency(acct); u != 1000 {
		t.Fatalf("unreserved %d", u)
	}
}

func TestPolicies(t *testing.T) {
	s := New()
	active(t, s, "f")
	do(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p1"})
	add := func(q, id, rev, ifRev string) AddPermission {
		return AddPermission{Account: acct, Name: "f", Qualifier: q, Statement: Statement{id, `{"Sid":"` + id + `"}`}, RevisionID: rev, IfRevisionID: ifRev}
	}
	refused(t, s, add(Latest, "a", "x", ""), ErrLatest)
	refused(t, s, add("2", "a", "x", ""), ErrNotFound)
	refused(t, s, add("", "a", "x", "stale"), ErrRevision)
	p := do(t, s, add("", "a", "a1", "r1")).(*Policy)
	if p.RevisionID != "a1" || len(p.Statements) != 1 || get(t, s, "f").Latest.RevisionID != "a1" || get(t, s, "f").Latest.Incarnation != "r0" {
		t.Fatalf("%+v", p)
	}
	refused(t, s, add("", "a", "x", ""), ErrStatementExists)
	do(t, s, add("", "b", "a2", "a1"), add("1", "a", "v1", "p1"))
	if f := get(t, s, "f"); f.Versions[0].RevisionID != "v1" || len(f.Policies[""].Statements) != 2 || len(f.Policies["1"].Statements) != 1 {
		t.Fatalf("%+v", f)
	}
	big := add("", "c", "x", "")
	big.Statement.JSON = string(make([]byte, MaxPolicyBytes))
	refused(t, s, big, ErrPolicyTooLong)

	remove := func(q, id, ifRev string) RemovePermission {
		return RemovePermission{Account: acct, Name: "f", Qualifier: q, StatementID: id, RevisionID: "z" + id, IfRevisionID: ifRev}
	}
	refused(t, s, remove("", "nope", ""), ErrStatementNotFound)
	refused(t, s, remove("", "a", "a1"), ErrRevision)
	p = do(t, s, remove("", "a", "a2"), remove("", "b", "za")).(*Policy)
	if len(p.Statements) != 0 {
		t.Fatalf("%+v", p)
	}
	if f := get(t, s, "f"); f.Policies[""] != nil || f.Policies["1"] == nil {
		t.Fatalf("%+v", f.Policies)
	}
	refused(t, s, remove("", "b", ""), ErrStatementNotFound)
}

func TestTags(t *testing.T) {
	s := New()
	active(t, s, "f")
	many := map[string]string{}
	for i := range MaxTags {
		many[fmt.Sprint(i)] = "x"
	}
	first := do(t, s, Tag{Account: acct, Name: "f", Tags: many, RevisionID: "t1"}).(*Function)
	do(t, s, Tag{Account: acct, Name: "f", Tags: map[string]string{"0": "y"}})
	refused(t, s, Tag{Account: acct, Name: "f", Tags: map[string]string{"new": ""}}, ErrTooManyTags)
	do(t, s, Untag{Account: acct, Name: "f", Keys: []string{"1", "not there"}},
		Tag{Account: acct, Name: "f", Tags: map[string]string{"new": ""}})
	if f := get(t, s, "f"); len(f.Tags) != MaxTags || f.Tags["0"] != "y" || first.Tags["0"] != "x" || first.Tags["1"] != "x" {
		t.Fatalf("%v", f.Tags)
	}
	refused(t, s, Tag{Account: acct, Name: "g"}, ErrNotFound)
	refused(t, s, Untag{Account: acct, Name: "g"}, ErrNotFound)
}

func TestErrorsKeepTheirCodeOnTheWire(t *testing.T) {
	err := error(ErrNotFound.with("f"))
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrExists) || errors.Is(ErrNotFound, err) {
		t.Fatal("errors.Is")
	}
	if !errors.Is(&Error{Code: "NotFound", Detail: "from another node"}, ErrNotFound) {
		t.Fatal("an error made elsewhere")
	}
}
