// Package history is what happened in a run of a cluster, as those saw it who used it: one JSON object a line, in
// the order in which they were written down.
//
// It knows lines and files. It must not know whether what it holds is right; package check does.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Kind says what an event is.
type Kind string

// The kinds, and which members they have beside At.
const (
	// Ask: somebody is about to call. Call, Function, Node, Async, Limit.
	Ask Kind = "ask"
	// Answer: what came of it. Call, Status, Error; of a sync call that was answered, Of, Run, Failed.
	Answer Kind = "answer"
	// Begin: a handler began with a call. Call, Function, Run, Code, Request.
	Begin Kind = "begin"
	// End: that handler is about to return. Call, Run, Failed.
	End Kind = "end"
	// Gone: the process that ran it ended without saying so. Call, Run.
	Gone Kind = "gone"
	// Left: an event of a failed call arrived at its destination. Call.
	Left Kind = "left"
	// Operate: an operation on a function is about to be sent. Op, Does, Function, Value, Node.
	Operate Kind = "operate"
	// Done: what came of it. Op, Value, Status, Error.
	Done Kind = "done"
	// Fault: something was done to Node, or to the cluster. Does.
	Fault Kind = "fault"
	// Mended: the last of it was taken back, and the cluster said that it was whole. Does.
	Mended Kind = "mended"
	// Final: what a control node said at the end. Node, Index, Hash, and Billed by function.
	Final Kind = "final"
	// Note: what the run says of itself. Does.
	Note Kind = "note"
)

// Event is one line. Members that do not belong to its kind are empty.
type Event struct {
	// At is nanoseconds since the run began, on one monotonic clock.
	At   int64 `json:"at"`
	Kind Kind  `json:"kind"`

	Call     string `json:"call,omitempty"`
	Function string `json:"function,omitempty"`
	Node     string `json:"node,omitempty"`
	Async    bool   `json:"async,omitempty"`
	// Limit is the function's timeout in milliseconds.
	Limit int64 `json:"limit,omitempty"`

	// Status is HTTP's, 0 when there was no answer: Error says what instead.
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
	// Of is the call that the answer says it belongs to.
	Of string `json:"of,omitempty"`
	// Run is one run of a handler, unique.
	Run    string `json:"run,omitempty"`
	Failed bool   `json:"failed,omitempty"`
	// Code is the number of the update that made the code that ran.
	Code    int64  `json:"code,omitempty"`
	Request string `json:"request,omitempty"`

	Op    string `json:"op,omitempty"`
	Does  string `json:"does,omitempty"`
	Value string `json:"value,omitempty"`

	Index  int64            `json:"index,omitempty"`
	Hash   string           `json:"hash,omitempty"`
	Billed map[string]int64 `json:"billed,omitempty"`
}

// Log writes a history. Its methods may be called from many goroutines.
type Log struct {
	begun time.Time
	mu    sync.Mutex
	all   []Event
	file  *os.File
	out   *bufio.Writer
	err   error
}

// Create begins a history in a new file.
func Create(path string) (*Log, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	return &Log{begun: time.Now(), file: f, out: bufio.NewWriter(f)}, nil
}

// Since is the time on the history's clock.
func (l *Log) Since() time.Duration { return time.Since(l.begun) }

// Add writes an event down, and says when that was.
func (l *Log) Add(e Event) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Since(l.begun)
	e.At = int64(at)
	l.all = append(l.all, e)
	line, err := json.Marshal(e)
	if err == nil {
		_, err = l.out.Write(append(line, '\n'))
	}
	if l.err == nil {
		l.err = err
	}
	return at
}

// Events are all so far.
func (l *Log) Events() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Event(nil), l.all...)
}

// Close ends the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.out.Flush(); l.err == nil {
		l.err = err
	}
	if err := l.file.Close(); l.err == nil {
		l.err = err
	}
	if l.err != nil {
		return fmt.Errorf("history: %w", l.err)
	}
	return nil
}

// Read reads a history.
func Read(r io.Reader) (events []Event, err error) {
	d := json.NewDecoder(r)
	for {
		var e Event
		if err := d.Decode(&e); err == io.EOF {
			return events, nil
		} else if err != nil {
			return nil, fmt.Errorf("history: line %d: %w", len(events)+1, err)
		}
		events = append(events, e)
	}
}
