package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/gateway"
	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/quorum"
	"github.com/doze-run/doze/control/registry"
)

const (
	// storageCheck is how often the stores are looked at.
	storageCheck = 500 * time.Millisecond
	// reserve is how many bytes of the disk are left to work that was accepted before. With less
	// nothing new is stored, and streams that have stopped are not started again.
	reserve = 16 << 20
	// restartWait is the wait after a restart that did not help, doubled up to restartWaitMax.
	restartWait    = time.Second
	restartWaitMax = 30 * time.Second
)

// storage watches what the node keeps on its disk. A full disk stops streams and the Raft log; they
// say so, and go on by themselves when there is room again.
type storage struct {
	dir    string
	server *bus.Server
	quorum *quorum.Node
	// revive makes what a restart of the server has lost.
	revive func(ctx context.Context) error
	// fail ends the node, for whoever started it to start it anew.
	fail func(error)
	log  *slog.Logger
	why  atomic.Pointer[error]
}

// Err is why something cannot be stored now, nil when all can.
func (s *storage) Err() error {
	if why := s.why.Load(); why != nil {
		return *why
	}
	return nil
}

// run looks after the stores until ctx ends.
func (s *storage) run(ctx context.Context) {
	ticker := time.NewTicker(storageCheck)
	defer ticker.Stop()
	wait, next := restartWait, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if s.check() == nil {
			if time.Since(next) > restartWaitMax {
				wait = restartWait
			}
			continue
		}
		if s.server.Healthy() == nil || time.Now().Before(next) || s.room() < reserve {
			continue // the log sees to itself
		}
		next, wait = time.Now().Add(wait), min(2*wait, restartWaitMax)
		s.log.Info("starting the streams again")
		err := s.server.Restart()
		if errors.Is(err, bus.ErrStuck) {
			s.fail(err)
			return
		}
		if err == nil {
			err = s.revive(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Error("start the streams again", "err", err)
		}
		s.check()
	}
}

// check looks at the stores, and logs when what it finds has changed.
func (s *storage) check() error {
	err := errors.Join(s.server.Healthy(), s.quorum.LogErr())
	if err != nil {
		err = fmt.Errorf("%s: %w", s.advice(err), err)
	}
	before := s.Err()
	if err == nil {
		s.why.Store(nil)
	} else {
		s.why.Store(&err)
	}
	switch {
	case before == nil && err != nil:
		s.log.Error("storing has stopped", "err", err)
	case before != nil && err == nil:
		s.log.Info("storing goes on")
	}
	return err
}

// advice is for people: what is wrong and what they can do.
func (s *storage) advice(err error) string {
	if full(err) || s.room() < reserve {
		return fmt.Sprintf("the disk of %s is full: free some room, and Doze goes on by itself", s.dir)
	}
	return fmt.Sprintf("%s cannot be written", s.dir)
}

// room is how many bytes the disk has for us.
func (s *storage) room() int64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		s.log.Warn("look at the disk", "err", err)
		return 0
	}
	return int64(fs.Bavail) * fs.Bsize
}

// full tells whether an error is a full disk's. NATS hands on texts only.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || strings.Contains(err.Error(), syscall.ENOSPC.Error())
}

// explain makes of an operation's failure what its caller is told, if it is likely because nothing
// can be stored.
func (s *storage) explain(err error) error {
	if err == nil || s.Err() == nil && s.check() == nil && s.room() >= reserve {
		return err
	}
	return &gateway.Outage{Message: "Nothing can be stored: " + s.advice(err) + ".", Err: err}
}

// admit refuses what would fill the disk: what accepted work still writes (usage, logs, the Raft
// log) is to find room.
func (s *storage) admit(bytes int64) error {
	err := s.Err()
	if err == nil && s.room() < bytes+reserve {
		err = syscall.ENOSPC
	}
	if err != nil {
		return &gateway.Outage{Message: "Nothing can be stored: " + s.advice(err) + ".", Err: err}
	}
	return nil
}

// The stores as the gateway and the invoker see them.

type storedCode struct {
	gateway.CodeStore
	storage *storage
}

func (s storedCode) Put(ctx context.Context, sha256 string, zip []byte) error {
	if err := s.storage.admit(int64(len(zip))); err != nil {
		return err
	}
	return s.storage.explain(s.CodeStore.Put(ctx, sha256, zip))
}

type storedState struct {
	gateway.Proposer
	storage *storage
}

func (s storedState) Propose(ctx context.Context, command registry.Command) (any, error) {
	answer, err := s.Proposer.Propose(ctx, command)
	return answer, s.storage.explain(err)
}

// storedCalls runs calls, which need the disk for code that a worker has not unpacked yet.
type storedCalls struct {
	*invoke.Invoker
	storage *storage
}

func (s storedCalls) Invoke(ctx context.Context, call *invoke.Call) (*invoke.Answer, error) {
	answer, err := s.Invoker.Invoke(ctx, call)
	if unavailable := (*invoke.Unavailable)(nil); errors.As(err, &unavailable) && !unavailable.Ran {
		err = s.storage.explain(err)
	}
	return answer, err
}

type storedEvents struct {
	invoke.Acceptor
	storage *storage
}

func (s storedEvents) Accept(ctx context.Context, event *invoke.Event) error {
	if err := s.storage.admit(int64(len(event.Payload))); err != nil {
		return err
	}
	return s.storage.explain(s.Acceptor.Accept(ctx, event))
}
