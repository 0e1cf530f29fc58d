// Package clock builds doze with a clock that a test sets: the one clock source of a Go process is time.Now, so that is
// where it is, in a copy of the standard library's source that exists for the build alone. Timers and durations are monotonic and
// stay as they are; what is skewed is what the machine would say the time of day is, for Doze and for every library in it.
//
// It knows Go's build. It must not know what Doze does with the time.
package clock

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Variable names the file with the offset for a process that Build made.
const Variable = "CLOCK_OF_THE_TEST"

// original is what Now begins with; a Go version that has it otherwise needs another line here.
const original = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n"

const skewed = "\tsec, nsec, mono := runtimeNow()\n\tsec += skew()\n\tif mono == 0 {\n"

// skew is in a file that is mapped, since Now is called where the runtime can make no system call.
const skew = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var skewSeconds = mapSkew()

func mapSkew() *atomic.Int64 {
	none := new(atomic.Int64)
	name, ok := syscall.Getenv("@VARIABLE@")
	if !ok {
		return none
	}
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return none
	}
	defer syscall.Close(fd)
	memory, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return none
	}
	return (*atomic.Int64)(unsafe.Pointer(&memory[0]))
}

// skew is the offset in seconds that the file says.
func skew() int64 {
	if skewSeconds == nil { // before this package's variables have their values
		return 0
	}
	return skewSeconds.Load()
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
	added := strings.Replace(skew, "@VARIABLE@", Variable, 1)
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

// Set writes an offset, in whole seconds, for the processes that have the file as Variable; they go by it at once. The
// file must be there, by a first Set, before they start.
func Set(file string, offset time.Duration) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(offset/time.Second))), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	return nil
}
