//go:build linux

package linux

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/sandboxtest"
)

// TestEgress runs the suite with instances that are started from nothing, and with parked ones.
func TestEgress(t *testing.T) {
	needRoot(t)
	w := sandboxtest.NewWorld(t)
	factory := func(t *testing.T, dataDir string) sandbox.Sandbox {
		s, err := New(Options{DataDir: dataDir, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			EgressRange: sandboxtest.InstanceRange, DenyEgress: []netip.Prefix{w.Denied.Network}, ResolvConf: w.ResolvConf})
		if err != nil {
			t.Fatal(err)
		}
		if missing := s.Missing(); s.noEgress != nil {
			t.Fatalf("%v", missing)
		}
		return s
	}
	t.Run("cold", func(t *testing.T) { sandboxtest.Egress(t, w, factory) })
	t.Run("parked", func(t *testing.T) { sandboxtest.Egress(t, w, sandboxtest.Parked(factory, false)) })
	t.Run("waiting", func(t *testing.T) { sandboxtest.Egress(t, w, sandboxtest.Parked(factory, true)) })
}

// TestNoEgress is a machine that has no network to give.
func TestNoEgress(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	if err := s.egress.Close(); err != nil {
		t.Fatal(err)
	}
	s.egress, s.noEgress = nil, errors.New("egress: no nf_tables")
	s.lacks = s.missing()
	if missing := strings.Join(s.Missing(), "\n"); !strings.Contains(missing, "no network egress") || !strings.Contains(missing, "no nf_tables") {
		t.Errorf("missing: %q", missing)
	}
	code := t.TempDir()
	config := sandbox.Config{ID: "a", CodeDir: code, Argv: []string{"/bin/true"}, MemoryBytes: 64 << 20, TmpBytes: 1 << 20, CPUMilli: 100, MaxProcesses: 16, Egress: true}
	if _, err := s.Start(t.Context(), config); !errors.Is(err, sandbox.ErrNoEgress) || !strings.Contains(err.Error(), "no nf_tables") {
		t.Errorf("with egress: %v", err)
	}
	config.Egress = false
	p, err := s.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, p.Output())
	<-p.Done()
	if p.Exit().Code != 0 {
		t.Errorf("%+v", p.Exit())
	}
}
