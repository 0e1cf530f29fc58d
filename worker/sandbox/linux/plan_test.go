//go:build linux

package linux

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

func TestEncode(t *testing.T) {
	p := newProgram(stage.Step)
	p.call("one", unix.SYS_GETPID)
	p.list = stage.ListChild
	argv := p.strs([]string{"a", "bc"})
	p.call("two", unix.SYS_EXECVE, p.str("path"), argv, imm(0))
	b, err := p.encode()
	if err != nil {
		t.Fatal(err)
	}
	h := (*stage.Header)(unsafe.Pointer(&b[0]))
	if h.Magic != stage.Magic || int(h.Size) != len(b) || h.Main != 1 || h.Child != 1 || h.After != 0 || h.RelocLen != 2 {
		t.Errorf("%+v", h)
	}
	for i, want := range []string{"a\x00", "bc\x00"} {
		slot := binary.NativeEndian.Uint32(b[h.RelocOff+4*uint32(i):])
		at := binary.NativeEndian.Uint64(b[slot:])
		if !strings.HasPrefix(string(b[at:]), want) {
			t.Errorf("string %d is %q", i, b[at:at+4])
		}
	}
	if got := p.failure(stage.Report{A: 0, Errno: uint32(unix.EPERM), List: stage.Step<<8 | stage.ListChild}); got.Error() != "two: operation not permitted" || !errors.Is(got, unix.EPERM) {
		t.Errorf("%v", got)
	}
	p = newProgram(stage.Step)
	p.str(strings.Repeat("x", stage.MaxMessage))
	if _, err := p.encode(); !errors.Is(err, errTooLong) {
		t.Errorf("%v", err)
	}
}

func TestUIDs(t *testing.T) {
	u := newUIDs(10, 3)
	take := func() int {
		uid, err := u.take()
		if err != nil {
			t.Fatal(err)
		}
		return uid
	}
	a, b := take(), take()
	u.give(a)
	if c := take(); c == a || c == b {
		t.Errorf("%d was given out again at once", c)
	}
	take()
	if _, err := u.take(); !errors.Is(err, sandbox.ErrNoMemory) {
		t.Errorf("%v", err)
	}
	u.give(b)
	if got := take(); got != b {
		t.Errorf("%d, want %d", got, b)
	}
}

// TestFilter runs the assembled filter in the packet filter's own virtual machine.
func TestFilter(t *testing.T) {
	program, err := filterProgram()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := filter(); err != nil || len(b) != 8*len(program) {
		t.Fatalf("%d bytes for %d instructions, %v", len(b), len(program), err)
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	const allow, kill, refuse = 0x7fff0000, 0x80000000, 0x00050000
	ns := uint64(unix.CLONE_NEWUSER)
	type check struct {
		name string
		arch uint32
		nr   uint32
		arg  uint64
		want uint32
	}
	native := uint32(info.ID)
	checks := []check{
		{"read", native, unix.SYS_READ, 0, allow},
		{"mount", native, unix.SYS_MOUNT, 0, refuse | uint32(unix.EPERM)},
		{"clone3", native, unix.SYS_CLONE3, 0, refuse | uint32(unix.ENOSYS)},
		{"fork", native, unix.SYS_CLONE, uint64(unix.SIGCHLD), allow},
		{"thread", native, unix.SYS_CLONE, 0x3d0f00, allow},
		{"namespace", native, unix.SYS_CLONE, ns, refuse | uint32(unix.EPERM)},
		{"namespace and more", native, unix.SYS_CLONE, ns | 0x3d0f00, refuse | uint32(unix.EPERM)},
		{"inet", native, unix.SYS_SOCKET, unix.AF_INET, allow},
		{"netlink", native, unix.SYS_SOCKET, unix.AF_NETLINK, allow},
		{"vsock", native, unix.SYS_SOCKET, unix.AF_VSOCK, refuse | uint32(unix.EAFNOSUPPORT)},
		{"family with high bits", native, unix.SYS_SOCKET, 1<<32 | unix.AF_VSOCK, refuse | uint32(unix.EAFNOSUPPORT)},
		{"personality", native, unix.SYS_PERSONALITY, 0xffffffff, allow},
		{"no randomization", native, unix.SYS_PERSONALITY, 0x40000, refuse | uint32(unix.EPERM)},
		{"foreign", native + 1, unix.SYS_READ, 0, kill},
	}
	if runtime.GOARCH == "amd64" {
		checks = append(checks, check{"x32", native, 0x40000000 | unix.SYS_READ, 0, refuse | uint32(unix.ENOSYS)})
	}
	for _, c := range checks {
		// struct seccomp_data: number, architecture, instruction pointer, six arguments. The virtual machine reads
		// in network order, so each word is written so, in the places it has on a little-endian machine.
		var data [64]byte
		binary.BigEndian.PutUint32(data[0:], c.nr)
		binary.BigEndian.PutUint32(data[4:], c.arch)
		binary.BigEndian.PutUint32(data[16:], uint32(c.arg))
		binary.BigEndian.PutUint32(data[20:], uint32(c.arg>>32))
		got, err := vm.Run(data[:])
		if err != nil {
			t.Fatal(err)
		}
		if uint32(got) != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, uint32(got), c.want)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`41 31 0:38 / /sys/fs/cgroup/a\040b rw,nosuid shared:4 - cgroup2 cgroup2 rw`)
	f.Add(` - `)
	f.Add(`1 2 3 4 \`)
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := parseMount(line); ok && (m.point == "" && !strings.Contains(line, `\`) || m.fstype == "") {
			t.Errorf("%q: %+v", line, m)
		}
	})
}

func TestShares(t *testing.T) {
	for _, c := range []struct{ milli, shares, weight, quota int }{{1, 2, 1, 1000}, {72, 73, 72, 1440}, {1000, 1024, 1000, 20000}, {5900, 6041, 5900, 118000}} {
		if shares(c.milli) != c.shares || weight(c.milli) != c.weight || quota(c.milli) != c.quota {
			t.Errorf("%d: %d %d %d", c.milli, shares(c.milli), weight(c.milli), quota(c.milli))
		}
	}
}
