package bench

import (
	"bytes"
	"os"
	"runtime"
	"strings"
	"time"
)

// Machine is what the figures were taken on.
type Machine struct {
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	MemoryMB int64  `json:"memoryMB,omitempty"`
	Kernel   string `json:"kernel,omitempty"`
	// Go is the version doze was built with. What ran the functions is in their rows.
	Go string `json:"go"`
	// Cgroup is "v2", "v1", "hybrid" or "".
	Cgroup string `json:"cgroup,omitempty"`
	// Load1 is the load average of the last minute when the run began: above zero, others used
	// the machine too.
	Load1 string    `json:"load1,omitempty"`
	Root  bool      `json:"root"`
	Date  time.Time `json:"date"`
}

// describe reads what can be read; what cannot stays empty.
func describe(now time.Time) Machine {
	m := Machine{CPU: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version(), Root: os.Geteuid() == 0, Date: now.UTC().Truncate(time.Second)}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range bytes.Lines(b) {
			if name, value, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		m.MemoryMB = kilobytes(b, "MemTotal:") >> 20
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load1, _, _ = strings.Cut(string(b), " ")
	}
	_, v2 := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	_, v1 := os.Stat("/sys/fs/cgroup/memory")
	_, unified := os.Stat("/sys/fs/cgroup/unified/cgroup.controllers")
	switch {
	case v2 == nil:
		m.Cgroup = "v2"
	case v1 == nil && unified == nil:
		m.Cgroup = "hybrid"
	case v1 == nil:
		m.Cgroup = "v1"
	}
	return m
}
