package delivery

import (
	"context"
	"encoding/hex"
	"log/slog"
	"sync/atomic"

	"github.com/google/uuid"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Condition is how an event ended. The first four are AWS's words in its destination records.
type Condition string

const (
	Success                 Condition = "Success"
	RetriesExhausted        Condition = "RetriesExhausted"
	EventAgeExceeded        Condition = "EventAgeExceeded"
	ZeroReservedConcurrency Condition = "ZeroReservedConcurrency"
	// FunctionGone: the function or its qualifier was deleted after the event was accepted.
	FunctionGone Condition = "FunctionGone"
	// Malformed: the stored event has no valid id; nothing of Doze writes such.
	Malformed Condition = "Malformed"
)

// conditions lists them all, in the order of Stats.
var conditions = [...]Condition{Success, RetriesExhausted, EventAgeExceeded, ZeroReservedConcurrency, FunctionGone, Malformed}

// Outcome is the end of one event. Its slices are valid during Record only.
type Outcome struct {
	Condition Condition
	Event     *dozev1.Event
	// Target is zero for FunctionGone, Malformed and, sometimes, EventAgeExceeded.
	Target Target
	// Attempts is how many attempts the function has had.
	Attempts int
	// Of the last attempt, if the function ran in this delivery: the version that ran, "" or
	// "Unhandled", and the response.
	ExecutedVersion string
	FunctionError   string
	Payload         []byte
	// Err is the last refusal or system error, if that is what kept the event from ending well.
	Err error
}

// Sink is told of every event's end, before the event is settled. When it fails, the event comes
// again and, unless it succeeded or failed for good by then, is tried again; so that at least once
// a Record returns nil for every event.
type Sink interface {
	Record(ctx context.Context, outcome *Outcome) error
}

// LogSink records drops in the log.
type LogSink struct{ Logger *slog.Logger }

// Record logs what is not a success.
func (s LogSink) Record(_ context.Context, o *Outcome) error {
	if o.Condition == Success {
		return nil
	}
	args := []any{
		"condition", string(o.Condition), "request_id", idText(o.Event.Id), "account", o.Event.Account,
		"function", o.Event.Function, "qualifier", o.Event.Qualifier, "attempts", o.Attempts,
		"accepted_at_ms", o.Event.AcceptedAtMs,
	}
	if o.FunctionError != "" {
		// Not the response: it is the owner's, and this log the operator's.
		args = append(args, "function_error", o.FunctionError, "response_bytes", len(o.Payload))
	}
	if o.Err != nil {
		args = append(args, "err", o.Err)
	}
	s.Logger.Warn("asynchronous event dropped", args...)
	return nil
}

func idText(id []byte) string {
	if u, err := uuid.FromBytes(id); err == nil {
		return u.String()
	}
	return hex.EncodeToString(id)
}

// Stats counts what a poller has done since it was made.
type Stats struct {
	// Ended by condition.
	Ended map[Condition]uint64
	// Attempts that the function had; Retried of them failed and were stored for another.
	Attempts, Retried uint64
	// Backoffs are events stored for later after a throttle or a system error, PutOff those given
	// back at once because their function's lane was full.
	Backoffs, PutOff uint64
	// Held and Running are now.
	Held, Running int
}

// counters is Stats in the making.
type counters struct {
	ended                               [len(conditions)]atomic.Uint64
	attempts, retried, backoffs, putOff atomic.Uint64
}

func (c *counters) end(condition Condition) {
	for i, k := range conditions {
		if k == condition {
			c.ended[i].Add(1)
		}
	}
}

func (c *counters) stats() Stats {
	s := Stats{
		Ended: make(map[Condition]uint64, len(conditions)), Attempts: c.attempts.Load(), Retried: c.retried.Load(),
		Backoffs: c.backoffs.Load(), PutOff: c.putOff.Load(),
	}
	for i, k := range conditions {
		s.Ended[k] = c.ended[i].Load()
	}
	return s
}
