package clusterkey

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestSealOpen(t *testing.T) {
	k, err := New([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	other, err := New([32]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	sealed := k.Seal(plain, "access key A")
	if bytes.Contains(sealed, plain[:8]) || bytes.Equal(sealed, k.Seal(plain, "access key A")) {
		t.Error("sealed text shows what is in it")
	}
	if got, err := k.Open(sealed, "access key A"); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := k.Open(sealed, "access key B"); !errors.Is(err, ErrSealed) {
		t.Errorf("in another's place: %v", err)
	}
	if _, err := other.Open(sealed, "access key A"); !errors.Is(err, ErrOtherKey) {
		t.Errorf("another cluster's: %v", err)
	}
	for i := range sealed {
		damaged := bytes.Clone(sealed)
		damaged[i] ^= 1
		if _, err := k.Open(damaged, "access key A"); err == nil {
			t.Errorf("byte %d changed, and it opened", i)
		}
		if _, err := k.Open(sealed[:i], "access key A"); err == nil {
			t.Errorf("cut at %d, and it opened", i)
		}
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.key")
	var sealed [8][]byte
	var wg sync.WaitGroup
	for i := range sealed { // several processes at once come to one key
		wg.Go(func() {
			k, err := Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			sealed[i] = k.Seal([]byte("x"), "p")
		})
	}
	wg.Wait()
	k, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sealed {
		if _, err := k.Open(s, "p"); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrFile) {
		t.Errorf("readable by others: %v", err)
	}
	for _, text := range []string{"", "doze-cluster-key-1 AAAA\n", "doze-cluster-key-2 " + string(make([]byte, 2000)), "AAAA"} {
		if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrFile) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	if _, err := Open(filepath.Join(filepath.Dir(path), "no", "such")); err == nil {
		t.Error("made a key in a folder that is not there")
	}
}
