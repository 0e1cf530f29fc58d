package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
)

// DefaultFreezeAfter is how long an instance stays idle before it is frozen. A next call within
// that time finds it thawed; AWS freezes at once.
const DefaultFreezeAfter = 10 * time.Millisecond

// defaultMaxProcesses is AWS's bound on processes and threads of one execution environment.
const defaultMaxProcesses = 1024

// Options are the same for all instances of a worker.
type Options struct {
	Sandbox sandbox.Sandbox
	Logs    LogSink
	Logger  *slog.Logger
	// RuntimeDir is the host folder that runtimes.Install filled; it is seen as /var/runtime.
	RuntimeDir string
	// Region is AWS_REGION inside.
	Region string
	// HardCPU caps an instance at its share of CPU even when CPUs are free.
	HardCPU bool
	// MaxProcesses bounds processes and threads of one instance; 0 is AWS's 1024.
	MaxProcesses int
	// FreezeAfter is how long an idle instance runs on before it is frozen; 0 never freezes.
	// Sandboxes whose processes are no sandbox.Freezer never freeze.
	FreezeAfter time.Duration
}

// Credentials are what the function finds as AWS_ACCESS_KEY_ID and so on.
type Credentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
}

// Launch is what one instance is made of.
type Launch struct {
	// ID is unique on this machine for all time: [a-z0-9-]{1,64}.
	ID string
	// Spec is not changed while the instance lives.
	Spec *dozev1.FunctionSpec
	// Runtime is what Spec.Runtime was resolved to on this machine.
	Runtime runtimes.Runtime
	// CodeDir is the unpacked package; OptDir the merged layers, "" for none. They stay unchanged
	// until Ended.
	CodeDir, OptDir string
	Credentials     Credentials
	// RequestID is the call that this start is for. An init that fails is answered and logged in
	// its name. "" when no call waits: an id of its own is made.
	RequestID string
	// Provisioned says that the instance is started before anybody called.
	Provisioned bool
	// InitLimit is how long init may take; 0 is InitLimit (10 s), AWS's.
	InitLimit time.Duration
	// Start starts the process in place of Options.Sandbox.Start; nil for that.
	Start func(context.Context, sandbox.Config) (sandbox.Process, error)
}

func (o *Options) check() error {
	if o.Sandbox == nil || o.Logs == nil || o.Logger == nil {
		return errors.New("instance: options need a sandbox, a log sink and a logger")
	}
	return nil
}

func (l *Launch) check() error {
	switch {
	case l.Spec == nil:
		return errors.New("instance: launch without a function spec")
	case l.ID == "" || len(l.ID) > 64:
		return fmt.Errorf("instance: id %q is not 1 to 64 characters", l.ID)
	case l.Spec.MemoryMb == 0:
		return errors.New("instance: function spec without memory")
	case l.RequestID != "" && !validRequestID(l.RequestID):
		return fmt.Errorf("%w: %q", ErrRequestID, l.RequestID)
	}
	return nil
}

// validRequestID keeps what could split a header or a log line out of both.
func validRequestID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}
