package meter

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/google/uuid"
)

// leftover is an epoch that an earlier process left on the disk.
type leftover struct {
	epoch uuid.UUID
	// segments have name, index and size only, in the order of the index.
	segments []segment
	// retired is the name of the file that says that all was applied, "" for none; next is the
	// sequence after the epoch's last record then.
	retired string
	next    uint64
}

// findLeftovers lists the earlier epochs, oldest index first within each, epochs in the order of
// their ids. ErrVersion when one was written in another format.
func findLeftovers(d disk) ([]*leftover, error) {
	files, err := d.list()
	if err != nil {
		return nil, fmt.Errorf("meter: %w", err)
	}
	found := make(map[uuid.UUID]*leftover)
	get := func(epoch uuid.UUID) *leftover {
		if found[epoch] == nil {
			found[epoch] = &leftover{epoch: epoch}
		}
		return found[epoch]
	}
	for name, size := range files {
		if epoch, n, ok := parseName(name, retireSuffix); ok {
			l := get(epoch)
			l.retired, l.next = name, n
		}
		epoch, n, ok := parseName(name, segmentSuffix)
		if !ok || n > 1<<32-1 {
			continue
		}
		if _, err := readHeader(d, name); errors.Is(err, ErrVersion) {
			return nil, fmt.Errorf("%w: %s: start the version of doze that wrote it, which ships it, or move the file away and lose its usage", err, name)
		} else if err != nil && !errors.Is(err, errTorn) && !errors.Is(err, errEnd) {
			return nil, fmt.Errorf("meter: %w", err)
		}
		l := get(epoch)
		l.segments = append(l.segments, segment{name: name, index: uint32(n), size: size})
	}
	all := make([]*leftover, 0, len(found))
	for _, l := range found {
		slices.SortFunc(l.segments, func(a, b segment) int { return cmp.Compare(a.index, b.index) })
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b *leftover) int { return bytes.Compare(a.epoch[:], b.epoch[:]) })
	return all, nil
}

func readHeader(d disk, name string) (header, error) {
	f, err := d.open(name)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	b := make([]byte, headerBytes)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return header{}, err
	}
	if n == 0 {
		return header{}, errEnd
	}
	return decodeHeader(b[:n])
}

// load reads all segments, cuts what a crash tore, and makes the run of what is good. A segment
// whose header says that it begins before the one before it ended overrules that end: it was never
// acknowledged. A segment that begins later proves that records were lost, which no crash of a
// process does; it and what follows it are set aside, since the ledger counts an epoch without gaps.
func (l *leftover) load(d disk, log *slog.Logger) (*run, error) {
	r := &run{epoch: l.epoch, next: max(1, l.next)}
	for i, s := range l.segments {
		err := s.scan(d, l.epoch)
		if errors.Is(err, errEnd) || errors.Is(err, errTorn) {
			// Made but not begun. (One that was begun and has no record says where the epoch ends.)
			if err := d.remove(s.name); err != nil {
				return nil, fmt.Errorf("meter: %w", err)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("meter: read %s: %w", s.name, err)
		}
		if len(r.segments) > 0 && s.first > r.next {
			log.Error("usage journal is damaged: records are lost and are not billed",
				"epoch", l.epoch.String(), "from", r.next, "to", s.first-1, "setAside", s.name)
			for _, lost := range l.segments[i:] {
				if err := d.rename(lost.name, lost.name+damagedSuffix); err != nil {
					return nil, fmt.Errorf("meter: %w", err)
				}
			}
			break
		}
		r.overrule(s.first)
		r.segments = append(r.segments, s)
		r.next = s.first + s.count
	}
	return r, nil
}

// overrule cuts the records from first on.
func (r *run) overrule(first uint64) {
	for i := range r.segments {
		s := &r.segments[i]
		if s.first >= first {
			s.count = 0
		} else if s.first+s.count > first {
			s.count = first - s.first
		}
	}
}

// scan reads the segment and sets what its header and entries say.
func (s *segment) scan(d disk, epoch uuid.UUID) error {
	h, err := readHeader(d, s.name)
	if err != nil {
		return err
	}
	if h.epoch != epoch || h.index != s.index {
		return errTorn
	}
	s.seed, s.first, s.count, s.end = h.seed, h.first, 0, s.size
	f, err := d.open(s.name)
	if err != nil {
		return err
	}
	defer f.Close()
	// Until the end is known, every byte of the file may be good.
	rd := reader{file: f, seed: h.seed, off: headerBytes, end: s.size}
	for {
		e, err := rd.next()
		if errors.Is(err, errEnd) || errors.Is(err, errTorn) {
			s.end = rd.off
			return nil
		}
		if err != nil {
			return err
		}
		if e.kind == kindUsage {
			s.count++
		}
	}
}
