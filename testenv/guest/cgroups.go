//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// arrangements of cgroups that a guest can have.
//
//   - v1: a hierarchy for each controller.
//   - hybrid: the same, and the unified one without controllers.
//   - v2: the unified one with all controllers; the command is in its root.
//   - delegated: the command is in a group that is its own, as a systemd service with Delegate=yes; the rest of the
//     hierarchy is read-only.
//   - container: the same group as the root of a cgroup namespace and of the only mount.
var arrangements = []string{"v1", "hybrid", "v2", "delegated", "container"}

func known(arrangement string) bool { return slices.Contains(arrangements, arrangement) }

const (
	cgroupRoot = "/sys/fs/cgroup"
	slice      = cgroupRoot + "/system.slice"
	service    = slice + "/worker.service"
)

// arrange mounts the hierarchies and makes the command's group.
func arrange(j *job) error {
	switch j.Cgroups {
	case "v1", "hybrid":
		if err := mount("tmpfs", cgroupRoot, "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
		for _, controllers := range []string{"memory", "cpu,cpuacct", "pids", "freezer", "cpuset", "devices", "blkio"} {
			if err := mountAt("cgroup", filepath.Join(cgroupRoot, controllers), controllers); err != nil {
				return err
			}
		}
		if j.Cgroups == "v1" {
			return nil
		}
		return mountAt("cgroup2", filepath.Join(cgroupRoot, "unified"), "")
	}
	if err := mount("cgroup2", cgroupRoot, "cgroup2", 0, ""); err != nil {
		return err
	}
	if j.Cgroups == "v2" {
		return nil
	}
	for _, dir := range []string{slice, service} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), []byte("+cpu +memory +pids"), 0); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	// As systemd does it: the group's own files that may be written belong to the user, the limits do not.
	if err := unix.Setxattr(service, "trusted.delegate", []byte("1"), 0); err != nil {
		return fmt.Errorf("trusted.delegate: %w", err)
	}
	for _, file := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(service, file), j.User, j.User); err != nil {
			return err
		}
	}
	if j.Cgroups == "container" {
		return nil
	}
	if err := unix.Mount(service, service, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", service, err)
	}
	return unix.Mount("", cgroupRoot, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

func mountAt(fstype, dir, options string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return mount(fstype, dir, fstype, 0, options)
}

// group opens the group that the command is born in, nil for the root.
func (j *job) group() (*os.File, error) {
	if j.Cgroups != "delegated" && j.Cgroups != "container" {
		return nil, nil
	}
	return os.Open(service)
}

const enterName = "[guest-enter]"

// enter makes the process, which is in its group, the first one of a container as far as cgroups are concerned, and
// then the command: arguments are uid, path, argv.
func enter() error {
	runtime.LockOSThread()
	uid, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	err = errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Unmount(cgroupRoot, unix.MNT_DETACH),
		unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, ""))
	if err != nil {
		return fmt.Errorf("the container's cgroups: %w", err)
	}
	if uid != 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
			return err
		}
	}
	return syscall.Exec(os.Args[2], os.Args[3:], os.Environ())
}
