//go:build !linux

// Package linux is the sandbox made of Linux's own walls. On this system there are none of them.
package linux

import (
	"context"
	"errors"
	"log/slog"

	"github.com/doze-run/doze/worker/sandbox"
)

// Options are those of the implementation on Linux.
type Options struct {
	DataDir           string
	Logger            *slog.Logger
	UIDBase, UIDCount int
}

// Sandbox cannot be made here.
type Sandbox struct{ sandbox.Sandbox }

// Examine says that it needs Linux.
func Examine(context.Context) []sandbox.Finding {
	return []sandbox.Finding{{Name: "kernel", State: sandbox.Missing, Found: "not Linux", Needed: true,
		Means: "the linux sandbox cannot be had here", Fix: "Linux; or, for functions that you trust as yourself, --sandbox process"}}
}

// New says that it needs Linux.
func New(Options) (*Sandbox, error) {
	return nil, errors.New("linux sandbox: needs Linux")
}
