//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// boot is PID 1 of the guest. It says how the command ended and switches the machine off.
func boot() {
	status, err := guest()
	text := strconv.Itoa(status)
	if err != nil {
		text = err.Error()
	}
	if port, err := os.OpenFile(statusPort, os.O_WRONLY, 0); err != nil {
		fmt.Println("guest:", err, text)
	} else {
		fmt.Fprintln(port, text)
		drain(port)
	}
	for unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) == unix.EINTR {
	}
	select {} // the end of PID 1 would be a panic
}

func guest() (int, error) {
	if err := mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return 0, err
	}
	b, err := os.ReadFile(jobFile)
	if err != nil {
		return 0, err
	}
	var j job
	if err := json.Unmarshal(b, &j); err != nil {
		return 0, err
	}
	if now := unix.NsecToTimespec(j.Now.UnixNano()); time.Since(j.Now).Abs() > time.Hour {
		unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	}
	for _, step := range []func(*job) error{loadModules, root, loopback, arrange} {
		if err := step(&j); err != nil {
			return 0, err
		}
	}
	return j.run()
}

// loadModules loads all there are. What depends on what differs between kernels: one whose symbols are not there yet
// has its turn in the next round.
func loadModules(*job) error {
	files, err := filepath.Glob(modulesDir + "/*")
	if err != nil {
		return err
	}
	for len(files) > 0 {
		var later []string
		for _, file := range files {
			err := loadModule(file)
			if errors.Is(err, unix.ENOENT) {
				later = append(later, file)
			} else if err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
		}
		if len(later) == len(files) {
			return fmt.Errorf("modules %q need others that are not here", files)
		}
		files = later
	}
	return nil
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return &os.PathError{Op: "load", Path: file, Err: err}
	}
	return nil
}

// root puts the host's files, read-only, in the place of the initramfs, with places to write in them. The working
// directory stays to be seen, wherever it is.
func root(j *job) error {
	if err := mount("root", "/root", "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,cache=loose,msize=512000,access=any"); err != nil {
		return err
	}
	work, err := unix.OpenTree(unix.AT_FDCWD, "/root"+j.Dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%s: %w", j.Dir, err)
	}
	defer unix.Close(work)
	if err := unix.Mount("/etc", "/root/etc", "", unix.MS_BIND, ""); err != nil { // the copy
		return fmt.Errorf("/etc: %w", err)
	}
	for _, m := range []struct{ source, dir, fstype, options string }{
		{"proc", "/proc", "proc", ""}, {"sysfs", "/sys", "sysfs", ""}, {"devtmpfs", "/dev", "devtmpfs", ""},
		{"devpts", "/dev/pts", "devpts", ""}, {"tmpfs", "/dev/shm", "tmpfs", "mode=1777"},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"}, {"tmpfs", "/var/tmp", "tmpfs", "mode=1777"}, {"tmpfs", "/run", "tmpfs", "mode=755"},
	} {
		if m.dir == "/dev/pts" || m.dir == "/dev/shm" {
			if err := os.MkdirAll("/root"+m.dir, 0o755); err != nil {
				return err
			}
		}
		if err := mount(m.source, "/root"+m.dir, m.fstype, 0, m.options); err != nil {
			return err
		}
	}
	if _, err := os.Stat("/root" + j.Dir); err != nil { // it was below one of those
		if err := os.MkdirAll("/root"+j.Dir, 0o755); err != nil {
			return err
		}
		if err := unix.MoveMount(work, "", unix.AT_FDCWD, "/root"+j.Dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("%s: %w", j.Dir, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

func loopback(*job) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// run runs the command and collects what is orphaned meanwhile.
func (j *job) run() (int, error) {
	out, err := os.OpenFile(outputPort, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	if err := raw(out); err != nil {
		return 0, err
	}
	path, err := j.look()
	if err != nil {
		return 0, err
	}
	attr := &os.ProcAttr{Dir: j.Dir, Env: j.Env, Files: []*os.File{nil, out, out}, Sys: &syscall.SysProcAttr{Setsid: true}}
	argv := j.Command
	group, err := j.group()
	if err != nil {
		return 0, err
	}
	if group != nil {
		defer group.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(group.Fd())
	}
	switch {
	case j.Cgroups == "container":
		argv = append([]string{enterName, strconv.Itoa(j.User), path}, argv...)
		path = "/proc/self/exe"
	case j.User != 0:
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(j.User), Gid: uint32(j.User)}
	}
	p, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid == p.Pid:
			if status.Signaled() {
				fmt.Fprintln(out, "guest: the command was ended by a signal:", status.Signal())
			}
			drain(out)
			if status.Signaled() {
				return 128 + int(status.Signal()), nil
			}
			return status.ExitStatus(), nil
		}
	}
}

// look finds the command as a shell would.
func (j *job) look() (string, error) {
	if err := os.Chdir(j.Dir); err != nil {
		return "", err
	}
	for _, e := range j.Env {
		if len(e) > 5 && e[:5] == "PATH=" {
			os.Setenv("PATH", e[5:])
		}
	}
	return exec.LookPath(j.Command[0])
}

// raw makes a terminal pass bytes on as they are.
func raw(f *os.File) error {
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	return unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

// drain waits until what was written has left the machine.
func drain(f *os.File) { unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) }

func mount(source, target, fstype string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, target, err)
	}
	return nil
}
