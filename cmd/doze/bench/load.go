package bench

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// Load is a bounded number of calls over a fixed number of keep-alive connections.
type Load struct {
	// Addr is host:port; Request the bytes of one whole request.
	Addr    string
	Request []byte
	// Expect is the body that an answer must have; nil for any.
	Expect      []byte
	Connections int
	// Warmup is not measured; Window is.
	Warmup, Window time.Duration
	// PerSecond is 0 for a closed loop: each connection sends its next call when the last was
	// answered. Otherwise the loop is open: calls are due at this constant rate whether or not
	// earlier ones were answered, and latency counts from when a call was due. So a stall shows
	// in every call that was due during it (no coordinated omission).
	PerSecond float64
	// Calls ends the load after so many, 0 for no such bound.
	Calls int64
	// Drain is how long calls may take after the window; what is unanswered then is an error.
	Drain time.Duration
	// OnAnswer is called for each good answer, in the loop. body is valid during the call only.
	OnAnswer func(sent, answered time.Time, body []byte)
}

var errUnanswered = errors.New("no answer before the load ended")

// maxReconnects bounds how often a load opens a connection anew before it gives up.
const maxReconnects = 32

// maxRequest is what fits into an empty socket buffer at once.
const maxRequest = 16 << 10

// checkAnswer says what is wrong with an answer.
func checkAnswer(r response, expect []byte) error {
	switch {
	case r.status != 200:
		return fmt.Errorf("status %d: %.200q", r.status, r.body)
	case r.functionError:
		return fmt.Errorf("function error: %.200q", r.body)
	case expect != nil && !bytes.Equal(r.body, expect):
		return fmt.Errorf("answer %.100q, want %.100q", r.body, expect)
	}
	return nil
}
