package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Bounds of one log entry.
const (
	// MaxEntry is its size, in bytes.
	MaxEntry = 8 << 20
	// MaxBatches is how many batches it carries.
	MaxBatches = 1 << 12
)

// numUsage is the only command of the ledger so far: usage batches, each behind its length. Numbers
// are never reused.
const numUsage = 1

// ErrEntry is a log entry that does not decode, or batches too large for one.
var ErrEntry = errors.New("ledger: bad log entry")

// Append appends the log entry for the batches to dst: the command's number, then each batch behind
// its length. The error is ErrEntry.
func Append(dst []byte, batches []*dozev1.UsageBatch) ([]byte, error) {
	if len(batches) > MaxBatches {
		return dst, fmt.Errorf("%w: %d batches, at most %d", ErrEntry, len(batches), MaxBatches)
	}
	start := len(dst)
	entry := append(dst, numUsage)
	for _, b := range batches {
		var err error
		entry = binary.AppendUvarint(entry, uint64(proto.Size(b)))
		// Size, just called, has left its result in the message.
		entry, err = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(entry, b)
		if err != nil {
			return dst, fmt.Errorf("%w: %w", ErrEntry, err)
		}
		if len(entry)-start > MaxEntry {
			return dst, fmt.Errorf("%w: more than %d bytes", ErrEntry, MaxEntry)
		}
	}
	return entry, nil
}

// Decode is the reverse of Append. As with the registry's commands, an entry that does not decode
// must stop whoever applies the log.
func Decode(data []byte) ([]*dozev1.UsageBatch, error) {
	if len(data) == 0 || len(data) > MaxEntry {
		return nil, fmt.Errorf("%w: %d bytes", ErrEntry, len(data))
	}
	if data[0] != numUsage {
		return nil, fmt.Errorf("%w: unknown command number %d", ErrEntry, data[0])
	}
	var batches []*dozev1.UsageBatch
	for data = data[1:]; len(data) > 0; {
		size, n := binary.Uvarint(data)
		if n <= 0 || size > uint64(len(data)-n) || len(batches) == MaxBatches {
			return nil, fmt.Errorf("%w: length of batch %d", ErrEntry, len(batches))
		}
		b := new(dozev1.UsageBatch)
		if err := proto.Unmarshal(data[n:n+int(size)], b); err != nil {
			return nil, fmt.Errorf("%w: batch %d: %w", ErrEntry, len(batches), err)
		}
		batches = append(batches, b)
		data = data[n+int(size):]
	}
	return batches, nil
}
