//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

type machine struct {
	kernel, initramfs string
	noV1              bool // the kernel keeps all controllers for v2
	memoryMB          int
	dir               string // for what it writes
}

// The guest's serial ports: the kernel's messages, the command's output, its exit status.
const (
	messagesPort = "/dev/ttyS0"
	outputPort   = "/dev/ttyS1"
	statusPort   = "/dev/ttyS2"
)

// runQEMU runs the machine until it powers off. The output of the command goes to standard output.
func runQEMU(ctx context.Context, qemu string, m machine) (int, error) {
	messages, status := filepath.Join(m.dir, "messages"), filepath.Join(m.dir, "status")
	// An emulated processor gets four levels of page tables and none of the mitigations: both only cost time there. On a busy
	// machine its timer may not tick in the moment in which the kernel looks whether it does.
	line := "console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init no5lvl mitigations=off no_timer_check"
	if m.noV1 {
		line += " cgroup_no_v1=all"
	}
	cmd := exec.CommandContext(ctx, qemu,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", accelerator(), "-cpu", "max",
		"-smp", strconv.Itoa(max(2, min(4, runtime.NumCPU()))), "-m", strconv.Itoa(m.memoryMB),
		"-kernel", m.kernel, "-initrd", m.initramfs, "-append", line,
		"-serial", "file:"+messages, "-serial", "stdio", "-serial", "file:"+status,
		"-fsdev", "local,id=root,path=/,readonly=on,security_model=none,multidevs=remap", "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
	)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.WaitDelay = 5 * time.Second
	// It ends with this process, however that ends; the thread that starts it must live as long.
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	switch {
	case ctx.Err() == context.Canceled:
		return 0, context.Cause(ctx)
	case ctx.Err() != nil:
		return 0, explain(context.Cause(ctx), messages)
	case err != nil:
		return 0, explain(fmt.Errorf("qemu: %w", err), messages)
	}
	b, err := os.ReadFile(status)
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return 0, explain(errors.New("the guest ended before its command did"), messages)
	}
	code, err := strconv.Atoi(text)
	if err != nil {
		return 0, explain(errors.New("the guest could not run the command: "+text), messages)
	}
	return code, nil
}

// accelerator is the kernel's where this user may use it, and emulation otherwise.
func accelerator() string {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		fmt.Fprintf(os.Stderr, "guest: the processor is emulated, which is slow: %v\n", err)
		return "tcg,thread=multi,tb-size=512"
	}
	f.Close()
	return "kvm"
}

// explain adds the kernel's messages to an error.
func explain(err error, messages string) error {
	b, _ := os.ReadFile(messages)
	if len(b) == 0 {
		return err
	}
	return fmt.Errorf("%w; the guest's kernel said:\n%s", err, b[max(0, len(b)-8192):])
}
