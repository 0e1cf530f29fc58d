// Package invoke runs one call: it takes it from an edge (gateway, async poller) to the call queue
// of the function's incarnation and brings back the answer.
//
// This file is what both sides agree on. It knows the registry's nouns and AWS's words for what
// goes wrong; it must not know HTTP or gRPC (the edges) nor NATS (package bus).
package invoke

import (
	"errors"
	"fmt"
	"time"

	"github.com/doze-run/doze/control/registry"
)

// Call is one synchronous invocation, already checked: the function and version were resolved from
// the local copy of the state and the payload is JSON within its limit.
type Call struct {
	// RequestID is the id the caller, the function's context and the log lines carry.
	RequestID [16]byte
	// Function and Version are what the name and qualifier resolved to; neither may be changed.
	Function *registry.Function
	Version  *registry.Version
	// InvokedARN is the ARN as it was called, with the qualifier if one was given.
	InvokedARN string
	// Qualifier is as the caller gave it, "" for none.
	Qualifier string
	// Payload is the event's JSON, as it came, never empty ("{}" when the body was). It is the
	// invoker's from here on: nobody else reads, changes or reuses it.
	Payload []byte
	// ClientContext is the decoded JSON of X-Amz-Client-Context, nil for none.
	ClientContext []byte
	// TraceID is the X-Amzn-Trace-Id header, "" for none.
	TraceID string
	// Tail asks for the last 4 KB of the invocation's log.
	Tail bool
}

// Answer is what a call came to. A function that failed is an Answer with FunctionError set, not
// an error. Its slices belong to the caller.
type Answer struct {
	// ExecutedVersion is "$LATEST" or the number of the version that ran.
	ExecutedVersion string
	// FunctionError is "" or "Unhandled".
	FunctionError string
	Payload       []byte
	// LogTail is raw log text, at most 4096 bytes; empty unless the call asked for it.
	LogTail []byte
	// Cold: the call waited for an instance to start.
	Cold bool
	// Outcome is how the attempt ended, as the worker numbers it.
	Outcome uint8
	// Where the time went, one after the other: the wait for an instance, the claim of the call, making
	// the instance and its init (cold calls only), the handler's own time.
	Queue, Claim, Mount, Init, Handler time.Duration
	// Instance is the id of the instance that ran it, as `doze ps` shows it.
	Instance string
}

// Event is an asynchronous invocation that is to be stored durably before it is acknowledged.
type Event struct {
	// RequestID is the id the 202 carries. If the store had to take another id (a retry on another
	// shard), Enqueue writes it back here.
	RequestID [16]byte
	Function  *registry.Function
	// Version is what the qualifier resolves to now; it is resolved anew at each attempt.
	Version       *registry.Version
	Qualifier     string
	Payload       []byte
	ClientContext []byte
	TraceID       string
}

// Reasons of a Throttled, as AWS spells them.
const (
	ReasonReserved     = "ReservedFunctionConcurrentInvocationLimitExceeded"
	ReasonConcurrent   = "ConcurrentInvocationLimitExceeded"
	ReasonRate         = "FunctionInvocationRateLimitExceeded"
	ReasonReservedRate = "ReservedFunctionInvocationRateLimitExceeded"
	ReasonCaller       = "CallerRateLimitExceeded"
)

// Throttled refuses a call for lack of concurrency or capacity: 429 TooManyRequestsException. The
// handler has not run.
type Throttled struct {
	// Reason is one of the Reason constants.
	Reason string
	// RetryAfter is a hint, 0 for none.
	RetryAfter time.Duration
}

func (e *Throttled) Error() string { return "throttled: " + e.Reason }

// InvalidRuntime says that no worker can run the function's runtime: 502
// InvalidRuntimeException. Message tells which runtimes there are.
type InvalidRuntime struct {
	Message string
}

func (e *InvalidRuntime) Error() string { return e.Message }

// NoEgress says that the function is to reach outside and the worker that was to run it cannot give it that: 502
// EC2UnexpectedException, AWS's word for a network that could not be set up. The handler has not run.
type NoEgress struct {
	Err error
}

func (e *NoEgress) Error() string { return fmt.Sprintf("no network egress: %v", e.Err) }

func (e *NoEgress) Unwrap() error { return e.Err }

// Unavailable says that the platform failed the call: 500 ServiceException, which SDKs retry.
type Unavailable struct {
	// Ran: the handler had, or may have, been given the event.
	Ran bool
	Err error
}

func (e *Unavailable) Error() string {
	if e.Ran {
		return fmt.Sprintf("call lost while it ran: %v", e.Err)
	}
	return fmt.Sprintf("call could not be run: %v", e.Err)
}

func (e *Unavailable) Unwrap() error { return e.Err }

// ErrEventsFull refuses an event because the event store is at its bound: 429
// TooManyRequestsException. Nothing was accepted.
var ErrEventsFull = errors.New("the event store is full")
