package instance

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux"
	"github.com/doze-run/doze/worker/sandbox/process"
)

// inSandboxes runs f with the sandboxes that this user can make: the plain one always, the walls
// as root.
func inSandboxes(t *testing.T, f func(t *testing.T, s sandbox.Sandbox)) {
	closed := func(t *testing.T, s sandbox.Sandbox) {
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		f(t, s)
	}
	t.Run("process", func(t *testing.T) {
		s, err := process.New(process.Options{DataDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		closed(t, s)
	})
	for _, name := range []string{"linux", "parked"} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("the linux sandbox needs root: run the tests as root to have this half")
			}
			s, err := linux.New(linux.Options{DataDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			if name == "linux" {
				closed(t, s)
				return
			}
			closed(t, &parkFirst{Sandbox: s})
		})
	}
}

// parkFirst starts every instance from a sandbox that was parked for it, with its client in it.
type parkFirst struct {
	*linux.Sandbox
}

func (s *parkFirst) Start(ctx context.Context, config sandbox.Config) (sandbox.Process, error) {
	runtime, memoryMB := runtimes.Runtime{Name: "provided.al2023"}, uint32(config.MemoryBytes>>20)
	if config.RuntimeDir != "" {
		runtime = runtimes.Runtime{Name: "python", Path: config.Argv[0], ReadOnly: config.ReadOnly}
		if strings.Contains(config.Argv[0], "node") {
			runtime.Name = "nodejs"
		}
	}
	park := (&Options{RuntimeDir: config.RuntimeDir}).ParkConfig(runtime, memoryMB, 0, config.Egress)
	park.ID = "p-" + config.ID
	if config.RuntimeDir != "" {
		park.Argv = append(slices.Clip(config.Argv), "parked")
	}
	parked, err := s.Park(ctx, park)
	if err != nil {
		return nil, err
	}
	return parked.Start(ctx, config)
}

func TestInSandboxes(t *testing.T) {
	inSandboxes(t, func(t *testing.T, s sandbox.Sandbox) {
		for _, c := range []struct{ prefix, handler, file, source string }{
			{"python3", "app.handler", "app.py", pythonApp},
			{"nodejs", "index.handler", "index.js", nodeApp},
		} {
			t.Run(c.prefix, func(t *testing.T) {
				r := startIn(t, s, interpreter(t, c.prefix), c.handler, map[string]string{c.file: c.source})
				for range 3 {
					res := r.call(`{"op":"print"}`)
					r.want(res, OK, "null")
					if !strings.Contains(string(res.LogTail), "printed") || !strings.HasPrefix(string(res.LogTail), "START ") {
						t.Errorf("log %q", res.LogTail)
					}
				}
				res := r.call(`{"op":"exit","status":5}`)
				r.want(res, Exit, `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: `+event(r.n, "").RequestID+` Error: Runtime exited with error: exit status 5"}`)
				r.expect("ended")
			})
		}
		t.Run("timeout", func(t *testing.T) {
			r := startIn(t, s, interpreter(t, "python3"), "app.handler", map[string]string{"app.py": pythonApp})
			res := r.call(`{"op":"sleep"}`, func(e *Event) { e.Timeout = 100 * time.Millisecond })
			if res.Outcome != Timeout {
				t.Errorf("got %s", describe(res))
			}
			r.expect("ended")
		})
		if s.Name() == "linux" { // the plain one has no limit to run into
			t.Run("memory", func(t *testing.T) {
				r := startIn(t, s, interpreter(t, "python3"), "app.handler", map[string]string{"app.py": pythonApp})
				res := r.call(`{"op":"eat"}`)
				r.want(res, OutOfMemory, `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: `+event(1, "").RequestID+` Error: Runtime exited with error: signal: killed"}`)
				if res.MaxMemoryMB < 100 || res.MaxMemoryMB > 128 {
					t.Errorf("max memory %d MB", res.MaxMemoryMB)
				}
				r.expect("ended")
			})
		}
		t.Run("no bootstrap that runs", func(t *testing.T) {
			r := startIn(t, s, runtimes.Runtime{Name: "provided.al2023"}, "x", map[string]string{"bootstrap": "#!/no/such/interpreter\n"})
			res := r.expect("done")
			if res.Outcome != InitError || !strings.Contains(string(res.Payload), `"Runtime.InvalidEntrypoint"`) {
				t.Errorf("got %s", describe(res))
			}
			r.expect("ended")
		})
		t.Run("idle, frozen where it can be, and on", func(t *testing.T) {
			r := startIn(t, s, interpreter(t, "python3"), "app.handler", map[string]string{"app.py": pythonApp})
			for n := range 3 {
				r.call(`{}`)
				if r.i.freezer.process == nil || n == 2 {
					continue
				}
				for frozen := false; !frozen; time.Sleep(time.Millisecond) {
					r.i.freezer.mu.Lock()
					frozen = r.i.freezer.frozen
					r.i.freezer.mu.Unlock()
				}
			}
			r.i.Stop()
			r.expect("ended")
		})
	})
}
