// Package clock builds doze with a clock that a test sets: the one clock source of a Go process is time.Now, so that is
// where it is, in a copy of the standard library's source that exists for the build alone. Timers and durations are monotonic and
// stay as they are; what is skewed is what the machine would say the time of day is, for Doze and for every library in it.
//
// It knows Go's build. It must not know what Doze does with the time.
package clock

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Variable names the file with the offset for a process that Build made.
const Variable = "CLOCK_OF_THE_TEST"

// Delay is how long a process may take to go by a new offset.
const Delay = 50 * time.Millisecond

// original is what Now begins with; a Go version that has it otherwise needs another line here.
const original = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n"

const skewed = "\tsec, nsec, mono := runtimeNow()\n\tsec += skew(mono)\n\tif mono == 0 {\n"

const skew = `package time

import (
	"sync/atomic"
	"syscall"
)

var (
	skewFile, _           = syscall.Getenv("@VARIABLE@")
	skewRead, skewSeconds atomic.Int64
)

// skew is the offset in seconds that the file says; it is read at most every so often.
func skew(mono int64) int64 {
	if skewFile == "" {
		return 0
	}
	last := skewRead.Load()
	if mono-last < @DELAY@ || !skewRead.CompareAndSwap(last, mono) {
		return skewSeconds.Load()
	}
	fd, err := syscall.Open(skewFile, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return skewSeconds.Load()
	}
	var b [24]byte
	n, err := syscall.Read(fd, b[:])
	syscall.Close(fd)
	if err != nil || n == 0 {
		return skewSeconds.Load()
	}
	var sum, sign int64 = 0, 1
	for i, c := range b[:n] {
		switch {
		case i == 0 && c == '-':
			sign = -1
		case c >= '0' && c <= '9':
			sum = 10*sum + int64(c-'0')
		}
	}
	skewSeconds.Store(sign * sum)
	return sign * sum
}
`

// Build builds the binary of a package with such a clock. dir is the module's root. It takes a minute or two, since
// all is built anew.
func Build(ctx context.Context, dir, path, out string) error {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("clock: where is Go: %w", err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	changed := strings.Replace(string(text), original, skewed, 1)
	if changed == string(text) {
		return fmt.Errorf("clock: time.Now of this Go version does not begin with\n%s", original)
	}
	tmp, err := os.MkdirTemp("", "doze-clock-")
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	defer os.RemoveAll(tmp)
	added := strings.NewReplacer("@VARIABLE@", Variable, "@DELAY@", strconv.FormatInt(int64(Delay), 10)).Replace(skew)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(source, "time.go"): filepath.Join(tmp, "time.go"), filepath.Join(source, "skew.go"): filepath.Join(tmp, "skew.go"),
	}})
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	for name, content := range map[string]string{"time.go": changed, "skew.go": added, "overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("clock: %w", err)
		}
	}
	build := exec.CommandContext(ctx, "go", "build", "-overlay", filepath.Join(tmp, "overlay.json"), "-o", out, path)
	build.Dir = dir
	if said, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("clock: build: %w\n%s", err, said)
	}
	return nil
}

// Set writes an offset, in whole seconds, for the process that has the file as Variable.
func Set(file string, offset time.Duration) error {
	text := strconv.FormatInt(int64(offset/time.Second), 10)
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	return nil
}
