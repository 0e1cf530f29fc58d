//go:build linux

package linux

import (
	"encoding/binary"
	"fmt"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// denied are the system calls that answer "operation not permitted". What is not named here, and is
// not caught by a condition below, is allowed: CPython, Node, Go, the JVM and bash must run. Each line
// is one reason. Names that an architecture does not have are left out there.
var denied = []string{
	// The file system tree.
	"mount", "umount2", "umount", "pivot_root", "chroot", "open_tree", "open_tree_attr", "move_mount", "mount_setattr", "fsopen", "fsconfig",
	"fsmount", "fspick", "statmount", "listmount", "quotactl", "quotactl_fd", "swapon", "swapoff",
	"name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark",
	// New namespaces (clone by its flags below).
	"unshare", "setns",
	// Other processes.
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd", "process_mrelease",
	// The kernel's own program loaders, queues and tracers.
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "lookup_dcookie",
	"add_key", "request_key", "keyctl", "syslog", "nfsservctl",
	// Modules, another kernel, the end.
	"init_module", "finit_module", "delete_module", "create_module", "query_module", "get_kernel_syms", "kexec_load", "kexec_file_load", "reboot",
	// The machine's clock, name, accounting and ports.
	"clock_settime", "clock_settime64", "clock_adjtime", "clock_adjtime64", "settimeofday", "stime", "adjtimex", "sethostname", "setdomainname",
	"acct", "iopl", "ioperm", "vhangup", "uselib", "ustat", "sysfs", "_sysctl", "vm86", "vm86old", "modify_ldt",
	// Memory placement and pinned secrets.
	"mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node", "memfd_secret",
}

// namespaceFlags are the flags of clone that make a namespace.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWTIME

// families are the socket families a function may use. The others have no use in an empty network
// namespace, are large and seldom-used code in the kernel, or (vsock) are not bound by a namespace at all.
var families = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// personalities that only tell or are the ordinary one.
var personalities = []uint64{0, 0x20000 /* UNAME26 */, 0xffffffff}

func refuse(errno unix.Errno) seccomp.Action {
	return seccomp.ActionErrno | seccomp.Action(errno)
}

// filter assembles the seccomp filter as the bytes of an array of struct sock_filter.
func filter() ([]byte, error) {
	program, err := filterProgram()
	if err != nil {
		return nil, err
	}
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	b := make([]byte, 0, 8*len(raw))
	for _, r := range raw {
		b = binary.NativeEndian.AppendUint16(b, r.Op)
		b = append(b, r.Jt, r.Jf)
		b = binary.NativeEndian.AppendUint32(b, r.K)
	}
	return b, nil
}

func filterProgram() ([]bpf.Instruction, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	var names []string
	for _, name := range denied {
		if _, ok := info.SyscallNames[name]; ok {
			names = append(names, name)
		}
	}
	without := func(values []uint64) (c seccomp.ArgumentConditions) {
		for _, v := range values {
			c = append(c, seccomp.Condition{Argument: 0, Operation: seccomp.NotEqual, Value: v})
		}
		return c
	}
	policy := seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		// Groups without conditions come first: a condition that does not hold leaves its argument, not
		// the call's number, in the accumulator.
		Syscalls: []seccomp.SyscallGroup{
			{Names: names, Action: refuse(unix.EPERM)},
			// The flags of clone3 are in memory, where a filter cannot see them: libraries fall back to clone. What
			// io_setup takes (fs.aio-max-nr) is counted for the whole machine: one function could take it all from the
			// databases beside it. Programs fall back to threads.
			{Names: []string{"clone3", "io_setup"}, Action: refuse(unix.ENOSYS)},
			{NamesWithCondtions: []seccomp.NameWithConditions{{Name: "personality", Conditions: without(personalities)}}, Action: refuse(unix.EPERM)},
			{NamesWithCondtions: []seccomp.NameWithConditions{
				{Name: "socket", Conditions: without(families)},
				// Of netlink only what lists interfaces. The host's device events come into every network namespace, and
				// the rest is for root.
				{Name: "socket", Conditions: seccomp.ArgumentConditions{
					{Argument: 0, Operation: seccomp.Equal, Value: unix.AF_NETLINK},
					{Argument: 2, Operation: seccomp.NotEqual, Value: unix.NETLINK_ROUTE}}},
			}, Action: refuse(unix.EAFNOSUPPORT)},
			{NamesWithCondtions: []seccomp.NameWithConditions{{Name: "clone", Conditions: seccomp.ArgumentConditions{
				{Argument: 0, Operation: seccomp.BitsSet, Value: namespaceFlags}}}}, Action: refuse(unix.EPERM)},
		},
	}
	program, err := policy.Assemble()
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	// The library lets a call of a foreign architecture (int 0x80 on amd64) run into the default action.
	// Such a call would pass by every name above, so it ends the process.
	const archOffset = 4
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: archOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(seccomp.ActionKillProcess)},
	}, program...), nil
}
