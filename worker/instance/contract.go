// Package instance is one execution environment: a sandbox with a runtime in it, the Runtime API
// it is served through, its log lines and its faults.
//
// It knows the AWS Lambda Runtime API and how AWS words what goes wrong. It must not know queues,
// claims or bills: whoever owns it hands it one event at a time and is told what came of it.
package instance

import (
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Event is one invocation for the handler.
type Event struct {
	// RequestID is the lower-case UUID that the caller, the logs and the context carry.
	RequestID string
	// InvokedARN is the ARN as it was called, qualifier included.
	InvokedARN string
	// Payload is the event's JSON, as the caller sent it. The instance does not keep it after Done.
	Payload []byte
	// ClientContext is the decoded JSON of X-Amz-Client-Context; nil for none.
	ClientContext []byte
	TraceID       string
	// Timeout bounds the handler; the instance is ended when it passes.
	Timeout time.Duration
	// Tail asks for the last 4 KB of this invocation's log in Result.LogTail.
	Tail bool
}

// Outcome says how an attempt ended, for the bill, metrics and retries. The numbers are stored.
type Outcome uint8

const (
	OK           Outcome = iota + 1
	HandlerError         // the handler raised; the instance lives on
	InitError            // the runtime reported an init error, or init ended or never ended
	Timeout              // the deadline passed
	Exit                 // the process tree ended by itself
	OutOfMemory          // the memory limit ended it
	TooLarge             // the response was over the limit; the instance lives on
	Killed               // ended by the worker for its own reasons: the platform's fault, not billed
)

// outcomes are their names, in metrics and logs.
var outcomes = [...]string{"", "ok", "handler_error", "init_error", "timeout", "exit", "out_of_memory", "too_large", "killed"}

func (o Outcome) String() string {
	if o == 0 || int(o) >= len(outcomes) {
		return "unknown"
	}
	return outcomes[o]
}

// Result is what came of one event (or of an init that failed before any event: see Handler).
type Result struct {
	Outcome Outcome
	// Payload is the response, or AWS's error object when FunctionError is set.
	Payload []byte
	// FunctionError is "" or "Unhandled".
	FunctionError string
	// Began is when the event was given to the instance; zero when there was none.
	Began time.Time
	// Duration is the handler's time; Init is the init phase's, on the first event only.
	Duration, Init time.Duration
	// Unread is for how long of it the answer lay in the worker's socket, to a tick of the kernel (1 to 10 ms) but
	// right on average: time of a busy platform. 0 where that cannot be told.
	Unread time.Duration
	// BilledMs is Duration plus Init, in whole milliseconds, rounded up, at least 1.
	BilledMs uint32
	// MaxMemoryMB is the most the instance has used so far.
	MaxMemoryMB int
	// LogTail is at most 4096 bytes of log, REPORT line included, when the event asked for it.
	LogTail []byte
}

// Handler is told what an instance does. The calls for one instance come one at a time, in an
// order that begins with at most one Ready and ends with exactly one Ended. They come on the
// instance's own goroutines and must not block: what they delay is the next event.
type Handler interface {
	// Ready: the runtime asked for its first event. init is what it took since the process started.
	Ready(i *Instance, init time.Duration)
	// Done: the event given to Invoke has come to its end. When init failed before the first Ready,
	// Done is called once with Outcome InitError or OutOfMemory, whether or not an
	// event was waiting: the attempt to start is itself billed and answered. An instance that is
	// stopped before Ready is told Done with Outcome Killed. r and all it points to are the Handler's.
	Done(i *Instance, r *Result)
	// Idle: the runtime asked for the next event after a Done; Invoke may be called.
	Idle(i *Instance)
	// Ended: every process is gone and everything of the instance has been removed.
	Ended(i *Instance)
}

// LogSink takes an instance's log lines. It must not block for long; it may drop when it cannot
// keep up, and then says so with a line of its own.
type LogSink interface {
	// Lines hands over whole lines, without newline, in order. The sink must not keep the slices.
	Lines(spec *dozev1.FunctionSpec, stream string, atMs int64, lines [][]byte)
}

// Limits of AWS Lambda that the Runtime API enforces.
const (
	// MaxResponseBytes is the most a handler may answer; AWS's message names 100 bytes more than
	// the 6 MiB it documents.
	MaxResponseBytes = 6291556
	// InitLimit is how long an init may take before it counts as failed.
	InitLimit = 10 * time.Second
	// LogTailBytes is how much of an invocation's log X-Amz-Log-Result carries.
	LogTailBytes = 4096
	// MaxLineBytes bounds one log line; a longer one is cut into several.
	MaxLineBytes = 256 << 10
)
