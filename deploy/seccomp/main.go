// Command seccomp writes the system call filter of a worker's container: Docker's default profile, with
// what a worker needs besides and without what it has no business with. `make generate` runs it; a newer
// version of Docker's profile comes with go.mod.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// joinSessionKeyring is KEYCTL_JOIN_SESSION_KEYRING.
const joinSessionKeyring = 1

// added are the calls that Docker's profile refuses even to a container with CAP_SYS_ADMIN, and why a
// worker makes them.
var added = []specs.LinuxSyscall{
	// The root of the instances takes the place of the container's, and the container's is unmounted: a
	// chroot could be left.
	{Names: []string{"pivot_root"}},
	// An instance leaves the session keyring that it would share with the worker. Nothing else of keyctl.
	{Names: []string{"keyctl"}, Args: []specs.LinuxSeccompArg{{Index: 0, Value: joinSessionKeyring, Op: specs.OpEqualTo}}},
}

// removed are the calls that Docker's profile lets a container with CAP_SYS_ADMIN make and that reach the
// whole machine: its kernel's programs, counters, log, files and quotas.
var removed = []string{
	"bpf", "perf_event_open", "syslog", "fanotify_init", "quotactl", "quotactl_fd", "lookup_dcookie",
	"lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr",
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: seccomp FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "seccomp:", err)
		os.Exit(1)
	}
}

func write(path string) error {
	profile := seccomp.DefaultProfile()
	for _, s := range profile.Syscalls {
		s.Names = slices.DeleteFunc(s.Names, func(name string) bool { return slices.Contains(removed, name) })
	}
	profile.Syscalls = slices.DeleteFunc(profile.Syscalls, func(s *seccomp.Syscall) bool { return len(s.Names) == 0 })
	for _, s := range added {
		s.Action = specs.ActAllow
		profile.Syscalls = append(profile.Syscalls, &seccomp.Syscall{LinuxSyscall: s})
	}
	b, err := json.MarshalIndent(profile, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
