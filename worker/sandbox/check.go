package sandbox

import (
	"fmt"
	"path/filepath"
	"strings"
)

// MinMemoryBytes is the least memory an instance can be started in.
const MinMemoryBytes = 4 << 20

// Check refuses a Config that no sandbox can carry out. Every Start begins with it.
func (c *Config) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("sandbox: bad config: "+format, args...)
	}
	if !validID(c.ID) {
		return bad("id %q is not [a-z0-9-]{1,64}", c.ID)
	}
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return bad("no program")
	}
	if c.CodeDir == "" {
		return bad("no code directory")
	}
	for _, path := range append([]string{c.CodeDir, c.OptDir, c.RuntimeDir}, c.ReadOnly...) {
		if path != "" && (!filepath.IsAbs(path) || path != filepath.Clean(path) || path == "/" || strings.IndexByte(path, 0) >= 0) {
			return bad("path %q is not absolute and clean", path)
		}
	}
	for _, list := range [][]string{c.Argv, c.Env} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return bad("a zero byte in an argument or a variable")
			}
		}
	}
	if c.MemoryBytes < MinMemoryBytes || c.TmpBytes < 0 || c.CPUMilli < 1 || c.MaxProcesses < 1 {
		return bad("limits: memory %d, tmp %d, cpu %d, processes %d", c.MemoryBytes, c.TmpBytes, c.CPUMilli, c.MaxProcesses)
	}
	return nil
}

func validID(id string) bool {
	if len(id) < 1 || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
