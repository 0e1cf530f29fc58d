package capacity

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	meminfo = "/proc/meminfo"
	// platformReserve of the machine's memory is left to the platform and everything else on it:
	// an eighth, at least 512 MB.
	platformReserve = 512 * mib
	// freshFor is how long an answer of the kernel is used again.
	freshFor = 100 * time.Millisecond
	// fallback is the total where the machine's cannot be told.
	fallback = 1024 * mib
)

// cgroupLimits are the files that bound a container's memory, v2 and v1.
var cgroupLimits = []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}

// Default is what instances may use when nobody says: what the machine, or the container this
// runs in, has, less a reserve.
func Default() int64 {
	raw, err := os.ReadFile(meminfo)
	if err != nil {
		return fallback
	}
	total, ok := parseMeminfo(raw, "MemTotal:")
	if !ok {
		return fallback
	}
	for _, path := range cgroupLimits {
		if raw, err := os.ReadFile(path); err == nil {
			if limit, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && limit > 0 {
				total = min(total, limit)
			}
		}
	}
	return max(total/4, total-max(platformReserve, total/8))
}

// parseMeminfo finds one line of /proc/meminfo, in bytes.
func parseMeminfo(raw []byte, key string) (int64, bool) {
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[0] == key && fields[2] == "kB" {
			kb, err := strconv.ParseInt(fields[1], 10, 64)
			return kb << 10, err == nil && kb >= 0 && kb < 1<<50
		}
	}
	return 0, false
}

// available asks the kernel how much memory is left, at most every freshFor.
type available struct {
	mu    sync.Mutex
	at    time.Time
	left  int64
	known bool
}

func newAvailable() *available { return &available{} }

func (a *available) bytes() (int64, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.Sub(a.at) >= freshFor {
		raw, err := os.ReadFile(meminfo)
		a.at = now
		if a.known = err == nil; a.known {
			a.left, a.known = parseMeminfo(raw, "MemAvailable:")
		}
	}
	return a.left, a.known
}
