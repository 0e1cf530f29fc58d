package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Delete removes an object; it does nothing when there is none. Its readers get ErrObjectNotFound.
func (o *Objects) Delete(ctx context.Context, sha string) error {
	if err := checkSHA(sha); err != nil {
		return err
	}
	stream, err := o.bind(ctx)
	if err != nil {
		return err
	}
	for range objectTries {
		current, err := o.record(ctx, stream, nameSubject(sha))
		if err != nil {
			return err
		}
		if current.sequence == 0 {
			return nil
		}
		if err := o.remove(ctx, stream, nameSubject(sha), current); !isConflict(err) {
			return err
		}
	}
	return fmt.Errorf("bus: object %s is put and deleted over and over", sha)
}

// remove takes away the object that a record describes, unless the record has moved on (isConflict).
// It can be broken off anywhere: the mark is written first, and remove of the mark finishes the rest.
func (o *Objects) remove(ctx context.Context, stream jetstream.Stream, subject string, current record) error {
	mark := current.sequence
	if !current.info.Deleted {
		info := current.info
		info.Deleted, info.Size, info.Chunks, info.Digest = true, 0, 0, ""
		var err error
		if mark, err = o.write(ctx, subject, info, current.sequence); err != nil {
			return fmt.Errorf("bus: delete object: %w", err)
		}
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSubject(chunkSubject(current.info.NUID))); err != nil {
		return fmt.Errorf("bus: delete object: %w", err)
	}
	// Up to the mark and no further: a Put may have come after it.
	if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(mark+1)); err != nil {
		return fmt.Errorf("bus: delete object: %w", err)
	}
	return nil
}

// List returns what is stored, in no order.
func (o *Objects) List(ctx context.Context) ([]Object, error) {
	stream, err := o.bind(ctx)
	if err != nil {
		return nil, err
	}
	records, err := o.records(ctx, stream)
	if err != nil {
		return nil, err
	}
	var objects []Object
	for _, r := range records {
		if r.exists() {
			objects = append(objects, Object{SHA256: r.info.Name, Size: int64(r.info.Size), StoredAt: r.at})
		}
	}
	return objects, nil
}

// records returns the record on every name.
func (o *Objects) records(ctx context.Context, stream jetstream.Stream) (map[string]record, error) {
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter("$O."+codeBucket+".M.*"))
	if err != nil {
		return nil, fmt.Errorf("bus: list objects: %w", err)
	}
	records := make(map[string]record, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		r, err := o.record(ctx, stream, subject)
		if err != nil {
			return nil, err
		}
		if r.sequence != 0 {
			records[subject] = r
		}
	}
	return records, nil
}

// Collect removes what nothing refers to and what was last put before olderThan, and returns how
// many objects that were. An upload that was broken off is removed, too.
//
// The set of referenced hashes may be somewhat old, but must not be older than olderThan: a package
// that was put and then named by a function since that set was taken is protected by its time.
// One that is put again while this runs is left alone.
func (o *Objects) Collect(ctx context.Context, referenced map[string]struct{}, olderThan time.Time) (int, error) {
	stream, err := o.bind(ctx)
	if err != nil {
		return 0, err
	}
	// Chunks before names: an upload in between has its chunks listed only if it is named by then,
	// or is young.
	chunks, err := stream.Info(ctx, jetstream.WithSubjectFilter("$O."+codeBucket+".C.*"))
	if err != nil {
		return 0, fmt.Errorf("bus: list objects: %w", err)
	}
	uploads := chunks.State.Subjects
	records, err := o.records(ctx, stream)
	if err != nil {
		return 0, err
	}
	collected := 0
	for subject, r := range records {
		delete(uploads, chunkSubject(r.info.NUID))
		_, needed := referenced[r.info.Name]
		if r.exists() && needed || !r.at.Before(olderThan) {
			continue
		}
		switch err := o.remove(ctx, stream, subject, r); {
		case isConflict(err):
		case err != nil:
			return collected, err
		case r.exists():
			collected++
		}
	}
	for subject := range uploads {
		last, err := stream.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return collected, fmt.Errorf("bus: look up chunks: %w", err)
		}
		if last.Time.Before(olderThan) {
			o.purge(ctx, stream, subject)
		}
	}
	return collected, nil
}
