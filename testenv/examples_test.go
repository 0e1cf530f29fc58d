package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/doze-run/doze/deploy/examples"
)

// Each example, built as `make examples` builds it, deployed and called by the binary, answers its
// event as its expected.json says.
func TestExamples(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("npm"); err != nil {
		t.Fatalf("the graphql example needs npm (Debian: apt-get install npm): %v", err)
	}
	built := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "run", "./deploy/examples/build", "-o", built)
	build.Dir = Root()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the examples: %v\n%s", err, out)
	}
	d := StartDev(t)
	for _, e := range examples.All() {
		t.Run(e.Name, func(t *testing.T) {
			runtime := e.Runtime
			if e.Interpreter != "" {
				runtime = string(d.Runtime(t.Context(), e.Runtime))
			}
			d.must(t, "deploy", e.Name, filepath.Join(built, e.Name+".zip"), "--runtime", runtime, "--handler", e.Handler,
				"--memory", strconv.Itoa(e.MemoryMB), "--timeout", strconv.Itoa(e.TimeoutSeconds))
			event := filepath.Join(t.TempDir(), "event.json")
			if err := os.WriteFile(event, e.Event(), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, warmth := range []string{"cold", "warm"} {
				out, errs, exit := d.CLI(t.Context(), "invoke", e.Name, "--payload", event)
				if exit != 0 || !strings.Contains(errs, warmth) {
					t.Errorf("%s: exit %d, %s", warmth, exit, errs)
				}
				if err := e.Check([]byte(out)); err != nil {
					t.Errorf("%s: %v", warmth, err)
				}
			}
		})
	}
}
