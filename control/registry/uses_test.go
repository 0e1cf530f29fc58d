package registry

import (
	"fmt"
	"maps"
	"testing"
)

func TestUses(t *testing.T) {
	s := New()
	empty := s.Snapshot()
	if got := empty.Uses(10); len(got) != 0 || !empty.Same(s.Snapshot()) || empty.Same(nil) {
		t.Errorf("nothing is there: %v", got)
	}
	create := func(name, runtime string, memory int) {
		v := version("r0")
		v.Config.Runtime, v.Config.MemorySize = runtime, memory
		do(t, s, CreateFunction{Account: acct, Name: name, Version: v},
			Settle{Account: acct, Name: name, Version: Latest, Incarnation: "r0", RevisionID: "r1"})
	}
	create("a", "python3.11", 128)
	create("b", "python3.11", 128)
	create("c", "nodejs20.x", 256)
	do(t, s, PublishVersion{Account: acct, Name: "c", RevisionID: "r2"})
	edited := get(t, s, "c").Latest.Config
	edited.MemorySize = 512
	do(t, s, UpdateConfig{Account: acct, Name: "c", BaseRevisionID: get(t, s, "c").Latest.RevisionID, RevisionID: "r3", Config: edited})
	do(t, s, Settle{Account: acct, Name: "c", Version: Latest, Incarnation: "r3", RevisionID: "r4"})
	published := get(t, s, "c").Latest
	edited.Network = "egress"
	do(t, s, UpdateConfig{Account: acct, Name: "c", BaseRevisionID: published.RevisionID, RevisionID: "r5", Config: edited})
	if get(t, s, "c").Latest.Incarnation == published.Incarnation {
		t.Error("another network, and no new incarnation")
	}
	got := s.Snapshot()
	want := map[Use]struct{}{{"python3.11", 128, ""}: {}, {"nodejs20.x", 256, ""}: {}, {"nodejs20.x", 512, "egress"}: {}}
	if !maps.Equal(got.Uses(10), want) {
		t.Errorf("%v", got.Uses(10))
	}
	if empty.Same(got) || !got.Same(s.Snapshot()) {
		t.Error("a change is not seen, or is seen where there is none")
	}
	for i := range 20 {
		create(fmt.Sprint("f", i), "provided.al2023", 128+i)
	}
	if n := len(s.Snapshot().Uses(10)); n != 10 {
		t.Errorf("%d uses, 10 are the bound", n)
	}
}
