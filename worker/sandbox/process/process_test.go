package process

import (
	"testing"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/sandboxtest"
)

func TestBehaviour(t *testing.T) {
	sandboxtest.Run(t, func(t *testing.T, dataDir string) sandbox.Sandbox {
		s, err := New(Options{DataDir: dataDir})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestMissingIsLoud(t *testing.T) {
	s, err := New(Options{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if len(s.Missing()) < 5 {
		t.Errorf("a sandbox without walls says only %q", s.Missing())
	}
}

func TestRewriter(t *testing.T) {
	paths := rewriter(sandbox.Config{CodeDir: "/c", OptDir: "/o"})
	for in, want := range map[string]string{
		"/var/task": "/c", "/var/task/a": "/c/a", "/var/tasks": "/var/tasks", "x/var/task": "x/var/task",
		"/opt/lib:/usr/lib:/var/task/lib": "/o/lib:/usr/lib:/c/lib", "/var/runtime/x": "/var/runtime/x", "plain": "plain", "": "",
	} {
		if got := paths(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
