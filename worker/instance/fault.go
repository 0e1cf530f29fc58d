package instance

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// fault is an end that the handler did not bring about itself, in AWS's words.
type fault struct {
	outcome Outcome
	// errorType is AWS's name of it.
	errorType string
	// text is the message without the request id in front.
	text string
	// status is what REPORT says: "timeout" or "error".
	status string
}

// payload is the error object that the caller gets:
// {"errorType":..,"errorMessage":"RequestId: <id> Error: <text>"}.
func (f *fault) payload(requestID string) []byte {
	return errorObject(f.errorType, "RequestId: "+requestID+" Error: "+f.text)
}

func errorObject(errorType, message string) []byte {
	b, err := json.Marshal(struct {
		ErrorType    string `json:"errorType"`
		ErrorMessage string `json:"errorMessage"`
	}{errorType, message})
	if err != nil { // two strings always marshal
		return []byte(`{"errorType":"Runtime.Unknown","errorMessage":""}`)
	}
	return b
}

func timedOut(after time.Duration) *fault {
	return &fault{outcome: Timeout, errorType: "Sandbox.Timedout",
		text: fmt.Sprintf("Task timed out after %.2f seconds", after.Seconds()), status: "timeout"}
}

// exited words how the process tree ended as AWS does.
func exited(e sandbox.Exit) *fault {
	f := &fault{outcome: Exit, errorType: "Runtime.ExitError", status: "error"}
	if e.OutOfMemory {
		f.outcome = OutOfMemory
	}
	switch {
	case e.Signal != "":
		f.text = "Runtime exited with error: signal: " + e.Signal
	case e.Code != 0:
		f.text = fmt.Sprintf("Runtime exited with error: exit status %d", e.Code)
	default:
		f.text = "Runtime exited without providing a reason"
	}
	return f
}

func stopped() *fault {
	return &fault{outcome: Killed, errorType: "Sandbox.Failure",
		text: "The execution environment was ended by the platform", status: "error"}
}

// invalidEntrypoint words why the program could not be executed. cause may be nil.
func invalidEntrypoint(argv0 string, cause error) *fault {
	f := &fault{outcome: InitError, errorType: "Runtime.InvalidEntrypoint", status: "error",
		text: "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"}
	var errno syscall.Errno
	if argv0 != "" && errors.As(cause, &errno) && errno != syscall.ENOENT {
		f.text = "fork/exec " + argv0 + ": " + errno.Error()
	}
	return f
}

// responseTooLarge is the whole payload: AWS puts no request id into this one.
func responseTooLarge() []byte {
	return []byte(`{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}`)
}
