package meter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/google/uuid"
)

// The journal's format. All numbers are little-endian.
//
// A segment is a header of headerBytes and then entries, until zero bytes or the end of the file:
//
//	header: magic[8] version:u32 index:u32 epoch[16] first:u64 zero[20] crc:u32
//	entry:  crc:u32 size:u16 kind:u8 payload[size]
//
// A function entry (three strings, each with a length byte) gives the next number, from 0, to a
// function version; the table is the segment's own, so that a segment can be read alone. A usage
// entry is one record; its sequence is the header's first plus its place among the usage entries.
//
// Checksums are CRC-32C. An entry's begins with the header's, so that bytes left on the disk by
// another segment are never taken for this one's.
const (
	formatVersion = 1
	headerBytes   = 64
	entryHead     = 7
	usagePayload  = 4 + 16 + 8 + 4 + 4 + 4 + 1
	usageBytes    = entryHead + usagePayload
	// maxEntry bounds what one Append writes: a function entry and a usage entry.
	maxEntry = entryHead + 3*(1+MaxNameBytes) + usageBytes

	kindFunction = 1
	kindUsage    = 2
)

var magic = [8]byte{'D', 'O', 'Z', 'E', 'U', 'S', 'E', '\n'}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// errEnd: there is nothing more in the segment.
	errEnd = errors.New("end of journal segment")
	// errTorn: what follows is not a whole entry (or header), as a crash amid a write leaves it.
	errTorn = errors.New("torn journal entry")
)

// header is the first part of a segment.
type header struct {
	epoch uuid.UUID
	index uint32
	first uint64
	// seed is the header's checksum, with which those of its entries begin.
	seed uint32
}

// encode writes the header into b, which has headerBytes, and sets the seed.
func (h *header) encode(b []byte) {
	clear(b[:headerBytes])
	copy(b, magic[:])
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], h.index)
	copy(b[16:], h.epoch[:])
	binary.LittleEndian.PutUint64(b[32:], h.first)
	h.seed = crc32.Checksum(b[:60], castagnoli)
	binary.LittleEndian.PutUint32(b[60:], h.seed)
}

// decodeHeader reads a header: errEnd for a segment that was never begun, errTorn for one whose
// header is not whole, ErrVersion for one that another version wrote.
func decodeHeader(b []byte) (header, error) {
	var h header
	if len(b) < headerBytes {
		return h, errTorn
	}
	b = b[:headerBytes]
	if [8]byte(b) != magic {
		for _, c := range b {
			if c != 0 {
				return h, errTorn
			}
		}
		return h, errEnd
	}
	// Version 0 never was: it is what a torn write of the header leaves.
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion && v != 0 {
		return h, fmt.Errorf("%w: it has %d, this program reads %d", ErrVersion, v, formatVersion)
	}
	h.seed = crc32.Checksum(b[:60], castagnoli)
	if binary.LittleEndian.Uint32(b[60:]) != h.seed {
		return h, errTorn
	}
	h.index = binary.LittleEndian.Uint32(b[12:])
	copy(h.epoch[:], b[16:])
	h.first = binary.LittleEndian.Uint64(b[32:])
	if h.first == 0 {
		return h, errTorn
	}
	return h, nil
}

// functionKey names a function version in a segment's table.
type functionKey struct{ account, function, version string }

func (k functionKey) check() error {
	for _, s := range [...]string{k.account, k.function, k.version} {
		if !isName(s) {
			return fmt.Errorf("%w: name %.80q", ErrRecord, s)
		}
	}
	return nil
}

func isName(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '$') {
			return false
		}
	}
	return s != "" && len(s) <= MaxNameBytes
}

// appendFunction adds a function entry to b. The key has been checked.
func appendFunction(b []byte, seed uint32, key functionKey) []byte {
	start := len(b)
	b = append(b, make([]byte, entryHead)...)
	for _, s := range [...]string{key.account, key.function, key.version} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return sealEntry(b, start, seed, kindFunction)
}

// appendUsage adds a usage entry to b.
func appendUsage(b []byte, seed uint32, function uint32, rec *Record) []byte {
	start := len(b)
	b = append(b, make([]byte, entryHead)...)
	b = binary.LittleEndian.AppendUint32(b, function)
	b = append(b, rec.RequestID[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(rec.EndedAtMs))
	b = binary.LittleEndian.AppendUint32(b, rec.BilledMs)
	b = binary.LittleEndian.AppendUint32(b, rec.MemoryMB)
	b = binary.LittleEndian.AppendUint32(b, rec.InitMs)
	b = append(b, rec.Outcome)
	return sealEntry(b, start, seed, kindUsage)
}

func sealEntry(b []byte, start int, seed uint32, kind byte) []byte {
	e := b[start:]
	binary.LittleEndian.PutUint16(e[4:], uint16(len(e)-entryHead))
	e[6] = kind
	binary.LittleEndian.PutUint32(e, crc32.Update(seed, castagnoli, e[4:]))
	return b
}

// entry is one decoded entry: key is set for kindFunction, the rest for kindUsage. usage's names
// are not: function is their number in the segment's table.
type entry struct {
	kind     byte
	key      functionKey
	function uint32
	usage    Record
}

// decodeEntry reads the entry at the start of b and returns its length. errEnd: b begins with an
// empty entry head, or is empty; errTorn: it does not begin with a whole, sound entry, be it that b
// ends too early.
func decodeEntry(b []byte, seed uint32, e *entry) (int, error) {
	if len(b) < entryHead {
		for _, c := range b {
			if c != 0 {
				return 0, errTorn
			}
		}
		return 0, errEnd
	}
	if [entryHead]byte(b) == [entryHead]byte{} {
		return 0, errEnd
	}
	size := int(binary.LittleEndian.Uint16(b[4:]))
	if size > 3*(1+MaxNameBytes) || len(b) < entryHead+size {
		return 0, errTorn
	}
	if binary.LittleEndian.Uint32(b) != crc32.Update(seed, castagnoli, b[4:entryHead+size]) {
		return 0, errTorn
	}
	p := b[entryHead : entryHead+size]
	e.kind = b[6]
	switch {
	case e.kind == kindFunction:
		for _, field := range [...]*string{&e.key.account, &e.key.function, &e.key.version} {
			if len(p) == 0 || len(p) < 1+int(p[0]) {
				return 0, errTorn
			}
			end := 1 + int(p[0])
			*field, p = string(p[1:end]), p[end:]
		}
		if len(p) != 0 || e.key.check() != nil {
			return 0, errTorn
		}
	case e.kind == kindUsage && size == usagePayload:
		e.function = binary.LittleEndian.Uint32(p)
		e.usage.RequestID = [16]byte(p[4:])
		e.usage.EndedAtMs = int64(binary.LittleEndian.Uint64(p[20:]))
		e.usage.BilledMs = binary.LittleEndian.Uint32(p[28:])
		e.usage.MemoryMB = binary.LittleEndian.Uint32(p[32:])
		e.usage.InitMs = binary.LittleEndian.Uint32(p[36:])
		e.usage.Outcome = p[40]
		if e.usage.check() != nil {
			return 0, errTorn
		}
	default:
		return 0, errTorn
	}
	return entryHead + size, nil
}
