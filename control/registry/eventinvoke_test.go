package registry

import (
	"reflect"
	"testing"
)

func TestEventInvoke(t *testing.T) {
	s := aliased(t)
	one, age, to, none := 1, 120, "arn:aws:lambda:us-east-1:000000000000:function:g", ""
	put := func(c PutEventInvoke) PutEventInvoke {
		c.Account, c.Name = acct, "f"
		return c
	}
	refused(t, s, put(PutEventInvoke{Qualifier: "9"}), ErrNotFound)
	refused(t, s, put(PutEventInvoke{Qualifier: Latest, Merge: true, MaxAge: &age}), ErrNoEventInvoke)
	refused(t, s, DeleteEventInvoke{acct, "f", Latest}, ErrNoEventInvoke)

	do(t, s, put(PutEventInvoke{Qualifier: "live", MaxRetries: &one, OnFailure: &to, At: 5}))
	e := do(t, s, put(PutEventInvoke{Qualifier: "live", Merge: true, MaxAge: &age, At: 6})).(*EventInvoke)
	if want := (EventInvoke{MaxRetries: &one, MaxAge: &age, OnFailure: to, LastModified: 6}); !reflect.DeepEqual(*e, want) {
		t.Errorf("merged to %+v", *e)
	}
	e = do(t, s, put(PutEventInvoke{Qualifier: "live", Merge: true, OnFailure: &none, At: 7})).(*EventInvoke)
	if e.OnFailure != "" || e.MaxRetries == nil {
		t.Errorf("a destination did not go: %+v", *e)
	}
	do(t, s, put(PutEventInvoke{Qualifier: Latest, MaxAge: &age, At: 8}), put(PutEventInvoke{Qualifier: "3", MaxAge: &age, At: 8}))
	f := get(t, s, "f")
	if got := f.QualifiersWithEventInvoke(); !reflect.DeepEqual(got, []string{Latest, "3", "live"}) {
		t.Errorf("set for %v", got)
	}
	if e, ok := f.EventInvokeFor(""); !ok || *e.MaxAge != age {
		t.Errorf("without a qualifier: %v, %v", e, ok)
	}
	// They go with what they hang on.
	do(t, s, DeleteFunction{acct, "f", "3"}, DeleteAlias{acct, "f", "live"}, DeleteEventInvoke{acct, "f", Latest})
	if f := get(t, s, "f"); len(f.EventInvokes) != 0 {
		t.Errorf("left: %v", f.EventInvokes)
	}
}
