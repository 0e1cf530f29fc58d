package bench

import (
	"bytes"
	"strconv"
	"time"
)

// cpuUse is CPU time of the platform and what it started, since each process began.
type cpuUse struct {
	// Platform is the process itself and helpers that run the same program; Functions is every
	// other descendant, those that ended included.
	Platform, Functions time.Duration
}

func (a cpuUse) since(b cpuUse) cpuUse {
	return cpuUse{a.Platform - b.Platform, a.Functions - b.Functions}
}

// memoryUse is resident memory in bytes.
type memoryUse struct {
	RSS, PSS  int64
	Processes int
}

// kilobytes finds a "Name:   123 kB" line and returns it in bytes, 0 when it is not there.
func kilobytes(b []byte, name string) int64 {
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte(name))
		if !ok {
			continue
		}
		number, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
		n, _ := strconv.ParseInt(string(number), 10, 64)
		return n << 10
	}
	return 0
}
