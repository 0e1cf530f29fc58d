package code

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore holds packages in memory; gate, when set, holds every fetch up.
type fakeStore struct {
	mu      sync.Mutex
	objects map[string][]byte
	fetches int
	fail    error
	gate    chan struct{}
}

func (s *fakeStore) add(data []byte) (string, int64) {
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	s.objects[name] = data
	return name, int64(len(data))
}

func (s *fakeStore) GetCode(ctx context.Context, name string) (io.ReadCloser, int64, error) {
	s.mu.Lock()
	s.fetches++
	data, ok := s.objects[name]
	fail, gate := s.fail, s.gate
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	if fail != nil {
		return nil, 0, fail
	}
	if !ok {
		return nil, 0, errors.New("no such package")
	}
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
}

func openCache(t testing.TB, dir string, store Store, maxBytes int64) *Cache {
	t.Helper()
	c, err := Open(Config{Dir: dir, MaxBytes: maxBytes, Store: store, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closeCache(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func mustAcquire(t testing.TB, c *Cache, sha string, size int64) *Handle {
	t.Helper()
	h, err := c.Acquire(t.Context(), sha, size)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		all = append(all, f.Name())
	}
	return all
}

func TestAcquireFetchesOnceAndShares(t *testing.T) {
	store := &fakeStore{gate: make(chan struct{})}
	sha, size := store.add(makeZip(t, item{"main.py", 0o644, "print()"}))
	c := openCache(t, t.TempDir(), store, 1<<30)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var handles []*Handle
	for range 20 {
		wg.Go(func() {
			h, err := c.Acquire(t.Context(), sha, size)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			handles = append(handles, h)
		})
	}
	if c.Have(sha) {
		t.Error("have it before it was fetched")
	}
	close(store.gate)
	wg.Wait()
	if store.fetches != 1 {
		t.Errorf("%d fetches, want 1", store.fetches)
	}
	for _, h := range handles {
		if content, err := os.ReadFile(filepath.Join(h.Dir, "main.py")); err != nil || string(content) != "print()" {
			t.Fatalf("%q, %v", content, err)
		}
		h.Release()
		h.Release()
	}
	if !c.Have(sha) || !slices.Equal(c.List(), []string{sha}) {
		t.Errorf("have %v, list %v", c.Have(sha), c.List())
	}
	closeCache(t, c)
	if _, err := c.Acquire(t.Context(), sha, size); !errors.Is(err, ErrClosed) {
		t.Errorf("acquire after close: %v", err)
	}
}

func TestFailedFetchDoesNotPoison(t *testing.T) {
	good := makeZip(t, item{"main.py", 0o644, "print()"})
	other := bytes.Clone(good)
	other[len(other)-1] ^= 1 // the comment's length: the same size, another hash
	for _, test := range []struct {
		name  string
		spoil func(*fakeStore, string)
		want  error
	}{
		{"store fails", func(s *fakeStore, _ string) { s.fail = io.ErrUnexpectedEOF }, io.ErrUnexpectedEOF},
		{"other bytes", func(s *fakeStore, sha string) { s.objects[sha] = other }, ErrCorrupt},
		{"shorter", func(s *fakeStore, sha string) { s.objects[sha] = good[:10] }, ErrCorrupt},
		{"longer", func(s *fakeStore, sha string) { s.objects[sha] = append(bytes.Clone(good), 'x') }, ErrCorrupt},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, store := t.TempDir(), &fakeStore{}
			sha, size := store.add(good)
			c := openCache(t, dir, store, 1<<30)
			defer closeCache(t, c)
			test.spoil(store, sha)
			if _, err := c.Acquire(t.Context(), sha, size); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if left := names(t, dir); len(left) != 0 {
				t.Errorf("left behind %v", left)
			}
			store.fail = nil
			store.add(good)
			mustAcquire(t, c, sha, size).Release()
		})
	}
}

func TestBadPackage(t *testing.T) {
	dir, store := t.TempDir(), &fakeStore{}
	c := openCache(t, dir, store, 1<<30)
	defer closeCache(t, c)
	sha, size := store.add([]byte("not a zip"))
	for _, test := range []struct {
		sha  string
		size int64
	}{{sha, size}, {"../../etc", 5}, {"", 5}, {sha, 0}, {sha, MaxZipBytes + 1}, {"A" + sha[1:], size}} {
		if _, err := c.Acquire(t.Context(), test.sha, test.size); !errors.Is(err, ErrPackage) {
			t.Errorf("%.10q, %d bytes: %v, want ErrPackage", test.sha, test.size, err)
		}
	}
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left behind %v", left)
	}
}

func TestCallerGoesAndFetchGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{gate: make(chan struct{})}
		sha, size := store.add(makeZip(t, item{"a", 0o644, "a"}))
		c := openCache(t, t.TempDir(), store, 1<<30)
		defer closeCache(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Acquire(ctx, sha, size); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want canceled", err)
		}
		close(store.gate)
		mustAcquire(t, c, sha, size).Release()
		if store.fetches != 1 {
			t.Errorf("%d fetches, want 1", store.fetches)
		}
	})
}

func TestStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{gate: make(chan struct{})}
		sha, size := store.add(makeZip(t, item{"a", 0o644, "a"}))
		c := openCache(t, t.TempDir(), store, 1<<30)
		if _, err := c.Acquire(t.Context(), sha, size); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want deadline exceeded", err)
		}
		// And Close does not wait for it.
		failed := make(chan error)
		go func() {
			_, err := c.Acquire(t.Context(), sha, size)
			failed <- err
		}()
		synctest.Wait()
		go c.Close()
		if err := <-failed; !errors.Is(err, ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
		synctest.Wait()
	})
}

func TestCollectsLeastRecentlyUsedUnpinned(t *testing.T) {
	dir, store := t.TempDir(), &fakeStore{}
	var shas []string
	var sizes []int64
	noise := make([]byte, 100<<10)
	for i := range 4 {
		for j := range noise {
			noise[j] = byte(rand.Uint32())
		}
		sha, size := store.add(makeZip(t, item{fmt.Sprint(i), 0o644, string(noise)}))
		shas, sizes = append(shas, sha), append(sizes, size)
	}
	c := openCache(t, dir, store, 250<<10)
	mustAcquire(t, c, shas[0], sizes[0]).Release()
	pinned := mustAcquire(t, c, shas[1], sizes[1])
	mustAcquire(t, c, shas[0], sizes[0]).Release()
	mustAcquire(t, c, shas[2], sizes[2]).Release() // 0 goes: 1 is older and pinned
	if c.Have(shas[0]) || !c.Have(shas[1]) || !c.Have(shas[2]) {
		t.Errorf("have %v %v %v, want the second and third", c.Have(shas[0]), c.Have(shas[1]), c.Have(shas[2]))
	}
	also := mustAcquire(t, c, shas[3], sizes[3]) // 2 goes
	third := mustAcquire(t, c, shas[2], sizes[2])
	if n := len(c.List()); n != 3 {
		t.Errorf("%d packages, want 3: all are in use", n)
	}
	for _, h := range []*Handle{pinned, also, third} {
		if len(names(t, h.Dir)) != 1 {
			t.Error("a pinned package is gone")
		}
	}
	pinned.Release()
	if c.Have(shas[1]) {
		t.Error("released over the bound and still there")
	}
	also.Release()
	third.Release()
	closeCache(t, c)
	if n := len(names(t, dir)); n != 2 {
		t.Errorf("%d folders are left, want 2", n)
	}
}

func TestRestart(t *testing.T) {
	dir, store := t.TempDir(), &fakeStore{}
	whole, wholeSize := store.add(makeZip(t, item{"a", 0o644, "a"}))
	half, _ := store.add(makeZip(t, item{"b", 0o644, "b"}))
	old, _ := store.add(makeZip(t, item{"c", 0o644, "c"}))
	c := openCache(t, dir, store, 1<<30)
	mustAcquire(t, c, whole, wholeSize).Release()
	closeCache(t, c)
	// What a kill may leave: a folder being made. What one cannot, but a power loss may: a folder
	// without its mark, or with one of another boot.
	for _, path := range []string{tmpPrefix + "x/task", half + "/task", old + "/task"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, old, markName), fmt.Appendf(nil, markForm, "another-boot", 1), 0o600); err != nil {
		t.Fatal(err)
	}
	store.fetches = 0
	c = openCache(t, dir, store, 1<<30)
	h := mustAcquire(t, c, whole, wholeSize)
	if content, err := os.ReadFile(filepath.Join(h.Dir, "a")); err != nil || string(content) != "a" {
		t.Errorf("%q, %v", content, err)
	}
	h.Release()
	if store.fetches != 0 {
		t.Error("fetched what was there")
	}
	if c.Have(half) || c.Have(old) {
		t.Error("took in what cannot be trusted")
	}
	closeCache(t, c)
	if left := names(t, dir); !slices.Equal(left, []string{whole}) {
		t.Errorf("left %v, want only the whole one", left)
	}
	// A smaller bound holds from the start.
	c = openCache(t, dir, store, 0)
	closeCache(t, c)
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left %v, want none", left)
	}
}

func BenchmarkAcquireWarm(b *testing.B) {
	store := &fakeStore{}
	sha, size := store.add(makeZip(b, item{"a", 0o644, "a"}))
	c := openCache(b, b.TempDir(), store, 1<<30)
	defer closeCache(b, c)
	mustAcquire(b, c, sha, size).Release()
	b.ReportAllocs()
	for b.Loop() {
		h, err := c.Acquire(b.Context(), sha, size)
		if err != nil {
			b.Fatal(err)
		}
		h.Release()
	}
}
