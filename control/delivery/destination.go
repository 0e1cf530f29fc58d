package delivery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// maxHops is how often one event and the records that came of it may be sent on. AWS ends such loops
// after about 16 calls.
const maxHops = 16

// Destinations is the Sink that sends records of ended events on: to the function's destination for
// success or failure, and to its dead-letter target the event itself. It stores them as events of
// the function that is named, before the event that has ended is settled; the store drops repeats.
type Destinations struct {
	Publisher Publisher
	// Drops is told of every end as well.
	Drops  Sink
	Logger *slog.Logger
}

// Record implements Sink.
func (d Destinations) Record(ctx context.Context, o *Outcome) error {
	policy := o.Target.Policy
	to := policy.OnFailure
	if o.Condition == Success {
		to = policy.OnSuccess
	}
	if to != "" {
		record, err := newRecord(o, time.Now())
		if err != nil {
			return fmt.Errorf("record of an event: %w", err)
		}
		if err := d.send(ctx, o, to, "destination", record); err != nil {
			return err
		}
	}
	if o.Condition != Success && policy.DeadLetter != "" {
		if err := d.send(ctx, o, policy.DeadLetter, "dead letter", payloadOf(o.Event)); err != nil {
			return err
		}
	}
	return d.Drops.Record(ctx, o)
}

// send stores an event for the function that an ARN names. What can never be sent is logged and is no
// error: the event has ended all the same.
func (d Destinations) send(ctx context.Context, o *Outcome, arn, what string, payload []byte) error {
	refuse := func(why string) error {
		d.Logger.Warn("record of an asynchronous event not sent", "to", arn, "as", what, "why", why,
			"request_id", idText(o.Event.Id), "function", o.Event.Function)
		return nil
	}
	account, _, name, qualifier, err := registry.ParseFunctionName(arn)
	switch {
	case err != nil || account != o.Event.Account:
		return refuse("it is not a function of the account")
	case o.Event.Hops >= maxHops:
		return refuse(fmt.Sprintf("it was sent on %d times before: the functions call one another in a loop", o.Event.Hops))
	}
	// The same record has the same id, so that one that is sent again is stored once.
	id := uuid.NewSHA1(uuid.UUID(o.Event.Id), []byte(what+" "+arn))
	err = d.Publisher.PublishEvent(ctx, &dozev1.Event{
		Id: id[:], Account: account, Function: name, Qualifier: qualifier, AcceptedAtMs: time.Now().UnixMilli(),
		Payload: payload, TraceId: o.Event.TraceId, Hops: o.Event.Hops + 1,
	})
	if errors.Is(err, bus.ErrEventTooLarge) {
		return refuse("it is larger than an event may be")
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", arn, err)
	}
	return nil
}

// record is what AWS sends to a destination.
type record struct {
	Version         string          `json:"version"`
	Timestamp       string          `json:"timestamp"`
	RequestContext  requestContext  `json:"requestContext"`
	RequestPayload  json.RawMessage `json:"requestPayload"`
	ResponseContext *response       `json:"responseContext,omitempty"`
	ResponsePayload json.RawMessage `json:"responsePayload,omitempty"`
}

type requestContext struct {
	RequestID              string    `json:"requestId"`
	FunctionARN            string    `json:"functionArn"`
	Condition              Condition `json:"condition"`
	ApproximateInvokeCount int       `json:"approximateInvokeCount"`
}

type response struct {
	StatusCode      int    `json:"statusCode"`
	ExecutedVersion string `json:"executedVersion"`
	FunctionError   string `json:"functionError,omitempty"`
}

// newRecord writes the record of an end; it has a response when the function ran in the last attempt.
func newRecord(o *Outcome, now time.Time) ([]byte, error) {
	arn := o.Target.InvokedARN
	if o.Event.Qualifier == "" {
		arn += ":" + registry.Latest
	}
	r := record{
		Version: "1.0", Timestamp: now.UTC().Format("2006-01-02T15:04:05.000Z"),
		RequestContext: requestContext{idText(o.Event.Id), arn, o.Condition, o.Attempts},
		RequestPayload: payloadOf(o.Event),
	}
	if o.ExecutedVersion != "" {
		r.ResponseContext = &response{200, o.ExecutedVersion, o.FunctionError}
		r.ResponsePayload = o.Payload
		if !json.Valid(o.Payload) { // a custom runtime may answer anything
			text, err := json.Marshal(string(o.Payload))
			if err != nil {
				return nil, err
			}
			r.ResponsePayload = text
		}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(r); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func payloadOf(event *dozev1.Event) []byte {
	if len(event.Payload) == 0 {
		return []byte("{}")
	}
	return event.Payload
}
