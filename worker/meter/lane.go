package meter

import (
	"sync"
	"time"

	"github.com/google/uuid"
)

// marks is how far the ledger is said to have come, for the epochs that the shipper asked about.
type marks struct {
	mu      sync.Mutex
	applied map[string]uint64
	news    chan struct{}
}

// announce takes an announcement; those of unknown epochs, other workers', are dropped.
func (m *marks) announce(epoch string, sequence uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mark, ok := m.applied[epoch]; ok && sequence > mark {
		m.applied[epoch] = sequence
		wake(m.news)
	}
}

func (m *marks) watch(epoch string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied[epoch] = 0
}

func (m *marks) forget(epoch string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.applied, epoch)
}

func (m *marks) get(epoch string) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applied[epoch]
}

// lane ships one epoch. Only the shipper's goroutine uses it.
type lane struct {
	epoch    uuid.UUID
	leftover *leftover // nil for the epoch of this process
	run      *run      // nil until a leftover has been loaded
	cursor   *cursor

	asked   bool      // the ledger has been asked where to begin
	dueAt   time.Time // when a batch that is not full goes; zero while there is nothing
	sent    uint64    // published and acknowledged up to here
	applied uint64
	askAt   time.Time // when to ask for the mark; zero while nothing is unapplied
	// resendAt is when to send again what is not applied; patience is how long it was away.
	resendAt time.Time
	patience time.Duration
	// retryAt and backoff: after an error the lane rests.
	retryAt time.Time
	backoff time.Duration
	retired bool
}

// hurry ends the waits of a lane, because the worker is about to end.
func (l *lane) hurry() {
	l.retryAt, l.backoff = time.Time{}, 0
	if !l.askAt.IsZero() {
		l.askAt = time.Now()
	}
}

func (l *lane) close() {
	if l.cursor != nil {
		l.cursor.close()
	}
}
