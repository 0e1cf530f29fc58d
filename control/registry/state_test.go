package registry

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files of the current format anew")

// check compares what the state keeps twice, and its sums, with each other.
func check(t testing.TB, s *State) {
	t.Helper()
	n := 0
	sums := map[string]account{}
	var last key
	for f := range s.Snapshot().all {
		this := key{f.Account, f.Name}
		if n > 0 && !last.before(this) {
			t.Fatalf("%v is not before %v", last, this)
		}
		last, n = this, n+1
		if got, ok := s.Function(f.Account, f.Name); !ok || got != f {
			t.Fatalf("%v differs between map and tree", this)
		}
		if !f.whole() {
			t.Fatalf("%v is not whole", this)
		}
		a := sums[f.Account]
		a.codeSize += f.codeSize()
		a.reserved += f.reserved()
		sums[f.Account] = a
	}
	if n != len(s.byName) {
		t.Fatalf("tree has %d functions, map %d", n, len(s.byName))
	}
	lastKey := ""
	for k := range s.Snapshot().accessKeys {
		if got, ok := s.AccessKey(k.ID); !ok || got != k || !k.whole() || k.ID <= lastKey {
			t.Fatalf("access key %s is not whole, or out of order", k.ID)
		}
		lastKey = k.ID
	}
	for id, want := range sums {
		if s.Usage(id).TotalCodeSize != want.codeSize || s.UnreservedConcurrency(id) != AccountConcurrency-want.reserved {
			t.Fatalf("account %s: sums are off", id)
		}
	}
}

// randomCommand is some command about a few functions of two accounts.
func randomCommand(r *rand.Rand, i int) Command {
	account, name := fmt.Sprintf("%012d", r.IntN(2)), fmt.Sprintf("f%d", r.IntN(40))
	rev := fmt.Sprintf("rev-%d", i)
	switch r.IntN(12) {
	case 0, 1, 2:
		c := CreateFunction{Account: account, Name: name, Version: version(rev), Tags: map[string]string{"t": rev}}
		c.Version.Code.Size = int64(r.IntN(1000))
		if r.IntN(2) == 0 {
			c.PublishRevisionID = rev + "p"
		}
		return c
	case 3:
		return UpdateCode{Account: account, Name: name, Code: Code{fmt.Sprint(r.IntN(5)), 5}, RevisionID: rev, PublishRevisionID: fmt.Sprint(r.IntN(2))}
	case 4:
		return PublishVersion{Account: account, Name: name, RevisionID: rev}
	case 5:
		return DeleteFunction{Account: account, Name: name, Version: []string{"", "1", "2"}[r.IntN(3)]}
	case 6:
		n := r.IntN(200)
		return PutConcurrency{Account: account, Name: name, Reserved: &n, RevisionID: rev}
	case 7:
		return AddPermission{Account: account, Name: name, Qualifier: []string{"", "1"}[r.IntN(2)], Statement: Statement{fmt.Sprint(r.IntN(5)), "{}"}, RevisionID: rev}
	case 8:
		return RemovePermission{Account: account, Name: name, StatementID: fmt.Sprint(r.IntN(5)), RevisionID: rev}
	case 9:
		return Tag{Account: account, Name: name, Tags: map[string]string{fmt.Sprint(r.IntN(60)): rev}, RevisionID: rev}
	case 10:
		return Untag{Account: account, Name: name, Keys: []string{"t"}, RevisionID: rev}
	}
	return nil // settle: the caller knows the incarnation
}

// replay applies a log of n random commands, through the codec as Raft does.
func replay(t testing.TB, s *State, seed uint64, n int) {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range n {
		cmd := randomCommand(r, i)
		if cmd == nil {
			for f := range s.Snapshot().all {
				if !f.Latest.settled() && r.IntN(2) == 0 {
					cmd = Settle{Account: f.Account, Name: f.Name, Version: Latest, Incarnation: f.Latest.Incarnation, RevisionID: fmt.Sprint("s", i), Failed: r.IntN(5) == 0}
					break
				}
			}
			if cmd == nil {
				continue
			}
		}
		data, err := Append(nil, cmd)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		var refused *Error
		if _, err := s.Apply(decoded); err != nil && !errors.As(err, &refused) {
			t.Fatalf("%T: %v is not an *Error", cmd, err)
		}
	}
}

