package delivery

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

type publisher struct {
	err    error
	id     []byte // the id that it gives, if any
	stored *dozev1.Event
}

func (p *publisher) PublishEvent(_ context.Context, event *dozev1.Event) error {
	if p.err != nil {
		return p.err
	}
	if p.id != nil {
		event.Id = p.id
	}
	p.stored = event
	return nil
}

func TestAcceptStoresTheEvent(t *testing.T) {
	for _, test := range []struct {
		name string
		p    publisher
		want error
	}{
		{"stored", publisher{}, nil},
		{"under another id", publisher{id: []byte("0123456789abcdef")}, nil},
		{"full", publisher{err: fmt.Errorf("wrapped: %w", bus.ErrEventsFull)}, invoke.ErrEventsFull},
		{"too large", publisher{err: bus.ErrEventTooLarge}, bus.ErrEventTooLarge},
		{"store is away", publisher{err: context.DeadlineExceeded}, context.DeadlineExceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := &invoke.Event{
				RequestID: [16]byte{1, 2, 3}, Function: &registry.Function{Account: "1", Name: "f"}, Qualifier: "live",
				Payload: []byte(`{"a":1}`), ClientContext: []byte("{}"), TraceID: "Root=1",
			}
			err := NewAcceptor(&test.p).Accept(t.Context(), in)
			if !errors.Is(err, test.want) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if err != nil {
				return
			}
			if test.p.stored.AcceptedAtMs == 0 {
				t.Error("no time")
			}
			want := &dozev1.Event{
				Id: in.RequestID[:], Account: "1", Function: "f", Qualifier: "live", AcceptedAtMs: test.p.stored.AcceptedAtMs,
				Payload: in.Payload, ClientContext: in.ClientContext, TraceId: "Root=1",
			}
			if diff := cmp.Diff(want, test.p.stored, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if test.p.id != nil && string(in.RequestID[:]) != string(test.p.id) {
				t.Errorf("id answered: %x", in.RequestID)
			}
		})
	}
}
