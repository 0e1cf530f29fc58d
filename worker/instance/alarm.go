package instance

import (
	"sync"
	"time"
)

// alarm is one timer for deadlines that are mostly met. It is set to the earliest time anyone
// asked for and never put back: when it rings early, fire finds nothing due and asks again. So a
// call whose deadline is later than one already set costs no timer work at all.
type alarm struct {
	fire func()

	mu      sync.Mutex
	timer   *time.Timer
	at      time.Time // when it rings; zero when it is not set
	closed  bool
	running sync.WaitGroup // one for each set timer until it rang and fire returned
}

// by makes sure that fire runs at the time given or earlier.
func (a *alarm) by(at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || (!a.at.IsZero() && !a.at.After(at)) {
		return
	}
	if a.timer != nil && !a.at.IsZero() && a.timer.Stop() {
		a.running.Done()
	}
	a.at = at
	a.running.Add(1)
	wait := time.Until(at)
	if a.timer == nil {
		a.timer = time.AfterFunc(wait, a.ring)
		return
	}
	a.timer.Reset(wait)
}

func (a *alarm) ring() {
	defer a.running.Done()
	a.mu.Lock()
	a.at = time.Time{}
	closed := a.closed
	a.mu.Unlock()
	if !closed {
		a.fire()
	}
}

// close unsets the alarm and waits for a fire that is running. It must not be called by fire.
func (a *alarm) close() {
	a.mu.Lock()
	a.closed = true
	if a.timer != nil && !a.at.IsZero() && a.timer.Stop() {
		a.running.Done()
	}
	a.at = time.Time{}
	a.mu.Unlock()
	a.running.Wait()
}
