package pool

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"
)

// cpuLoad tells whether the machine has CPU to spare, from /proc/stat, read at most every
// loadWindow. Where there is no such file it always has.
type cpuLoad struct {
	cores int

	mu          sync.Mutex
	at          time.Time
	idle, total uint64
	free        bool
}

const (
	loadWindow = 50 * time.Millisecond
	// idleShare of the CPU time must have been idle for an instance more to be of use.
	idleShare = 0.30
)

func newCPULoad() *cpuLoad {
	return &cpuLoad{cores: runtime.NumCPU(), free: true}
}

func (l *cpuLoad) spare(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.at) < loadWindow {
		return l.free
	}
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return true
	}
	idle, total, ok := parseStat(raw)
	if ok && !l.at.IsZero() && total > l.total {
		l.free = float64(idle-l.idle) > idleShare*float64(total-l.total)
	}
	l.at, l.idle, l.total = now, idle, total
	return l.free
}

// Spare says whether the machine has CPU to spare.
func (p *Pool) Spare() bool { return p.load.spare(time.Now()) }

// parseStat takes the first line of /proc/stat apart: idle (with iowait) and total ticks.
func parseStat(raw []byte) (idle, total uint64, ok bool) {
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 6 || string(fields[0]) != "cpu" {
		return 0, 0, false
	}
	for i, field := range fields[1:] {
		n, err := strconv.ParseUint(string(field), 10, 64)
		if err != nil {
			return 0, 0, false
		}
		if i < 8 { // guest time is contained in user time
			total += n
		}
		if i == 3 || i == 4 {
			idle += n
		}
	}
	return idle, total, true
}
