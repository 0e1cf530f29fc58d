package sandboxtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attackVar makes the test binary itself, started in a sandbox, a hostile function written in Go.
const attackVar = "DOZE_TEST_ATTACK"

func init() {
	switch os.Getenv(attackVar) {
	case "calls":
		attackCalls()
	case "look":
		look()
	default:
		return
	}
	os.Exit(0)
}

// attacker starts the test binary inside as a hostile function of that name.
func (f *fixture) attacker(t *testing.T, name string) *instance {
	t.Helper()
	const file = "attacker"
	if _, err := os.Stat(filepath.Join(f.code, file)); err != nil {
		from, err := os.Open("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		to, err := os.OpenFile(filepath.Join(f.code, file), os.O_CREATE|os.O_WRONLY, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(to, from); err != nil {
			t.Fatal(err)
		}
		if err := to.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c := f.config("/var/task/" + file)
	c.Env = append(c.Env, attackVar+"="+name)
	c.MemoryBytes = 1 << 30 // the race detector's
	return f.start(t, c)
}

// attempt is one thing that must not work.
type attempt struct {
	name string
	try  func() error
}

func call(nr uintptr, args ...uintptr) func() error {
	var a [6]uintptr
	copy(a[:], args)
	return func() error {
		if _, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
}

func text(s string) uintptr {
	b, _ := unix.BytePtrFromString(s)
	return uintptr(unsafe.Pointer(b))
}

// written is opened for writing. A file that is covered with /dev/null opens, and what is written changes nothing.
func written(path string) func() error {
	return func() error {
		var file, null unix.Stat_t
		if unix.Stat(path, &file) == nil && unix.Stat("/dev/null", &null) == nil && file.Rdev == null.Rdev && file.Rdev != 0 {
			return errors.New("it is /dev/null")
		}
		return opened(path, unix.O_WRONLY)()
	}
}

func opened(path string, flags int) func() error {
	return func() error {
		fd, err := unix.Open(path, flags, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

// raised is a capset that asks for every capability.
func raised() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	all := [2]unix.CapUserData{{Effective: ^uint32(0), Permitted: ^uint32(0), Inheritable: ^uint32(0)}, {Effective: ^uint32(0), Permitted: ^uint32(0), Inheritable: ^uint32(0)}}
	return unix.Capset(&header, &all[0])
}

// scheduled asks for a scheduling class that goes before all others.
func scheduled(policy uint32) func() error {
	return func() error {
		a := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: 1, Runtime: 1e6, Deadline: 1e7, Period: 1e7}
		if policy == unix.SCHED_DEADLINE {
			a.Priority = 0
		}
		return unix.SchedSetAttr(0, &a, 0)
	}
}

func limited(which int, to uint64) func() error {
	return func() error { return unix.Setrlimit(which, &unix.Rlimit{Cur: to, Max: to}) }
}

// ioctl on whichever of the three standard descriptors would take it.
func ioctl(request uintptr, arg unsafe.Pointer) func() error {
	return func() (err error) {
		for fd := range uintptr(3) {
			if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno == 0 {
				return nil
			} else {
				err = errno
			}
		}
		return err
	}
}

var letter = byte('x')

// attempts is what a hostile function tries by raw system calls, beside testSystemCalls.
func attempts() []attempt {
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	clone := struct{ flags, rest uint64 }{flags: unix.CLONE_NEWUSER}
	list := []attempt{
		{"clone3 with a user namespace", call(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&clone)), 88)},
		{"all capabilities", raised},
		{"an ambient capability", call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN)},
		{"securebits", call(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 1)},
		{"no_new_privs off", call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 0)},
		{"another memory layout", call(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_START_BRK, 4096)},
		{"seccomp off", call(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, 0)},
		{"uid 0", call(unix.SYS_SETRESUID, 0, 0, 0)},
		{"gid 0", call(unix.SYS_SETRESGID, 0, 0, 0)},
		{"group 0", func() error { return unix.Setgroups([]int{0}) }},
		{"another file system uid", func() error {
			// Both give the uid there was; the second tells whether the first worked.
			unix.SetfsuidRetUid(0)
			if was, _ := unix.SetfsuidRetUid(-1); was == 0 {
				return nil
			}
			return unix.EPERM
		}},
		{"signal 0 to PID 1 by pidfd", func() error {
			fd, err := unix.PidfdOpen(1, 0)
			if err != nil {
				return err
			}
			return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}},
		{"SIGKILL to PID 1", call(unix.SYS_TGKILL, 1, 1, uintptr(unix.SIGKILL))},
		{"SIGKILL to the parent's group", call(unix.SYS_KILL, ^uintptr(0), uintptr(unix.SIGKILL))},
		{"limits of PID 1", call(unix.SYS_PRLIMIT64, 1, unix.RLIMIT_NOFILE, 0, uintptr(unsafe.Pointer(&unix.Rlimit{})))},
		{"real time", scheduled(unix.SCHED_FIFO)},
		{"round robin", scheduled(unix.SCHED_RR)},
		{"a deadline", scheduled(unix.SCHED_DEADLINE)},
		{"a better priority", call(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, ^uintptr(0))},
		{"real time input and output", call(unix.SYS_IOPRIO_SET, 1, 0, 1<<13)},
		{"scheduling of PID 1", call(unix.SYS_SCHED_SETAFFINITY, 1, 8, uintptr(unsafe.Pointer(&[1]uint64{1})))},
		{"more descriptors", limited(unix.RLIMIT_NOFILE, 4096)},
		{"core dumps", limited(unix.RLIMIT_CORE, 1<<20)},
		{"message queues", limited(unix.RLIMIT_MSGQUEUE, 1<<20)},
		{"a message queue", call(unix.SYS_MQ_OPEN, text("q"), unix.O_CREAT|unix.O_RDWR, 0o600, 0)},
		{"all memory locked", call(unix.SYS_MLOCKALL, unix.MCL_CURRENT|unix.MCL_FUTURE)},
		{"a letter typed into the terminal", ioctl(unix.TIOCSTI, unsafe.Pointer(&letter))},
		{"a controlling terminal", ioctl(unix.TIOCSCTTY, nil)},
		{"a console paste", ioctl(unix.TIOCLINUX, unsafe.Pointer(&letter))},
		{"the terminal", opened("/dev/tty", unix.O_RDWR)},
		{"a new terminal", opened("/dev/ptmx", unix.O_RDWR)},
		{"the console", opened("/dev/console", unix.O_RDWR)},
		{"lo down", func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			return call(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&ifreq[0])))()
		}},
		{"a tunnel device", opened("/dev/net/tun", unix.O_RDWR)},
		{"devices' events", call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_KOBJECT_UEVENT)},
		{"audit", call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT)},
		{"netfilter", call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)},
		{"ipsec", call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM)},
		{"a disk", call(unix.SYS_MKNODAT, ^uintptr(99), text("/tmp/disk"), unix.S_IFBLK|0o600, 0xfe00)},
		{"a character device", call(unix.SYS_MKNODAT, ^uintptr(99), text("/tmp/mem"), unix.S_IFCHR|0o600, 0x101)},
		{"a hard link of a program", func() error { return unix.Link("/usr/bin/su", "/tmp/su") }},
		{"an owner", func() error {
			if err := os.WriteFile("/tmp/mine", nil, 0o700); err != nil {
				return err
			}
			return unix.Chown("/tmp/mine", 0, 0)
		}},
		{"a capability on a file", func() error {
			return unix.Setxattr("/tmp/mine", "security.capability", make([]byte, 20), 0)
		}},
		{"a writable mapping of the code", func() error {
			fd, err := unix.Open("/var/task/attacker", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			_, err = unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			return err
		}},
		{"memory through /proc", opened("/proc/self/mem", unix.O_RDWR)},
		{"memory of PID 1", opened("/proc/1/mem", unix.O_RDONLY)},
		{"the host by PID 1's root", opened("/proc/1/root/etc", unix.O_RDONLY)},
		{"the host by PID 1's folder", opened("/proc/1/cwd", unix.O_RDONLY)},
		{"PID 1's descriptors", opened("/proc/1/fd", unix.O_RDONLY|unix.O_DIRECTORY)},
		{"PID 1's namespaces", opened("/proc/1/ns/net", unix.O_RDONLY)},
		{"PID 1's environment", opened("/proc/1/environ", unix.O_RDONLY)},
		{"cgroups", opened("/sys/fs/cgroup", unix.O_RDONLY)},
	}
	for _, path := range []string{"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches",
		"/proc/sys/kernel/ns_last_pid", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/randomize_va_space",
		"/proc/self/oom_score_adj", "/proc/self/loginuid", "/proc/self/setgroups", "/proc/self/gid_map", "/proc/self/attr/current", "/proc/self/coredump_filter",
		"/proc/self/timerslack_ns", "/proc/irq/default_smp_affinity", "/proc/acpi/wakeup"} {
		list = append(list, attempt{"write " + path, written(path)})
	}
	// Families that only root's programs speak.
	for _, family := range []uintptr{unix.AF_PACKET, unix.AF_ALG, unix.AF_VSOCK, unix.AF_KEY, unix.AF_BLUETOOTH, unix.AF_PPPOX, unix.AF_TIPC, unix.AF_RDS, unix.AF_CAN, unix.AF_XDP, unix.AF_QIPCRTR, unix.AF_SMC, unix.AF_AX25, unix.AF_NFC} {
		list = append(list, attempt{fmt.Sprintf("socket family %d", family), call(unix.SYS_SOCKET, family, unix.SOCK_DGRAM, 0)})
	}
	return list
}

