//go:build linux

package linux

import (
	"log/slog"
	"os"
	"testing"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/sandboxtest"
)

// userVar is set where TestUnprivileged has become an ordinary user.
const userVar = "DOZE_TEST_UNPRIVILEGED"

// needRoot skips, and says why, where the walls cannot be built.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv(userVar) == "" {
		t.Skip("the linux sandbox needs root; run the tests as root to test its walls")
	}
}

func open(t testing.TB, dataDir string) *Sandbox {
	t.Helper()
	needRoot(t)
	s, err := New(Options{DataDir: dataDir, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func factory(t *testing.T, dataDir string) sandbox.Sandbox { return open(t, dataDir) }

func TestBehaviour(t *testing.T) { sandboxtest.Run(t, factory) }

func TestWalls(t *testing.T) { sandboxtest.Walls(t, factory) }

func TestParks(t *testing.T) { sandboxtest.Parks(t, factory) }

func TestParkedBehaviour(t *testing.T) {
	t.Run("empty", func(t *testing.T) { sandboxtest.Run(t, sandboxtest.Parked(factory, false)) })
	t.Run("waiting", func(t *testing.T) { sandboxtest.Run(t, sandboxtest.Parked(factory, true)) })
}

func TestParkedWalls(t *testing.T) {
	t.Run("empty", func(t *testing.T) { sandboxtest.Walls(t, sandboxtest.Parked(factory, false)) })
	t.Run("waiting", func(t *testing.T) { sandboxtest.Walls(t, sandboxtest.Parked(factory, true)) })
}
