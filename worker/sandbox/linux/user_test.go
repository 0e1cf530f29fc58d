//go:build linux

package linux

import (
	"os"
	"strings"
	"testing"

	"github.com/doze-run/doze/worker/sandbox/sandboxtest"
)

// TestUnprivileged runs the suites as an ordinary user, with subordinate ids and without.
func TestUnprivileged(t *testing.T) {
	for _, c := range []struct {
		name        string
		subordinate bool
		tests       string
	}{
		{"subordinate ids", true, "TestBehaviour|TestWalls|TestParks|TestParkedBehaviour|TestParkedWalls|TestLauncherDies|TestUserLacks"},
		{"one id", false, "TestBehaviour|TestWalls|TestParks|TestLauncherDies|TestUserLacks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := sandboxtest.NewUser(t, c.subordinate)
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := u.Command(u.Program(t, self), "-test.v", "-test.run=^("+c.tests+")$")
			cmd.Env = append(cmd.Env, userVar+"="+c.name)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			said := map[string]bool{}
			for line := range strings.Lines(string(out)) {
				_, lack, _ := strings.Cut(line, "lacks: ")
				if strings.Contains(line, "SKIP") || lack != "" && !said[lack] {
					t.Log(strings.TrimSpace(line))
					said[lack] = true
				}
			}
		})
	}
}

// TestUserLacks is run by TestUnprivileged: what an ordinary user does not get is said.
func TestUserLacks(t *testing.T) {
	mode := os.Getenv(userVar)
	if mode == "" {
		t.Skip("not an ordinary user: TestUnprivileged runs this as one")
	}
	s := open(t, t.TempDir())
	defer s.Close()
	said := strings.Join(s.Missing(), "\n")
	t.Logf("this sandbox lacks:\n%s", said)
	if lacks := strings.Contains(said, lackUIDs); lacks != (mode == "one id") {
		t.Errorf("%q: %s", mode, said)
	}
}
