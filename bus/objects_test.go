package bus

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func blob(seed uint64, size int) (data []byte, sha string) {
	data = make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(data)
	sum := sha256.Sum256(data)
	return data, hex.EncodeToString(sum[:])
}

func readObject(t testing.TB, o *Objects, sha string) ([]byte, error) {
	t.Helper()
	r, size, err := o.Get(t.Context(), sha)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err == nil && int64(len(data)) != size {
		t.Errorf("read %d bytes of %d", len(data), size)
	}
	return data, err
}

func TestObjectsKeepWhatWasPut(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	o := s.conn.Objects()
	sizes := []int{0, 1, objectChunk - 1, objectChunk, objectChunk + 1, 3*objectChunk + 17}
	for i, size := range sizes {
		data, sha := blob(uint64(i), size)
		if err := o.Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
	s.restart()
	o = s.conn.Objects()
	for i, size := range sizes {
		data, sha := blob(uint64(i), size)
		got, err := readObject(t, o, sha)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: read back %d, %v", size, len(got), err)
		}
	}
	list, err := o.List(t.Context())
	if err != nil || len(list) != len(sizes) {
		t.Fatalf("list: %v, %v", list, err)
	}
	for _, object := range list {
		if time.Since(object.StoredAt) > time.Minute {
			t.Errorf("%s stored at %v", object.SHA256, object.StoredAt)
		}
	}
	// NATS's own client reads the same objects.
	bucket, err := s.conn.js.ObjectStore(t.Context(), codeBucket)
	if err != nil {
		t.Fatal(err)
	}
	data, sha := blob(5, sizes[5])
	if got, err := bucket.GetBytes(t.Context(), sha); err != nil || !bytes.Equal(got, data) {
		t.Errorf("by the object store client: %d bytes, %v", len(got), err)
	}
}

func TestObjectsRefuse(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	o := s.conn.Objects()
	data, sha := blob(1, 1000)
	broken := errors.New("client gone")
	for name, test := range map[string]struct {
		sha  string
		r    io.Reader
		want error
	}{
		"other bytes":   {sha, bytes.NewReader(data[:999]), ErrObjectHash},
		"broken reader": {sha, io.MultiReader(bytes.NewReader(data), errReader{broken}), broken},
		"store full":    {sha, io.LimitReader(zeros{}, MaxObjectBytes), ErrObjectsFull},
	} {
		if err := o.Put(t.Context(), test.sha, test.r); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	for _, sha := range []string{"", "abc", sha[:63] + "G", "A" + sha[1:], sha + "00", "../x", "*"} {
		if err := o.Put(t.Context(), sha, bytes.NewReader(data)); err == nil {
			t.Errorf("put under %q", sha)
		}
		if _, _, err := o.Get(t.Context(), sha); err == nil {
			t.Errorf("got %q", sha)
		}
	}
	if _, err := readObject(t, o, sha); !errors.Is(err, ErrObjectNotFound) {
		t.Errorf("get of what was never stored: %v", err)
	}
	// What was refused is gone, so that the store is not full of it.
	stream, err := s.conn.js.Stream(t.Context(), codeStream)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 0 {
		t.Errorf("%d messages of refused objects are left", n)
	}
	if err := o.Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Readers of an object are not disturbed by Puts of the same, and of many at once one is stored.
func TestObjectsAreNeverOverwritten(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	o := s.conn.Objects()
	data, sha := blob(1, 4*objectChunk)
	var puts sync.WaitGroup
	for range 8 {
		puts.Go(func() {
			if err := o.Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
				t.Error(err)
			}
		})
	}
	puts.Wait()
	r, _, err := o.Get(t.Context(), sha)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	if err := o.Put(t.Context(), sha, errReader{errors.New("must not be read")}); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(head, rest...), data) {
		t.Errorf("a reader was disturbed: %d bytes, %v", len(rest), err)
	}
	stream, err := s.conn.js.Stream(t.Context(), codeStream)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 4+1 {
		t.Errorf("%d messages are stored, want 4 chunks and their record", n)
	}
}

func TestObjectsDelete(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	o := s.conn.Objects()
	data, sha := blob(1, 3*objectChunk)
	for range 2 { // it can be put again
		if err := o.Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		r, _, err := o.Get(t.Context(), sha)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Delete(t.Context(), sha); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); !errors.Is(err, ErrObjectNotFound) {
			t.Errorf("reading on: %v", err)
		}
		if _, err := readObject(t, o, sha); !errors.Is(err, ErrObjectNotFound) {
			t.Errorf("get: %v", err)
		}
		if err := o.Delete(t.Context(), sha); err != nil {
			t.Errorf("again: %v", err)
		}
	}
	if list, err := o.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestObjectsCollect(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	o := s.conn.Objects()
	var shas []string
	for i := range 4 {
		data, sha := blob(uint64(i), objectChunk+i)
		if err := o.Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		shas = append(shas, sha)
	}
	// An upload that was broken off left a chunk; a deletion that was, a mark and chunks.
	if _, err := s.conn.js.Publish(t.Context(), chunkSubject("lost"), []byte("chunk")); err != nil {
		t.Fatal(err)
	}
	stream, err := o.bind(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	half, err := o.record(t.Context(), stream, nameSubject(shas[3]))
	if err != nil {
		t.Fatal(err)
	}
	half.info.Deleted = true
	if _, err := o.write(t.Context(), nameSubject(shas[3]), half.info, half.sequence); err != nil {
		t.Fatal(err)
	}

	referenced := map[string]struct{}{shas[0]: {}}
	if n, err := o.Collect(t.Context(), referenced, time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Errorf("within the grace period: collected %d, %v", n, err)
	}
	// shas[2] is put again after the mark: the same package is deployed once more.
	mark := time.Now()
	data, _ := blob(2, objectChunk+2)
	if err := o.Put(t.Context(), shas[2], bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if n, err := o.Collect(t.Context(), referenced, mark); n != 1 || err != nil {
		t.Errorf("collected %d, %v; want the one that is old and not referenced", n, err)
	}
	for i, want := range []error{nil, ErrObjectNotFound, nil, ErrObjectNotFound} {
		if _, err := readObject(t, o, shas[i]); !errors.Is(err, want) {
			t.Errorf("object %d: %v, want %v", i, err, want)
		}
	}
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != (1+1)+(2+1) {
		t.Errorf("%d messages are left, want an object of one chunk, one of two, and their records", info.State.Msgs)
	}
}

// A record that moved on between the collector's look and its hand is left alone.
func TestObjectsCollectLosesToPut(t *testing.T) {
	s := newStore(t, StreamsConfig{})
	o := s.conn.Objects()
	data, sha := blob(1, 10)
	if err := o.Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	stream, err := o.bind(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen, err := o.record(t.Context(), stream, nameSubject(sha))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := o.remove(t.Context(), stream, nameSubject(sha), seen); !isConflict(err) {
		t.Errorf("removed by an old record: %v", err)
	}
	if got, err := readObject(t, o, sha); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%q, %v", got, err)
	}
}
