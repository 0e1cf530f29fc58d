// Package systemd holds the units for systemd. Its test has systemd itself read them.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// systemd-analyze verify finds nothing to say about the units.
func TestUnitsAreRight(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed (Debian package systemd): the units were not looked at")
	}
	// verify wants the programs to be there.
	dir := t.TempDir()
	program := filepath.Join(dir, "doze")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range units(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/doze", program)), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput()
		var said []string
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, filepath.Base(path)) {
				said = append(said, line) // of the machine's own units it may say what it likes
			}
		}
		if len(said) > 0 {
			t.Errorf("%s: %v\n%s", path, err, strings.Join(said, ""))
		} else if err != nil && len(out) > 0 {
			t.Logf("%s: %v, about other units:\n%s", path, err, out)
		} else if err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A worker has the same capabilities here as in a container.
func TestCapabilities(t *testing.T) {
	flags, err := os.ReadFile("../container-flags")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, m := range regexp.MustCompile(`(?m)^--cap-add=(\w+)$`).FindAllStringSubmatch(string(flags), -1) {
		want = append(want, "CAP_"+m[1])
	}
	slices.Sort(want)
	if len(want) < 5 {
		t.Fatalf("container-flags names %v", want)
	}
	for name, want := range map[string][]string{"doze-worker.service": want, "doze.service": want, "doze-control.service": nil} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindStringSubmatch(string(text))
		if m == nil {
			t.Errorf("%s bounds no capabilities", name)
			continue
		}
		got := strings.Fields(m[1])
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s has %v, container-flags %v", name, got, want)
		}
	}
}

func units(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("*.service")
	if err != nil || len(all) != 3 {
		t.Fatalf("units: %v, %v", all, err)
	}
	return all
}
