package doctor

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
)

func files() sandbox.Finding {
	var l unix.Rlimit
	f := sandbox.Finding{Name: "open files", State: sandbox.OK}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		f.State, f.Found = sandbox.Degraded, err.Error()
		return f
	}
	f.Found = fmt.Sprintf("%d allowed", l.Max)
	if l.Max < leastFiles {
		f.State, f.Means, f.Fix = sandbox.Degraded, fmt.Sprintf("about %d instances at most", l.Max/8), "LimitNOFILE=65536 in the unit, or nofile in /etc/security/limits.conf"
	}
	return f
}

// tasks is how many processes and threads there may be: of this user, and on the machine.
func tasks() sandbox.Finding {
	f := sandbox.Finding{Name: "processes", State: sandbox.OK}
	most := uint64(1<<63 - 1)
	for _, path := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		if b, err := os.ReadFile(path); err == nil {
			if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 63); err == nil {
				most = min(most, n)
			}
		}
	}
	var l unix.Rlimit
	if os.Geteuid() != 0 && unix.Getrlimit(unix.RLIMIT_NPROC, &l) == nil {
		most = min(most, l.Max)
	}
	f.Found = fmt.Sprintf("%d allowed", most)
	if most < leastTasks {
		f.State, f.Means, f.Fix = sandbox.Degraded, "few instances fit at once", "LimitNPROC= in the unit, nproc in /etc/security/limits.conf, sysctl kernel.pid_max"
	}
	return f
}

func disk(dir string) (free int64, writable bool, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, false, err
	}
	return int64(s.Bavail) * s.Bsize, unix.Access(dir, unix.W_OK|unix.X_OK) == nil, nil
}

// clock asks the kernel whether something keeps its clock right. It sets nothing.
func clock() sandbox.Finding {
	f := sandbox.Finding{Name: "clock", State: sandbox.OK, Found: "synchronized"}
	state, err := unix.Adjtimex(&unix.Timex{})
	if err != nil {
		f.State, f.Found = sandbox.Degraded, err.Error()
	} else if state == unix.TIME_ERROR {
		f.State, f.Found = sandbox.Degraded, "not synchronized, as far as the kernel was told"
		f.Means, f.Fix = "times on the bill, in logs and of retries may be off", "install the package chrony or systemd-timesyncd"
	}
	return f
}

// configured looks a module up in the kernel's own configuration, where it shows that.
func configured(module string) bool {
	file, err := os.Open("/proc/config.gz")
	if err != nil {
		return false
	}
	defer file.Close()
	z, err := gzip.NewReader(file)
	if err != nil {
		return false
	}
	for s := bufio.NewScanner(z); s.Scan(); {
		if name, value, _ := strings.Cut(s.Text(), "="); name == "CONFIG_"+strings.ToUpper(module) {
			return value == "y"
		}
	}
	return false
}
