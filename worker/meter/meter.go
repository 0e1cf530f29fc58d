package meter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/google/uuid"
)

const (
	defaultSegmentBytes = 4 << 20
	// DefaultMaxBytes bounds the journal when Config does not: some 80 million records.
	DefaultMaxBytes = 4 << 30
	// makeAgainAfter is how long the keeper waits between tries to get room on the disk.
	makeAgainAfter = time.Second
)

// Config is what a Meter needs.
type Config struct {
	// Dir holds the journal and nothing else; it is made when it is missing.
	Dir string
	// MaxBytes bounds the journal on the disk; 0 is DefaultMaxBytes.
	MaxBytes int64
	Stream   Stream
	Logger   *slog.Logger
	// OnHealth, when set, is called on a goroutine of the meter whenever Healthy changes its mind.
	OnHealth func(error)

	// segmentBytes and disk are for tests.
	segmentBytes int64
	disk         disk
}

// Meter journals and ships one worker process's usage. Its methods may be called from many
// goroutines.
type Meter struct {
	config  Config
	journal *journal
	ship    shipper
	release func() error // the folder's lock
	stop    func()       // the announcements

	cancel  context.CancelFunc
	closing chan struct{}
	shipped chan struct{} // closed when the shipper has ended
	done    sync.WaitGroup
	once    sync.Once
	closed  error
}

// Open begins a new epoch and starts to ship what earlier ones left behind. ErrVersion, ErrInUse,
// or what the system said. A full disk is no error: the meter is unhealthy until it has room.
func Open(config Config) (*Meter, error) {
	if config.MaxBytes == 0 {
		config.MaxBytes = DefaultMaxBytes
	}
	if config.segmentBytes == 0 {
		config.segmentBytes = defaultSegmentBytes
	}
	if least := 4 * config.segmentBytes; config.MaxBytes < least {
		return nil, fmt.Errorf("meter: a journal of %d bytes is too small: the least is %d", config.MaxBytes, least)
	}
	m := &Meter{config: config, closing: make(chan struct{}), shipped: make(chan struct{})}
	lock, err := openFolder(config.Dir)
	if err != nil {
		return nil, err
	}
	m.release = lock.close
	if m.config.disk == nil {
		m.config.disk = lock
	}
	if err := m.open(); err != nil {
		return nil, errors.Join(err, lock.close())
	}
	return m, nil
}

// open does what needs the folder's lock.
func (m *Meter) open() error {
	epoch, err := uuid.NewRandom()
	if err != nil {
		return fmt.Errorf("meter: %w", err)
	}
	d := m.config.disk
	found, err := findLeftovers(d)
	if err != nil {
		return err
	}
	m.journal = newJournal(d, epoch, m.config.segmentBytes, m.config.MaxBytes)
	m.ship = shipper{
		disk: d, stream: m.config.Stream, log: m.config.Logger, journal: m.journal, closing: m.closing,
		marks: &marks{applied: make(map[string]uint64), news: make(chan struct{}, 1)},
	}
	for _, l := range found {
		for _, s := range l.segments {
			m.journal.used.Add(s.size)
		}
		m.config.Logger.Info("found usage of an earlier process", "epoch", l.epoch.String(), "segments", len(l.segments))
		m.ship.lanes = append(m.ship.lanes, &lane{epoch: l.epoch, leftover: l, patience: resendAfter})
	}
	m.ship.lanes = append(m.ship.lanes, &lane{
		epoch: epoch, run: m.journal.run, asked: true, patience: resendAfter,
		cursor: &cursor{disk: d, run: m.journal.run, sequence: 1},
	})
	for _, l := range m.ship.lanes {
		m.ship.marks.watch(l.epoch.String())
	}

	// A full disk now is like a full disk later: the keeper goes on trying.
	if err := m.journal.maintain(); err != nil && !full(err) && !errors.Is(err, errBudget) {
		return err
	}
	m.stop, err = m.config.Stream.OnApplied(func(a *dozev1.UsageApplied) {
		m.ship.marks.announce(a.Epoch, a.Sequence)
	})
	if err != nil {
		m.journal.seal()
		return errors.Join(fmt.Errorf("meter: listen for the ledger: %w", err), m.journal.maintain())
	}
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(context.Background())
	m.done.Add(2)
	go func() {
		defer m.done.Done()
		defer close(m.shipped)
		m.ship.ship(ctx)
	}()
	go func() {
		defer m.done.Done()
		m.keep(ctx)
	}()
	return nil
}

// Epoch is the id of this run of the worker, a UUID.
func (m *Meter) Epoch() string { return m.journal.epoch.String() }

// Append journals the record and returns its sequence: 1 for the epoch's first, then each the next.
// It does not keep rec. After an error the record is not journaled: ErrRecord when it is out of
// bounds; ErrClosed; ErrNoRoom, or what the disk said, and the meter is unhealthy.
func (m *Meter) Append(rec *Record) (sequence uint64, err error) { return m.journal.append(rec) }

// Reserve is asked before an event is handed to an instance: nil says that the journal has room,
// already allocated on the disk, for the records of thousands of attempts, and so for this one's.
// It costs a few nanoseconds and there is nothing to give back.
func (m *Meter) Reserve() error { return m.journal.healthy() }

// Healthy returns nil, or why the worker must take no calls: ErrNoRoom with the reason, or
// ErrClosed. It becomes nil again by itself when there is room.
func (m *Meter) Healthy() error { return m.journal.healthy() }

// Lag is how many records of this run the ledger has not announced to have.
func (m *Meter) Lag() int64 {
	m.journal.mu.Lock()
	appended := m.journal.next - 1
	m.journal.mu.Unlock()
	return int64(appended - min(appended, m.ship.marks.get(m.Epoch())))
}

// Bytes is what the journal takes on the disk, with what earlier runs left.
func (m *Meter) Bytes() int64 { return m.journal.used.Load() }

// Close ends the epoch: Append fails from now on, what is journaled is shipped, and when the ledger
// has applied all of it the epoch is retired and its files are gone. When ctx ends first, Close
// says so and leaves the files for the next Open. It returns when nothing of the meter runs.
func (m *Meter) Close(ctx context.Context) error {
	m.once.Do(func() {
		m.journal.seal()
		close(m.closing)
		select {
		case <-m.shipped:
		case <-ctx.Done():
		}
		m.cancel()
		m.done.Wait()
		m.stop()
		m.closed = errors.Join(m.unapplied(), m.journal.maintain(), m.release())
	})
	return m.closed
}

// unapplied says whether an epoch is left. The shipper has ended.
func (m *Meter) unapplied() error {
	for _, l := range m.ship.lanes {
		if !l.retired {
			return errUnapplied
		}
	}
	return nil
}

// keep has the next segment ready before it is needed, and tells when there is none.
func (m *Meter) keep(ctx context.Context) {
	var told error
	for {
		var again <-chan time.Time
		if err := m.journal.maintain(); err != nil {
			again = time.After(makeAgainAfter)
		}
		if err := m.journal.healthy(); (err == nil) != (told == nil) {
			told = err
			if err == nil {
				m.config.Logger.Info("the usage journal has room again")
			} else if !errors.Is(err, ErrClosed) {
				m.config.Logger.Error("usage cannot be journaled; the worker takes no calls", "error", err)
			}
			if m.config.OnHealth != nil {
				m.config.OnHealth(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-m.journal.keep:
		case <-again:
		}
	}
}
