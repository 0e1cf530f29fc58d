//go:build !linux

package bench

import (
	"context"
	"errors"
)

// Run is offered on Linux only: the generator is an epoll loop.
func (l *Load) Run(context.Context) (*Sample, error) {
	return nil, errors.New("the load generator needs Linux")
}
