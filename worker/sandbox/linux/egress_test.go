//go:build linux

package linux

import (
	"log/slog"
	"net/netip"
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
