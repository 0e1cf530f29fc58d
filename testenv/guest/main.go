//go:build linux

// Command guest runs a command on Debian's own kernel in a virtual machine, with the cgroups arranged as asked for:
// what the tests of the sandbox need where the machine has another cgroup version, or none that may be changed.
//
//	guest [-cgroups v1|hybrid|v2|delegated|container] [-user UID] [-timeout 10m] COMMAND [ARGUMENT...]
//
// The guest sees the files of this machine, read-only, with a /tmp of its own; it starts in the same directory, has no
// network, and ends with the command, whose exit status becomes this one's. It needs qemu-system-x86_64; without
// /dev/kvm the processor is emulated, some ten times slower. The kernel is fetched as a Debian package and unpacked
// below -kernel, not installed.
//
// The binary is the guest's first process too (init.go). It must know nothing of Doze.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// job is what the guest is told to do.
type job struct {
	Cgroups string
	User    int // uid and gid of the command
	Dir     string
	Command []string
	Env     []string
	Now     time.Time // the guest's clock may have no better source
}

func main() {
	switch {
	case os.Getpid() == 1 && os.Args[0] == "/init":
		boot()
	case os.Args[0] == enterName:
		fatal(enter())
	}
	var j job
	flag.StringVar(&j.Cgroups, "cgroups", "v2", "the `arrangement` of cgroups: "+strings.Join(arrangements, ", "))
	flag.IntVar(&j.User, "user", 0, "the `uid` that the command runs as; its cgroup is that user's where it is delegated")
	timeout := flag.Duration("timeout", 10*time.Minute, "the guest is ended after this time")
	kernels := flag.String("kernel", filepath.Join("bin", "kernel"), "the `folder` that keeps the unpacked kernel")
	memory := flag.Int("memory", 2048, "of the guest, in MB")
	flag.Parse()
	j.Command = flag.Args()
	if err := j.check(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, *timeout, fmt.Errorf("the guest was ended after %s", *timeout))
	defer cancel()
	status, err := run(ctx, j, *kernels, *memory)
	fatal(err)
	os.Exit(status)
}

func (j *job) check() error {
	if len(j.Command) == 0 {
		return errors.New("no command")
	}
	if !known(j.Cgroups) {
		return fmt.Errorf("-cgroups %s: not one of %s", j.Cgroups, strings.Join(arrangements, ", "))
	}
	if j.User < 0 {
		return fmt.Errorf("-user %d: not a uid", j.User)
	}
	return nil
}

// run boots the guest for one job and gives the command's exit status.
func run(ctx context.Context, j job, kernels string, memory int) (status int, err error) {
	if runtime.GOARCH != "amd64" {
		return 0, errors.New("the guest runs this machine's programs and is an amd64 machine: this one is " + runtime.GOARCH)
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return 0, errors.New("qemu-system-x86_64 is not installed (Debian: apt-get install --no-install-recommends qemu-system-x86)")
	}
	if j.Dir, err = os.Getwd(); err != nil {
		return 0, err
	}
	j.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/tmp", "TMPDIR=/tmp", "LANG=C.UTF-8"}
	j.Now = time.Now()
	k, err := fetchKernel(ctx, kernels)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "initramfs")
	if err := writeInitramfs(image, k, j); err != nil {
		return 0, err
	}
	return runQEMU(ctx, qemu, machine{kernel: k.image, initramfs: image, noV1: j.Cgroups != "v1" && j.Cgroups != "hybrid", memoryMB: memory, dir: dir})
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}