func attackCalls() {
	unix.Kill(os.Getpid(), 0)
	for _, a := range attempts() {
		if err := a.try(); err == nil {
			fmt.Printf("WORKED %s\n", a.name)
		} else {
			fmt.Printf("refused %s: %v\n", a.name, err)
		}
	}
	// All five sets.
	for which := range 41 {
		for _, set := range []struct {
			name string
			op   []uintptr
		}{{"bounding", []uintptr{unix.PR_CAPBSET_READ, uintptr(which)}}, {"ambient", []uintptr{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, uintptr(which)}}} {
			var a [5]uintptr
			copy(a[:], set.op)
			if r, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, a[0], a[1], a[2], a[3], a[4], 0); errno == 0 && r != 0 {
				fmt.Printf("WORKED capability %d is in the %s set\n", which, set.name)
			}
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil || data != [2]unix.CapUserData{} {
		fmt.Printf("WORKED capabilities %+v %v\n", data, err)
	}
	fmt.Println("done", len(attempts()))
}

func testAttackCalls(t *testing.T, f *fixture) {
	exit, out := f.attacker(t, "calls").wait(t)
	want(t, exit, out, fmt.Sprint("done ", len(attempts())))
	shared := f.lacks(t, noUIDs)
	for line := range strings.Lines(out) {
		if shared && strings.Contains(line, "PID 1") {
			continue // with the same uid it may ask; "first process" holds that it gets nowhere
		}
		if strings.HasPrefix(line, "WORKED") {
			t.Error(line)
		}
	}
	t.Log(out)
}

// look walks the whole tree as the function sees it and prints what stands out.
func look() {
	seen, denied := 0, 0
	var walk func(dir string, depth int)
	var dev, proc syscall.Stat_t
	_ = syscall.Lstat("/proc", &proc)
	_ = syscall.Lstat("/dev", &dev)
	walk = func(dir string, depth int) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			denied++
			return
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			var st syscall.Stat_t
			if err := syscall.Lstat(path, &st); err != nil {
				continue
			}
			seen++
			readable := unix.Access(path, unix.R_OK) == nil
			kind := st.Mode & syscall.S_IFMT
			switch {
			case st.Dev == proc.Dev:
				continue
			case kind == syscall.S_IFSOCK || kind == syscall.S_IFBLK || kind == syscall.S_IFIFO:
				fmt.Printf("SPECIAL %s\n", path)
			// In a user namespace the five harmless nodes of /dev are the host's own, mounted there.
			case kind == syscall.S_IFCHR && st.Dev != dev.Dev && (filepath.Dir(path) != "/dev" || unix.Major(st.Rdev) != 1):
				fmt.Printf("DEVICE %s\n", path)
			case kind != syscall.S_IFLNK && kind != syscall.S_IFCHR && unix.Access(path, unix.W_OK) == nil:
				fmt.Printf("WRITABLE %s\n", path)
			case kind == syscall.S_IFREG && readable && secretName(e.Name()):
				fmt.Printf("SECRET %s\n", path)
			case kind == syscall.S_IFREG && !readable:
				denied++
			}
			if kind == syscall.S_IFDIR && depth < 40 {
				walk(path, depth+1)
			}
		}
	}
	walk("/", 0)
	top, _ := os.ReadDir("/")
	names := make([]string, len(top))
	for i, e := range top {
		names[i] = e.Name()
	}
	sort.Strings(names)
	fmt.Println("top", strings.Join(names, " "))
	etc, _ := os.ReadDir("/etc")
	for _, e := range etc {
		fmt.Println("etc", e.Name())
	}
	fmt.Println("walked", seen > 1000, denied)
}

