//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// insideVariable is set in the program once it is in a mount namespace of its own.
const insideVariable = "CHAOS_INSIDE"

// enter begins the program again in a mount namespace of its own, so that what it and its nodes mount is gone with
// the last of them, and makes it the parent of what its nodes leave behind.
func enter() error {
	if os.Getenv(insideVariable) == "" {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), insideVariable+"=1"))
	}
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// groups are the cgroups of nodes, found by the processes that were seen in them: other clusters of this machine
// have some, too.
type groups map[string]bool

// look adds those of the processes that are below this one now.
func (g groups) look() {
	parents := map[string]string{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if pid, _, parent, ok := stat(path); ok {
			parents[pid] = parent
		}
	}
	me := strconv.Itoa(os.Getpid())
	for pid := range parents {
		above := pid
		for range 32 {
			if above = parents[above]; above == me || above == "" {
				break
			}
		}
		if above != me {
			continue
		}
		raw, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		for line := range strings.Lines(string(raw)) {
			for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
				if strings.HasPrefix(part, "doze-") && part != "doze-platform" {
					g[part] = true
				}
			}
		}
	}
}

// left are those that are still there.
func (g groups) left() (left []string) {
	for name := range g {
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/"} {
			found, _ := filepath.Glob(pattern + name)
			for _, f := range found {
				left = append(left, "cgroup "+f)
			}
		}
	}
	return left
}

// mounts are the mount points that this process sees.
func mounts() (all []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 5 {
			all = append(all, fields[4])
		}
	}
	return all, lines.Err()
}

// stat is a process's id, name and parent.
func stat(path string) (pid, name, parent string, ok bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", "", "", false // it has just ended
	}
	text := string(raw)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return "", "", "", false
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 2 {
		return "", "", "", false
	}
	return strings.TrimSpace(text[:open]), text[open+1 : end], fields[1], true
}

// orphans are processes that are still there though all nodes have ended; what has ended is reaped.
func orphans() (left []string) {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			break
		}
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	me := strconv.Itoa(os.Getpid())
	for _, path := range stats {
		if pid, name, parent, ok := stat(path); ok && parent == me {
			left = append(left, fmt.Sprintf("process %s (%s)", pid, name))
		}
	}
	return left
}

// leftovers are what a cluster that has ended left, after the time that the kernel takes to end it. The mounts that
// were made for it are those of disks.
func leftovers(before []string, g groups, disks []string) (left []string, err error) {
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		now, err := mounts()
		if err != nil {
			return nil, err
		}
		left = append(orphans(), g.left()...)
		known := append(slices.Clone(before), disks...)
		for _, one := range now {
			if i := slices.Index(known, one); i >= 0 {
				known = slices.Delete(known, i, i+1)
				continue
			}
			left = append(left, "mount "+one)
		}
		if len(left) == 0 || time.Now().After(until) {
			return left, nil
		}
	}
}

// disk is a small file system of its own at a folder.
func disk(dir string, bytes int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.NewSyscallError("mount", unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)))
}

// filler is the file in a node's folder that takes all the room there is.
const filler = "filler-of-the-test"

func fill(dir string) error {
	f, err := os.Create(filepath.Join(dir, filler))
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			return err
		}
	}
	return nil
}

func free(dir string) error {
	err := os.Remove(filepath.Join(dir, filler))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// revision is the commit that is tested, for the report.
func revision() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func unmount(dir string) error {
	return os.NewSyscallError("umount", unix.Unmount(dir, unix.MNT_DETACH))
}
