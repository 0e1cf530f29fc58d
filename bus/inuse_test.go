package bus

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

func TestRuntimesInUse(t *testing.T) {
	p := newPlane(t, 8<<20)
	told := make(chan *dozev1.RuntimesInUse, 4)
	served, err := p.mesh.OnRuntimesInUse(func(uses *dozev1.RuntimesInUse) { told <- uses })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.mesh.own.nc.Flush(); err != nil { // the subscription is there
		t.Fatal(err)
	}
	if err := p.control.nc.Publish(subjectInUse, []byte{0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	want := &dozev1.RuntimesInUse{Uses: []*dozev1.RuntimeUse{{Runtime: "python3.11", MemoryMb: 128}}}
	if err := p.mesh.TellRuntimesInUse(want); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-told:
		if !proto.Equal(got, want) {
			t.Errorf("%v", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not told")
	}
	if err := served.Close(); err != nil {
		t.Error(err)
	}
}