// secretName tells names under which programs keep what is not for everybody.
func secretName(name string) bool {
	switch name {
	case "npmrc", ".npmrc", "pip.conf", ".netrc", ".pgpass", ".git-credentials", ".bash_history", ".dockercfg", "credentials", "id_rsa", "id_ed25519", "shadow", "shadow-", "gshadow", "sudoers", "machine-id", "kubeconfig", ".env", "krb5.keytab":
		return true
	}
	return false
}

func testLook(t *testing.T, f *fixture) {
	i := f.attacker(t, "look")
	exit, out := i.wait(t)
	if exit.Code != 0 || !strings.Contains(out, "walked true") {
		t.Errorf("the walk did not come far: %+v\n%s", exit, out)
	}
	top := map[string]bool{}
	for _, name := range strings.Fields("bin dev etc home lib lib32 lib64 libx32 mnt opt proc run sbin tmp usr var") {
		top[name] = true
	}
	own := map[string]bool{"/tmp": true, "/dev/shm": true}
	allowed := map[string]bool{}
	for _, name := range []string{"passwd", "group", "hosts", "hostname", "nsswitch.conf", "resolv.conf", "shells", "mtab", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "timezone",
		"mime.types", "services", "protocols", "gai.conf", "host.conf", "os-release", "ssl", "ca-certificates", "pki", "crypto-policies", "fonts", "magic", "java-17-openjdk", "python3", "python3.11"} {
		allowed[name] = true
	}
	for line := range strings.Lines(out) {
		kind, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch kind {
		case "WRITABLE":
			if !own[path] {
				t.Error(line)
			}
		case "SPECIAL", "DEVICE", "SECRET":
			t.Error(line)
		case "top":
			for _, name := range strings.Fields(path) {
				if !top[name] && name[0] != '.' { // those with a dot are the sandbox's own, and empty or closed
					t.Errorf("/%s of the host can be seen", name)
				}
			}
		case "etc":
			if !allowed[path] {
				t.Errorf("/etc/%s of the host can be seen", path)
			}
		}
	}
}
