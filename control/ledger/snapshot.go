package ledger

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/doze-run/doze/control/internal/ndjson"
)

// Of the snapshot: a header line, a line for each epoch, by name, and a line for each function
// version, by account, function and version. A released format keeps a file in testdata for ever.
const (
	snapshotFormat  = "doze-ledger"
	snapshotVersion = 1
)

// ErrSnapshot is a snapshot that cannot be read: damaged, or of another format.
var ErrSnapshot = errors.New("ledger: unreadable snapshot")

type snapshotHeader struct {
	Format   string `json:"format"`
	Version  int    `json:"version"`
	Epochs   int    `json:"epochs"`
	Series   int    `json:"series"`
	Horizon  int64  `json:"horizon"`
	Unbilled uint64 `json:"unbilled"`
}

type epochLine struct {
	Epoch   string `json:"epoch"`
	Mark    uint64 `json:"mark"`
	Ended   int64  `json:"ended"`
	Floor   int64  `json:"floor"`
	Retired bool   `json:"retired,omitempty"`
}

// seriesLine has its cells as arrays: hour (or month), requests, MB·ms, init ms, errors.
type seriesLine struct {
	Account  string      `json:"account"`
	Function string      `json:"function"`
	Version  string      `json:"version"`
	Months   [][5]uint64 `json:"months,omitempty"`
	Hours    [][5]uint64 `json:"hours,omitempty"`
}

// Snapshot is the ledger at one point in time; it never changes. To take one copies what each
// function version points to, but not its cells: those are copied by the next Apply that writes
// to them.
type Snapshot struct {
	header snapshotHeader
	epochs []epochLine
	series []series
}

// Snapshot is the ledger as it is now.
func (l *Ledger) Snapshot() *Snapshot {
	l.mu.Lock()
	l.taken++
	s := &Snapshot{
		header: snapshotHeader{snapshotFormat, snapshotVersion, len(l.epochs), len(l.series), l.horizon, l.unbilled},
		epochs: make([]epochLine, 0, len(l.epochs)),
		series: make([]series, 0, len(l.series)),
	}
	for name, e := range l.epochs {
		s.epochs = append(s.epochs, epochLine{name, e.mark, e.ended, e.floor, e.retired})
	}
	for _, one := range l.series {
		s.series = append(s.series, *one)
	}
	l.mu.Unlock()
	s.sort()
	return s
}

// Restore replaces the whole ledger.
func (l *Ledger) Restore(from *Snapshot) {
	epochs := make(map[string]*epoch, len(from.epochs))
	retired := 0
	for _, e := range from.epochs {
		epochs[e.Epoch] = &epoch{mark: e.Mark, ended: e.Ended, floor: e.Floor, retired: e.Retired}
		if e.Retired {
			retired++
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epochs, l.retired, l.horizon, l.unbilled = epochs, retired, from.header.Horizon, from.header.Unbilled
	l.series, l.accounts, l.mbMs = make(map[key]*series, len(from.series)), map[string][]*series{}, 0
	l.taken++
	for _, one := range from.series {
		one.taken = 0 // shared with the snapshot
		l.put(&one)
		for _, c := range slices.Concat(one.months, one.hours) {
			l.mbMs += c.MBMs
		}
	}
}

// Write writes the canonical form: equal ledgers give equal bytes.
func (s *Snapshot) Write(w io.Writer) error {
	out := ndjson.NewWriter(w)
	err := out.Write(s.header)
	for i := 0; err == nil && i < len(s.epochs); i++ {
		err = out.Write(s.epochs[i])
	}
	for i := 0; err == nil && i < len(s.series); i++ {
		one := &s.series[i]
		err = out.Write(seriesLine{one.account, one.function, one.version, rows(one.months), rows(one.hours)})
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return fmt.Errorf("ledger: write snapshot: %w", err)
	}
	return nil
}

// Hash is the SHA-256 of the canonical form: what replicas at the same index compare.
func (s *Snapshot) Hash() [sha256.Size]byte {
	h := sha256.New()
	// A hash never fails to be written to, and numbers and names always encode.
	_ = s.Write(h)
	return [sha256.Size]byte(h.Sum(nil))
}

// ReadSnapshot reads what Write wrote, and no byte more when r is a *bufio.Reader. The error is
// ErrSnapshot.
func ReadSnapshot(r io.Reader) (*Snapshot, error) {
	in := ndjson.NewReader(r)
	s := &Snapshot{}
	if err := in.Read(&s.header); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	if s.header.Format != snapshotFormat || s.header.Version != snapshotVersion {
		return nil, fmt.Errorf("%w: %q version %d, this Doze reads %q version %d",
			ErrSnapshot, s.header.Format, s.header.Version, snapshotFormat, snapshotVersion)
	}
	for range s.header.Epochs {
		var e epochLine
		if err := in.Read(&e); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
		}
		s.epochs = append(s.epochs, e)
	}
	for range s.header.Series {
		var line seriesLine
		if err := in.Read(&line); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
		}
		months, ok1 := cells(line.Months)
		hours, ok2 := cells(line.Hours)
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("%w: cells of %s/%s:%s", ErrSnapshot, line.Account, line.Function, line.Version)
		}
		s.series = append(s.series, series{key: key{line.Account, line.Function, line.Version}, months: months, hours: hours})
	}
	if !s.sorted() {
		return nil, fmt.Errorf("%w: out of order", ErrSnapshot)
	}
	return s, nil
}

func (s *Snapshot) sort() {
	slices.SortFunc(s.epochs, compareEpochs)
	slices.SortFunc(s.series, compareSeries)
}

// sorted reports whether everything is in order and named once.
func (s *Snapshot) sorted() bool {
	for i := 1; i < len(s.epochs); i++ {
		if compareEpochs(s.epochs[i-1], s.epochs[i]) >= 0 {
			return false
		}
	}
	for i := 1; i < len(s.series); i++ {
		if compareSeries(s.series[i-1], s.series[i]) >= 0 {
			return false
		}
	}
	return true
}

func compareEpochs(a, b epochLine) int { return cmp.Compare(a.Epoch, b.Epoch) }

func compareSeries(a, b series) int {
	return cmp.Or(cmp.Compare(a.account, b.account), cmp.Compare(a.function, b.function), cmp.Compare(a.version, b.version))
}

func rows(cells []cell) [][5]uint64 {
	rows := make([][5]uint64, len(cells))
	for i, c := range cells {
		rows[i] = [5]uint64{uint64(c.at), c.Requests, c.MBMs, c.InitMs, c.Errors}
	}
	return rows
}

// cells is the reverse of rows; ok is false when they are out of order or out of range.
func cells(rows [][5]uint64) (list []cell, ok bool) {
	list = make([]cell, len(rows))
	for i, r := range rows {
		if r[0] > maxEndedMs/msPerHour || i > 0 && rows[i-1][0] >= r[0] {
			return nil, false
		}
		list[i] = cell{int32(r[0]), Totals{r[1], r[2], r[3], r[4]}}
	}
	return list, true
}
