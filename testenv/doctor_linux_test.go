package testenv

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/doze-run/doze/worker/sandbox/sandboxtest"
)

// examination is what `doze doctor --json` prints.
type examination struct {
	Runs   bool `json:"runs"`
	Checks []struct {
		Name, State, Found, Means, Fix string
		Needed                         bool
	} `json:"checks"`
}

// examine runs doctor and gives what it said and its exit code.
func examine(t *testing.T, cmd *exec.Cmd) (e examination, states map[string]string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &e); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	states = map[string]string{}
	for _, c := range e.Checks {
		states[c.Name] = c.State
		if c.Name == "" || c.Found == "" || c.State != "ok" && c.Means == "" {
			t.Errorf("says too little: %+v", c)
		}
	}
	return e, states, cmd.ProcessState.ExitCode()
}

func TestDoctor(t *testing.T) {
	t.Run("root", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root to see what root gets")
		}
		data := t.TempDir()
		e, states, code := examine(t, exec.Command(Binary(t), "doctor", "--json", "--data-dir", filepath.Join(data, "none")))
		if !e.Runs || code != 0 || states["trial"] != "ok" || states["user"] != "ok" || states["seccomp"] != "ok" {
			t.Errorf("exit %d: %+v", code, e)
		}
		if left, _ := os.ReadDir(data); len(left) > 0 {
			t.Errorf("it made %v", left)
		}
	})
	for _, c := range []struct {
		name, user  string
		subordinate bool
	}{{"subordinate ids", "ok", true}, {"one id", "degraded", false}} {
		t.Run(c.name, func(t *testing.T) {
			u := sandboxtest.NewUser(t, c.subordinate)
			program := u.Program(t, Binary(t))
			e, states, code := examine(t, u.Command(program, "doctor", "--json"))
			if !e.Runs || code != 0 || states["trial"] != "ok" || states["user namespaces"] != "ok" || states["user"] != c.user {
				t.Errorf("exit %d: %+v", code, e)
			}
			if left := processesOf(t, u); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if left, _ := filepath.Glob(filepath.Join(u.Home, "*")); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	t.Run("no user namespaces", func(t *testing.T) {
		// A file over the switch says that they are closed; and what covers a part of /proc makes the kernel refuse
		// the user namespace a /proc of its own.
		u := sandboxtest.NewUser(t, false)
		program := u.Program(t, Binary(t))
		closed := filepath.Join(t.TempDir(), "closed")
		if err := os.WriteFile(closed, []byte("0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		covered := func(args ...string) *exec.Cmd {
			inner := u.Command(program, args...)
			cmd := exec.Command("unshare", append([]string{"--mount", "/bin/sh", "-c",
				`mount --bind "$0" /proc/sys/user/max_user_namespaces && exec "$@"`, closed}, inner.Args...)...)
			cmd.Dir, cmd.Env = inner.Dir, inner.Env
			return cmd
		}
		e, states, code := examine(t, covered("doctor", "--json"))
		if e.Runs || code != 1 || states["trial"] != "missing" {
			t.Errorf("exit %d: %+v", code, e)
		}
		out, err := covered("dev", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0").CombinedOutput()
		for _, want := range []string{"user.max_user_namespaces=0", "sysctl user.max_user_namespaces=", "--sandbox process", "doze doctor"} {
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("doze dev (%v) does not say %q:\n%s", err, want, out)
			}
		}
	})
}