func write(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := s.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestSameLogSameBytes(t *testing.T) {
	for seed := range uint64(10) {
		a, b := New(), New()
		replay(t, a, seed, 600)
		replay(t, b, seed, 600)
		check(t, a)
		data := write(t, a.Snapshot())
		if !bytes.Equal(data, write(t, b.Snapshot())) {
			t.Fatalf("seed %d: two replays differ", seed)
		}
		// A restored state is the same, and goes on the same.
		snap, err := ReadSnapshot(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		c := New()
		replay(t, c, seed+100, 50)
		c.Restore(snap)
		check(t, c)
		if !bytes.Equal(data, write(t, c.Snapshot())) {
			t.Fatalf("seed %d: restored state differs", seed)
		}
		replay(t, a, seed+1, 300)
		replay(t, c, seed+1, 300)
		if a.Snapshot().Hash() != c.Snapshot().Hash() {
			t.Fatalf("seed %d: restored state went another way", seed)
		}
		check(t, c)
	}
}

func TestSnapshotStandsStillWhileApplyGoesOn(t *testing.T) {
	s := New()
	replay(t, s, 1, 300)
	snap := s.Snapshot()
	want := write(t, snap)
	var wg sync.WaitGroup
	wg.Go(func() { replay(t, s, 2, 500) })
	for range 20 {
		if !bytes.Equal(want, write(t, snap)) {
			t.Error("snapshot changed")
			break
		}
		s.Function(acct, "f1")
		s.List(acct, "f1", 5)
		s.Usage(acct)
		s.ReferencedCode()
	}
	wg.Wait()
}

func golden(t *testing.T) *State {
	s := New()
	active(t, s, "plain")
	c := version("c0")
	c.Config.Environment, c.Config.HasEnv = map[string]string{"K": "v & <w>"}, true
	c.Config.Layers = []string{"arn:aws:lambda:us-east-1:000000000000:layer:l:1"}
	c.Config.Echo = map[string][]byte{"VpcConfig": {1, 2, 255}}
	reserved := 5
	do(t, s, CreateFunction{Account: "111111111111", Name: "full", Version: c, Tags: map[string]string{"a": "b"}, PublishRevisionID: "c1"},
		Settle{Account: "111111111111", Name: "full", Version: Latest, Incarnation: "c0", RevisionID: "c2"},
		UpdateCode{Account: "111111111111", Name: "full", Code: Code{"bb", 7}, RevisionID: "c3", At: 2000},
		PutConcurrency{Account: "111111111111", Name: "full", Reserved: &reserved, RevisionID: "c4"},
		AddPermission{Account: "111111111111", Name: "full", Statement: Statement{"s", `{"Sid":"s"}`}, RevisionID: "c5"},
		AddPermission{Account: "111111111111", Name: "full", Qualifier: "1", Statement: Statement{"s", `{"Sid":"s"}`}, RevisionID: "c6"})
	return s
}

// goldenKeys is what version 2 of the format added.
func goldenKeys(t *testing.T) *State {
	s := golden(t)
	full := accessKey("doze_root")
	full.Role, full.Description, full.Account = RoleRoot, "from & for <people>", "111111111111"
	do(t, s, PutAccessKey{Key: full}, PutAccessKey{Key: accessKey("AKIAIOSFODNN7EXAMPLE")})
	return s
}

func accessKey(id string) AccessKey {
	return AccessKey{ID: id, Account: acct, Role: RoleDeployer, CreatedAt: 1714566896789, Sealed: []byte{1, 2, 255}}
}

// TestGoldenSnapshot reads and writes the released format. When the format changes, the file stays
// and the new one gets its own.
func TestGoldenSnapshot(t *testing.T) {
	const path = "testdata/snapshot.v2.ndjson"
	got := write(t, goldenKeys(t).Snapshot())
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("written:\n%s\nwant:\n%s", got, want)
	}
	snap, err := ReadSnapshot(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	if snap.Hash() != goldenKeys(t).Snapshot().Hash() {
		t.Error("read back, it is another state")
	}
}

// TestOldSnapshot reads what an older Doze wrote.
func TestOldSnapshot(t *testing.T) {
	old, err := os.ReadFile("testdata/snapshot.v1.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	snap, err := ReadSnapshot(bytes.NewReader(old))
	if err != nil {
		t.Fatal(err)
	}
	if snap.Hash() != golden(t).Snapshot().Hash() {
		t.Error("read back, it is another state")
	}
}

func TestReadSnapshotRefuses(t *testing.T) {
	good := string(write(t, goldenKeys(t).Snapshot()))
	lines := strings.SplitAfter(good, "\n")
	for name, in := range map[string]string{
		"empty":              "",
		"cut":                good[:len(good)-10],
		"a line missing":     lines[0] + lines[1],
		"out of order":       lines[0] + lines[2] + lines[1],
		"twice":              lines[0] + lines[1] + lines[1],
		"other version":      strings.Replace(good, `"version":2`, `"version":3`, 1),
		"other format":       strings.Replace(good, "doze-registry", "doze-ledger", 1),
		"keys in version 1":  strings.Replace(good, `"version":2`, `"version":1`, 1),
		"keys out of order":  lines[0] + lines[1] + lines[2] + lines[4] + lines[3],
		"a key missing":      lines[0] + lines[1] + lines[2] + lines[3],
		"key without secret": strings.Replace(good, `"sealed":"AQL/"`, `"sealed":""`, 1),
		"unknown member":     strings.Replace(good, `"nextVersion"`, `"later":1,"nextVersion"`, 1),
		"no latest":          `{"format":"doze-registry","version":1,"functions":1}` + "\n" + `{"account":"1","name":"f","latest":null,"nextVersion":1}` + "\n",
	} {
		if _, err := ReadSnapshot(strings.NewReader(in)); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadSnapshot(f *testing.F) {
	f.Add([]byte(`{"format":"doze-registry","version":1,"functions":1}` + "\n" +
		`{"account":"1","name":"f","latest":{"version":"$LATEST"},"versions":[{"version":"1"}],"nextVersion":2}` + "\n"))
	f.Add([]byte(`{"format":"doze-registry","version":1,"functions":0}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		snap, err := ReadSnapshot(bytes.NewReader(data))
		if err != nil {
			return
		}
		s := New()
		s.Restore(snap)
		check(t, s)
		again, err := ReadSnapshot(bytes.NewReader(write(t, s.Snapshot())))
		if err != nil || again.Hash() != snap.Hash() {
			t.Fatalf("not the same again: %v", err)
		}
	})
}

func TestListPages(t *testing.T) {
	s := New()
	var want []string
	for i := range 95 {
		name := fmt.Sprintf("f%03d", i*7%95)
		want = append(want, name)
		active(t, s, name)
	}
	slices.Sort(want)
	for _, max := range []int{1, 10, 95, 1000} {
		var got []string
		after, more := "", true
		for more {
			var page []*Function
			page, more = s.List(acct, after, max)
			if len(page) > max || more && len(page) != max {
				t.Fatalf("page of %d, more %v", len(page), more)
			}
			for _, f := range page {
				got = append(got, f.Name)
				after = f.Name
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("pages of %d: %v", max, got)
		}
	}
	if page, more := s.List(acct, "f0005", 2); len(page) != 2 || page[0].Name != "f001" || !more {
		t.Fatalf("after a name that is not there: %v %v", page[0].Name, more)
	}
	if page, more := s.List("other", "", 10); len(page) != 0 || more {
		t.Fatal("another account's list")
	}
}

func TestInvokePathAllocatesNothing(t *testing.T) {
	s := New()
	active(t, s, "f")
	do(t, s, PublishVersion{Account: acct, Name: "f", RevisionID: "p"})
	if n := testing.AllocsPerRun(100, func() {
		if _, _, ok := s.Resolve(acct, "f", "1"); !ok {
			t.Fatal("gone")
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// TestMemoryOfManyFunctions keeps an eye on what a large cluster costs: 100,000 functions may take
// half of a control node's 500 MB, so a fifth of them a fifth of that.
func TestMemoryOfManyFunctions(t *testing.T) {
	const n, limit = 20_000, 50 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := New()
	for i := range n {
		data, err := Append(nil, CreateFunction{Account: acct, Name: fmt.Sprintf("function-%06d", i*7919%n), Version: version(fmt.Sprintf("00000000-0000-0000-0000-%012d", i))})
		if err != nil {
			t.Fatal(err)
		}
		cmd, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		do(t, s, cmd)
	}
	data := write(t, s.Snapshot())
	snap, err := ReadSnapshot(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	s.Restore(snap)
	size := len(data)
	data, snap = nil, nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	heap := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d functions: %d MB of heap, snapshot of %d MB", n, heap>>20, size>>20)
	if heap > limit {
		t.Errorf("%d MB of heap, at most %d", heap>>20, limit>>20)
	}
	if page, more := s.List(acct, "function-010000", 50); len(page) != 50 || page[0].Name != "function-010001" || !more {
		t.Error("page in the middle")
	}
}

func BenchmarkResolve(b *testing.B) {
	s := New()
	active(b, s, "f")
	for b.Loop() {
		s.Resolve(acct, "f", "")
	}
}
