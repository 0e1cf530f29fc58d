package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/control/quorum"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

var update = flag.Bool("update", false, "write the golden files anew; of a released version never")

const account = "000000000000"

// store is code packages in memory.
type store map[string][]byte

func (s store) Get(_ context.Context, sha string) (io.ReadCloser, int64, error) {
	zip, ok := s[sha]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(zip)), int64(len(zip)), nil
}

func (s store) put(text string) registry.Code {
	sum := sha256.Sum256([]byte(text))
	sha := hex.EncodeToString(sum[:])
	s[sha] = []byte(text)
	return registry.Code{SHA256: sha, Size: int64(len(text))}
}

// sample is a state with some of everything, and its packages.
func sample(t testing.TB) (quorum.State, store) {
	t.Helper()
	m, code := quorum.NewMachine(), store{}
	apply := func(c registry.Command) {
		t.Helper()
		if _, err := m.Registry.Apply(c); err != nil {
			t.Fatalf("%T: %v", c, err)
		}
	}
	for i, name := range []string{"alpha", "beta"} {
		apply(registry.CreateFunction{Account: account, Name: name, Version: registry.Version{
			RevisionID: "rev-" + name, LastModified: int64(i), Config: registry.Config{Timeout: 3, MemorySize: 128, Runtime: "python3.12"},
			Code: code.put("the code of " + name),
		}})
		apply(registry.Settle{Account: account, Name: name, Version: registry.Latest, Incarnation: "rev-" + name, RevisionID: "settled-" + name})
	}
	apply(registry.PublishVersion{Account: account, Name: "alpha", RevisionID: "published", At: 7})
	apply(registry.PutAccessKey{Key: registry.AccessKey{ID: "AKIAIOSFODNN7EXAMPLE", Account: account, Role: registry.RoleAdmin, Sealed: []byte("sealed"), CreatedAt: 9}})
	m.Ledger.Apply([]*dozev1.UsageBatch{{
		Epoch: "w-1", FirstSequence: 1, Functions: []*dozev1.FunctionKey{{Account: account, Function: "alpha", Version: "$LATEST"}},
		Function: []uint32{0, 0}, EndedAtMs: []int64{1_700_000_000_000, 1_700_000_000_001}, BilledMs: []uint32{10, 20}, MemoryMb: []uint32{128, 128},
		InitMs: []uint32{5, 0}, Outcome: []uint32{1, 2}, RequestIds: make([]byte, 32),
	}})
	return quorum.State{Index: 42, Registry: m.Registry.Snapshot(), Ledger: m.Ledger.Snapshot()}, code
}

var madeAt = time.Date(2026, 1, 31, 12, 0, 0, 5, time.UTC)

