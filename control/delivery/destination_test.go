package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	functionG = "arn:aws:lambda:us-east-1:000000000000:function:g"
	functionH = "arn:aws:lambda:us-east-1:000000000000:function:h:live"
)

// outbox is a Publisher that keeps what it is given.
type outbox struct {
	sent []*dozev1.Event
	err  error
}

func (b *outbox) PublishEvent(_ context.Context, e *dozev1.Event) error {
	if b.err == nil {
		b.sent = append(b.sent, e)
	}
	return b.err
}

func ended(condition Condition, change ...func(*Outcome)) *Outcome {
	o := &Outcome{
		Condition: condition,
		Event:     &dozev1.Event{Id: []byte("0123456789abcdef"), Account: "000000000000", Function: "f", Payload: []byte(`{"n":1}`), TraceId: "Root=1"},
		Target: Target{InvokedARN: "arn:aws:lambda:us-east-1:000000000000:function:f",
			Policy: Policy{OnSuccess: functionG, OnFailure: functionH, DeadLetter: functionG}},
	}
	for _, c := range change {
		c(o)
	}
	return o
}

func TestDestinations(t *testing.T) {
	ran := func(o *Outcome) { o.Attempts, o.ExecutedVersion, o.Payload = 3, "$LATEST", []byte(`{"r":2}`) }
	failed := func(o *Outcome) { ran(o); o.FunctionError = "Unhandled" }
	for _, test := range []struct {
		name string
		o    *Outcome
		want []string // function:qualifier payload, with the record's timestamp taken out
	}{
		{"success", ended(Success, ran), []string{
			`g: {"version":"1.0","timestamp":"T","requestContext":{"requestId":"30313233-3435-3637-3839-616263646566","functionArn":"arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST","condition":"Success","approximateInvokeCount":3},"requestPayload":{"n":1},"responseContext":{"statusCode":200,"executedVersion":"$LATEST"},"responsePayload":{"r":2}}`}},
		{"failure", ended(RetriesExhausted, failed), []string{
			`h:live {"version":"1.0","timestamp":"T","requestContext":{"requestId":"30313233-3435-3637-3839-616263646566","functionArn":"arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST","condition":"RetriesExhausted","approximateInvokeCount":3},"requestPayload":{"n":1},"responseContext":{"statusCode":200,"executedVersion":"$LATEST","functionError":"Unhandled"},"responsePayload":{"r":2}}`,
			`g: {"n":1}`}},
		{"never ran", ended(ZeroReservedConcurrency), []string{
			`h:live {"version":"1.0","timestamp":"T","requestContext":{"requestId":"30313233-3435-3637-3839-616263646566","functionArn":"arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST","condition":"ZeroReservedConcurrency","approximateInvokeCount":0},"requestPayload":{"n":1}}`,
			`g: {"n":1}`}},
		{"an answer that is no JSON", ended(Success, ran, func(o *Outcome) { o.Payload = []byte("a b") }), []string{`"responsePayload":"a b"`}},
		{"none set", ended(RetriesExhausted, failed, func(o *Outcome) { o.Target.Policy = Policy{} }), nil},
		{"a loop", ended(Success, ran, func(o *Outcome) { o.Event.Hops = maxHops }), nil},
		{"not of the account", ended(Success, ran, func(o *Outcome) { o.Event.Account = "111111111111" }), nil},
		{"not a function", ended(Success, ran, func(o *Outcome) { o.Target.Policy.OnSuccess = "arn:aws:sqs:us-east-1:000000000000:q" }), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			box := &outbox{}
			d := Destinations{Publisher: box, Drops: LogSink{slog.New(slog.DiscardHandler)}, Logger: slog.New(slog.DiscardHandler)}
			if err := d.Record(t.Context(), test.o); err != nil {
				t.Fatal(err)
			}
			if len(box.sent) != len(test.want) {
				t.Fatalf("%d events sent, want %d", len(box.sent), len(test.want))
			}
			for i, e := range box.sent {
				got := e.Function + ":" + e.Qualifier + " " + withoutTimestamp(t, e.Payload)
				if !strings.Contains(got, test.want[i]) {
					t.Errorf("sent\n%s\nwant\n%s", got, test.want[i])
				}
				if e.Hops != 1 || e.TraceId != "Root=1" || len(e.Id) != 16 || e.AcceptedAtMs == 0 {
					t.Errorf("sent as %v", e)
				}
			}
		})
	}
}

func withoutTimestamp(t *testing.T, payload []byte) string {
	t.Helper()
	var r struct{ Timestamp string }
	if err := json.Unmarshal(payload, &r); err != nil {
		t.Fatal(err)
	}
	if r.Timestamp == "" {
		return string(payload)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", r.Timestamp); err != nil {
		t.Error(err)
	}
	return strings.Replace(string(payload), r.Timestamp, "T", 1)
}

// A record that cannot be stored keeps its event from being settled; sent again, it has the same id.
func TestDestinationStoredOnce(t *testing.T) {
	box := &outbox{err: errors.New("no leader")}
	d := Destinations{Publisher: box, Drops: LogSink{slog.New(slog.DiscardHandler)}, Logger: slog.New(slog.DiscardHandler)}
	if err := d.Record(t.Context(), ended(Success)); !errors.Is(err, box.err) {
		t.Errorf("not stored, and: %v", err)
	}
	box.err = nil
	for range 2 {
		if err := d.Record(t.Context(), ended(Success)); err != nil {
			t.Fatal(err)
		}
	}
	if string(box.sent[0].Id) != string(box.sent[1].Id) || string(box.sent[0].Id) == "0123456789abcdef" {
		t.Errorf("ids %x and %x", box.sent[0].Id, box.sent[1].Id)
	}
	box.err = bus.ErrEventTooLarge
	if err := d.Record(t.Context(), ended(Success)); err != nil {
		t.Errorf("what can never be stored is tried again: %v", err)
	}
}

func TestPolicyOf(t *testing.T) {
	zero, age := 0, 60
	f := &registry.Function{EventInvokes: map[string]*registry.EventInvoke{
		registry.Latest: {MaxRetries: &zero, OnSuccess: functionG}, "live": {MaxAge: &age, OnFailure: functionH},
	}}
	v := &registry.Version{Config: registry.Config{DeadLetterARN: functionG}}
	for qualifier, want := range map[string]Policy{
		"":              {MaximumRetryAttempts: 0, MaximumEventAge: 6 * time.Hour, OnSuccess: functionG, DeadLetter: functionG},
		registry.Latest: {MaximumRetryAttempts: 0, MaximumEventAge: 6 * time.Hour, OnSuccess: functionG, DeadLetter: functionG},
		"live":          {MaximumRetryAttempts: 2, MaximumEventAge: time.Minute, OnFailure: functionH, DeadLetter: functionG},
		"1":             {MaximumRetryAttempts: 2, MaximumEventAge: 6 * time.Hour, DeadLetter: functionG},
	} {
		if got := PolicyOf(f, v, qualifier); got != want {
			t.Errorf("%q: %+v, want %+v", qualifier, got, want)
		}
	}
}
