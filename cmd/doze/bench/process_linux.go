package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// selfCPU is the CPU time of this process: the load generator, and the floor's bare loop.
func selfCPU() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// processCPU reads a process's CPU clock, threads that ended included, to the nanosecond:
// /proc/<pid>/stat counts in 10 ms, too coarse for a sum over many processes.
func processCPU(pid int) (time.Duration, error) {
	// The clock of another process: clock_getcpuclockid(3), (~pid << 3) | CPUCLOCK_SCHED.
	clock := int32(^uint32(pid)<<3 | 2)
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// procStat is what of /proc/<pid>/stat is needed.
type procStat struct {
	parent  int
	waitCPU time.Duration // CPU time of children that ended and were waited for
}

// clockTick is USER_HZ, which is 100 on every architecture Go supports.
const clockTick = 10 * time.Millisecond

func parseStat(b []byte) (procStat, error) {
	// The second field is the program's name in parentheses and may hold anything.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return procStat{}, errors.New("no program name")
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 15 {
		return procStat{}, errors.New("too few fields")
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return procStat{}, err
	}
	user, err := strconv.ParseInt(f[13], 10, 64)
	if err != nil {
		return procStat{}, err
	}
	system, err := strconv.ParseInt(f[14], 10, 64)
	if err != nil {
		return procStat{}, err
	}
	return procStat{parent, time.Duration(user+system) * clockTick}, nil
}

// descendants is the process tree below root, without root. Processes come and go while it is
// read; those that went are left out.
func descendants(root int) (map[int]procStat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, err
	}
	all := make(map[int]procStat, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		if st, err := parseStat(b); err == nil {
			all[pid] = st
		}
	}
	below := make(map[int]procStat)
	var member func(pid, depth int) bool
	member = func(pid, depth int) bool {
		if pid == root {
			return true
		}
		st, ok := all[pid]
		return ok && depth < 64 && member(st.parent, depth+1)
	}
	for pid, st := range all {
		if pid != root && member(pid, 0) {
			below[pid] = st
		}
	}
	return below, nil
}

// isProgram says whether pid runs the same program as root: a helper of the platform.
func isProgram(pid int, program string) bool {
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return err == nil && program != "" && exe == program
}

func treeCPU(root int) (cpuUse, error) {
	use := cpuUse{}
	own, err := processCPU(root)
	if err != nil {
		return use, err
	}
	use.Platform = own
	b, err := os.ReadFile("/proc/" + strconv.Itoa(root) + "/stat")
	if err != nil {
		return use, err
	}
	st, err := parseStat(b)
	if err != nil {
		return use, fmt.Errorf("/proc/%d/stat: %w", root, err)
	}
	use.Functions = st.waitCPU
	below, err := descendants(root)
	if err != nil {
		return use, err
	}
	program, _ := os.Readlink("/proc/" + strconv.Itoa(root) + "/exe")
	for pid, st := range below {
		own, err := processCPU(pid)
		if err != nil {
			continue // it has ended
		}
		if isProgram(pid, program) {
			use.Platform += own
			use.Functions += st.waitCPU
		} else {
			use.Functions += own + st.waitCPU
		}
	}
	return use, nil
}

// functionProcesses is every descendant of the platform that does not run the platform's program,
// and helpers every one that does.
func functionProcesses(root int) (functions, helpers []int, err error) {
	below, err := descendants(root)
	if err != nil {
		return nil, nil, err
	}
	program, _ := os.Readlink("/proc/" + strconv.Itoa(root) + "/exe")
	for pid := range below {
		if isProgram(pid, program) {
			helpers = append(helpers, pid)
		} else {
			functions = append(functions, pid)
		}
	}
	return functions, helpers, nil
}

// memoryOf adds up the resident memory of processes. PSS of another user's process needs root.
func memoryOf(pids []int) (memoryUse, error) {
	var use memoryUse
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return use, err
		}
		use.RSS += kilobytes(b, "Rss:")
		use.PSS += kilobytes(b, "Pss:")
		use.Processes++
	}
	return use, nil
}

func memAvailable() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	n := kilobytes(b, "MemAvailable:")
	if n == 0 {
		return 0, errors.New("/proc/meminfo has no MemAvailable")
	}
	return n, nil
}

// childAttr puts a child into a process group of its own, so that Ctrl-C reaches the bench alone
// and it can clean up in order, and has it end if the bench is killed.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