func write(t testing.TB, state quorum.State, code store) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := Write(t.Context(), &b, "0.1.0", "0123456789abcdef", madeAt, state, code); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A file of version 1 is read for ever, and what it holds is written as the same bytes.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "backup.v1.tar")
	state, code := sample(t)
	written := write(t, state, code)
	if *update {
		if err := os.WriteFile(path, written, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(golden, written) {
		t.Error("what is written differs from the golden file: another form is another version")
	}
	read := store{}
	var found quorum.State
	manifest, proof, err := Read(bytes.NewReader(golden), Into{
		State: func(_ Manifest, s quorum.State) error { found = s; return nil },
		Package: func(sha string, size int64, zip io.Reader) error {
			data, err := io.ReadAll(zip)
			if int64(len(data)) != size {
				t.Errorf("package %s has %d bytes, announced were %d", sha, len(data), size)
			}
			read[sha] = data
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if manifest.MadeAt != "2026-01-31T12:00:00Z" || manifest.Cluster != "0123456789abcdef" || manifest.Index != 42 || manifest.By != "0.1.0" {
		t.Errorf("manifest %+v", manifest)
	}
	if found.Hash() != state.Hash() || found.Index != 42 {
		t.Error("the state is another one")
	}
	if proof.Functions != 2 || proof.Keys != 1 || proof.Packages != 2 || proof.Totals != (Totals{Requests: 2, MBMs: 30 * 128, InitMs: 5, Errors: 1}) || len(proof.Missing) != 0 {
		t.Errorf("proof %+v", proof)
	}
	for sha, zip := range code {
		if !bytes.Equal(read[sha], zip) {
			t.Errorf("package %s was read as %q", sha, read[sha])
		}
	}
}

// A package that the cluster lost is named in the proof; the rest is there.
func TestMissingPackage(t *testing.T) {
	state, code := sample(t)
	gone := state.Registry.Packages()[0].SHA256
	delete(code, gone)
	_, proof, err := Read(bytes.NewReader(write(t, state, code)), Into{})
	if err != nil || len(proof.Missing) != 1 || proof.Missing[0] != gone || proof.Packages != 1 {
		t.Errorf("%+v, %v", proof, err)
	}
}

// A package that is not what its name says is not written.
func TestWrongPackage(t *testing.T) {
	state, code := sample(t)
	code[state.Registry.Packages()[1].SHA256] = []byte("something else")
	if _, err := Write(t.Context(), io.Discard, "", "", madeAt, state, code); err == nil || !strings.Contains(err.Error(), "hash") {
		t.Errorf("%v", err)
	}
}

// A file that is cut off, longer than it was, or has another bit in a part, is not taken.
func TestDamage(t *testing.T) {
	state, code := sample(t)
	whole := write(t, state, code)
	// What the archive has behind the last byte of the proof is padding.
	end := bytes.LastIndexByte(whole, '}') + 1
	for n := 0; n < end; n += 1 + n%13 {
		if _, _, err := Read(bytes.NewReader(whole[:n]), Into{}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut off at %d of %d: %v", n, len(whole), err)
		}
	}
	for _, more := range []string{"\x00", "more"} {
		if _, _, err := Read(io.MultiReader(bytes.NewReader(whole), strings.NewReader(more)), Into{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("with %q at its end: %v", more, err)
		}
	}
	for _, text := range []string{"the code of alpha", `"mark":2`, `"requests": 2`, `"timeout":3`, `"version": 1`, `"index": 42`, "code/"} {
		at := bytes.Index(whole, []byte(text))
		if at < 0 {
			t.Fatalf("no %q in the file", text)
		}
		damaged := bytes.Clone(whole)
		damaged[at+len(text)-1] ^= 1
		if _, _, err := Read(bytes.NewReader(damaged), Into{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("with a bit of %q changed: %v", text, err)
		}
	}
}

func TestNewerVersion(t *testing.T) {
	state, code := sample(t)
	whole := bytes.Replace(write(t, state, code), []byte(`"version": 1`), []byte(`"version": 2`), 1)
	if _, _, err := Read(bytes.NewReader(whole), Into{}); !errors.Is(err, ErrVersion) {
		t.Errorf("%v", err)
	}
}

// Errors of the two sides come back as they are.
func TestErrorsOfOthers(t *testing.T) {
	state, code := sample(t)
	whole := write(t, state, code)
	mine := errors.New("mine")
	for name, into := range map[string]Into{
		"state":   {State: func(Manifest, quorum.State) error { return mine }},
		"package": {Package: func(string, int64, io.Reader) error { return mine }},
	} {
		if _, _, err := Read(bytes.NewReader(whole), into); !errors.Is(err, mine) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, 600, len(whole) - 1, len(whole)} {
		if _, _, err := Read(io.MultiReader(bytes.NewReader(whole[:n]), failing{mine}), Into{}); !errors.Is(err, mine) {
			t.Errorf("failed after %d bytes: %v", n, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// FuzzRead: whatever comes, Read answers; and what it takes can be written again and is the same.
func FuzzRead(f *testing.F) {
	state, code := sample(f)
	whole := write(f, state, code)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte{})
	f.Add(bytes.Replace(whole, []byte(`"functions":2`), []byte(`"functions":9`), 1))
	f.Add(bytes.Replace(whole, []byte("code/"), []byte("../x/"), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		var state quorum.State
		code := store{}
		manifest, proof, err := Read(bytes.NewReader(data), Into{
			State: func(_ Manifest, s quorum.State) error { state = s; return nil },
			Package: func(sha string, _ int64, zip io.Reader) (err error) {
				code[sha], err = io.ReadAll(zip)
				return err
			},
		})
		if err != nil {
			return
		}
		var b bytes.Buffer
		again, err := Write(t.Context(), &b, manifest.By, manifest.Cluster, madeAt, state, code)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if again.StateHash != proof.StateHash || again.Packages != proof.Packages {
			t.Fatalf("read %+v, written %+v", proof, again)
		}
		if _, _, err := Read(&b, Into{}); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}
