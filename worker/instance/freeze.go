package instance

import (
	"fmt"
	"sync"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// freezer stops the processes of an instance that has been idle for a while, and lets them go on
// before the next event is written. An order to freeze that is under way is waited for, so that a
// thaw is never overtaken by it.
type freezer struct {
	process sandbox.Freezer // nil: never freezes
	after   time.Duration

	mu     sync.Mutex // held while an order is given
	frozen bool
}

// freezeDue freezes the instance if it still is idle and has been for long enough. It is the freeze
// alarm's fire.
func (i *Instance) freezeDue() {
	f := &i.freezer
	f.mu.Lock()
	defer f.mu.Unlock()
	i.mu.Lock()
	idle, since := i.state == Idle, i.since
	i.mu.Unlock()
	if !idle || f.frozen {
		return
	}
	if at := since.Add(f.after); time.Now().Before(at) {
		i.freezeAlarm.by(at)
		return
	}
	// Invoke leaves Idle before it takes f.mu: either it was seen above, or it waits for f.mu now
	// and thaws what is frozen here.
	if err := f.process.Freeze(); err != nil {
		i.options.Logger.Warn("instance not frozen", "instance", i.launch.ID, "error", err)
		return
	}
	f.frozen = true
}

// thaw lets a frozen instance go on. The state is not Idle any more.
func (f *freezer) thaw() error {
	if f.process == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.frozen {
		return nil
	}
	if err := f.process.Thaw(); err != nil {
		return fmt.Errorf("instance: thaw: %w", err)
	}
	f.frozen = false
	return nil
}
