//go:build linux

package linux

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// The Runtime API's endpoint, inside.
const (
	apiPort = 9001
	apiAddr = "127.0.0.1:9001"
)

// Where code and layers are seen.
const (
	taskDir = "/var/task"
	optDir  = "/opt"
)

// maxFiles is RLIMIT_NOFILE, as on AWS.
const maxFiles = 1024

// Registers of an instance's PID 1.
const (
	regListener = stage.SignalReg + 1 + iota
	regScratch
	regContext
	regProc
	regTmp
	regShm
)

// ignored are the signals that the launcher must not end of (a terminal's Ctrl-C, a service manager's
// stop: the worker decides) and the one that, ignored, makes the kernel reap its children.
var ignored = []unix.Signal{unix.SIGCHLD, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE,
	unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGALRM, unix.SIGVTALRM, unix.SIGPROF, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGWINCH}

// setup is what the launcher does to itself, once. All that every instance has in common is done here and
// inherited: the root without the host, no_new_privs, the empty bounding set, the resource limits.
func (s *Sandbox) setup(attach string) *program {
	p := newProgram(stage.Setup)
	here := imm(unix.AT_FDCWD)
	p.call("name the launcher", unix.SYS_PRCTL, imm(unix.PR_SET_NAME), p.str("doze-sandbox"))
	p.call("unshare the mount and host name namespaces", unix.SYS_UNSHARE, imm(unix.CLONE_NEWNS|unix.CLONE_NEWUTS))
	p.call("make mounts private", unix.SYS_MOUNT, imm(0), p.str("/"), imm(0), imm(unix.MS_REC|unix.MS_PRIVATE), imm(0))
	p.call("attach the root", unix.SYS_MOVE_MOUNT, p.fd(s.root.fd), p.str(""), here, p.str(attach), imm(unix.MOVE_MOUNT_F_EMPTY_PATH))
	dot, slash := p.str("."), p.str("/")
	p.call("enter the root", unix.SYS_CHDIR, p.str(attach))
	p.call("pivot_root", unix.SYS_PIVOT_ROOT, dot, dot)
	p.call("unmount the host", unix.SYS_UMOUNT2, dot, imm(unix.MNT_DETACH))
	p.call("enter the root", unix.SYS_CHDIR, slash)
	for _, t := range append([]hostPath{{path: "/dev", fd: s.root.dev}}, s.root.trees...) {
		p.call("mount "+t.path, unix.SYS_MOVE_MOUNT, p.fd(t.fd), p.str(""), here, p.str(t.path), imm(unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
	for _, dir := range hiddenDirs {
		if info, err := os.Lstat(dir); err == nil && info.IsDir() { // a link would lead to another place in there
			p.cover(emptyDir, dir)
			p.readOnly(dir)
		}
	}
	p.call("make /dev read-only", unix.SYS_MOUNT_SETATTR, here, p.str("/dev"), imm(0), p.mountAttr(unix.MOUNT_ATTR_RDONLY), imm(unix.MOUNT_ATTR_SIZE_VER0))
	p.call("set the host name", unix.SYS_SETHOSTNAME, p.str(hostName), imm(len(hostName)))
	// The worker's session keyring would be inherited. Kernels without keyrings have nothing to leave.
	p.call("leave the session keyring", unix.SYS_KEYCTL, imm(unix.KEYCTL_JOIN_SESSION_KEYRING), imm(0)).Ignore = stage.AnyError
	for _, l := range []struct {
		name  string
		which int
		limit uint64
	}{{"core", unix.RLIMIT_CORE, 0}, {"nofile", unix.RLIMIT_NOFILE, maxFiles}, {"memlock", unix.RLIMIT_MEMLOCK, 64 << 10},
		{"msgqueue", unix.RLIMIT_MSGQUEUE, 0}, {"nice", unix.RLIMIT_NICE, 0}, {"rtprio", unix.RLIMIT_RTPRIO, 0}} {
		p.limit(l.name, 0, l.which, l.limit)
	}
	p.call("set umask", unix.SYS_UMASK, imm(0o022))
	p.call("set no_new_privs", unix.SYS_PRCTL, imm(unix.PR_SET_NO_NEW_PRIVS), imm(1), imm(0), imm(0), imm(0))
	p.call("clear ambient capabilities", unix.SYS_PRCTL, imm(unix.PR_CAP_AMBIENT), imm(unix.PR_CAP_AMBIENT_CLEAR_ALL), imm(0), imm(0), imm(0))
	for c := 0; c <= s.lastCap; c++ {
		p.call("drop from the bounding set", unix.SYS_PRCTL, imm(unix.PR_CAPBSET_DROP), imm(c), imm(0), imm(0), imm(0))
	}
	p.signals(ignored, 1)
	return p
}

// prepare is the first half of a start, done by PID 1 while the worker makes the cgroups: everything that
// does not depend on what will run. control is the other end of the instance's control socket, cgroup the
// directory to be born in or -1, network the network namespace to be in or -1 for a new one.
func (s *Sandbox) prepare(control, cgroup, network, uid int, tmp, memory int64) *program {
	p := newProgram(stage.Spawn)
	p.fd(control)
	if cgroup >= 0 {
		p.fd(cgroup)
		p.into = true
	}
	p.call("set the parent death signal", unix.SYS_PRCTL, imm(unix.PR_SET_PDEATHSIG), imm(int(unix.SIGKILL)))
	// Not only those of the launcher: what started the worker may ignore others (glibc's posix_spawn
	// ignores 32 and 33 for whomever make starts).
	p.signals(everySignal(), 0)
	// A worker that was started with less than the usual priority, and may not raise it, keeps what it has.
	p.call("set the priority", unix.SYS_SETPRIORITY, imm(unix.PRIO_PROCESS), imm(0), imm(0)).Ignore = uint16(unix.EACCES)
	namespaces := unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	if network < 0 {
		namespaces |= unix.CLONE_NEWNET
	} else {
		p.call("enter the network namespace", unix.SYS_SETNS, p.fd(network), imm(unix.CLONE_NEWNET))
	}
	p.call("unshare namespaces", unix.SYS_UNSHARE, imm(namespaces))
	p.listener()
	p.call("watch children", unix.SYS_SIGNALFD4, imm(-1), p.sigset(unix.SIGCHLD), imm(8), imm(unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)).Save = 1 + stage.SignalReg

	here, none := imm(unix.AT_FDCWD), p.str("none")
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	proc := p.str("proc")
	p.call("mount /proc", unix.SYS_MOUNT, proc, p.str("/proc"), proc, imm(plain|unix.MS_NOEXEC), imm(0))
	if s.user != nil {
		p.call("unmount the host's /proc", unix.SYS_UMOUNT2, p.str("/"+hostProc), imm(unix.MNT_DETACH))
	}
	// When the machine itself runs out of memory, functions go before the platform.
	p.call("open oom_score_adj", unix.SYS_OPENAT, here, p.str("/proc/self/oom_score_adj"), imm(unix.O_WRONLY|unix.O_CLOEXEC), imm(0)).Save = 1 + regScratch
	p.call("set oom_score_adj", unix.SYS_WRITE, reg(regScratch), p.str("500"), imm(3)).Ignore = uint16(unix.EACCES)
	p.call("close oom_score_adj", unix.SYS_CLOSE, reg(regScratch)) // a mount with an open writer cannot become read-only
	null, empty := p.str("/dev/null"), p.str("/"+emptyDir)
	for _, m := range s.masks {
		over := null
		if m.dir {
			over = empty
		}
		p.call("mask "+m.path, unix.SYS_MOUNT, over, p.str(m.path), imm(0), imm(unix.MS_BIND), imm(0))
		if m.dir {
			p.readOnly(m.path)
		}
	}
	p.readOnly("/proc")

	tmpfs := p.str("tmpfs")
	p.call("mount /tmp", unix.SYS_MOUNT, none, p.str("/tmp"), tmpfs, imm(plain), p.str(tmpOptions(tmp, uid)))
	p.call("mount /dev/shm", unix.SYS_MOUNT, none, p.str("/dev/shm"), tmpfs, imm(plain), p.str(tmpOptions(shmBytes(memory), uid)))
	if s.counts() {
		for i, path := range []string{"/proc", "/tmp", "/dev/shm"} {
			p.call("open "+path, unix.SYS_OPENAT, here, p.str(path), imm(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC), imm(0)).Save = 1 + regProc + uint8(i)
		}
	}
	return p
}

// maxShm bounds /dev/shm, in bytes; it is charged to the instance's memory as well.
const maxShm = 64 << 20

// tmpOptions sizes a tmpfs in bytes and in files. A file costs the kernel about a kilobyte that the size
// does not count.
func tmpOptions(size int64, uid int) string {
	return fmt.Sprintf("%s,mode=0700,uid=%d,gid=%d", tmpfsSize(size), uid, uid)
}

func tmpfsSize(size int64) string {
	size = max(size, 4096)
	return fmt.Sprintf("size=%d,nr_inodes=%d", size, min(max(size/4096, 1024), 1<<20))
}

// tmpSize is a tmpfs that gets another size.
type tmpSize struct {
	path  string
	bytes int64
}

// shmBytes is the size of /dev/shm for a memory limit.
func shmBytes(memory int64) int64 { return min(memory/2, maxShm) }

// listener brings lo up and makes the Runtime API's socket in the new network namespace.
func (p *program) listener() {
	p.call("make the Runtime API socket", unix.SYS_SOCKET, imm(unix.AF_INET), imm(unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK), imm(0)).Save = 1 + regListener
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	binary.NativeEndian.PutUint16(ifreq[16:], unix.IFF_UP|unix.IFF_RUNNING)
	p.call("bring lo up", unix.SYS_IOCTL, reg(regListener), imm(unix.SIOCSIFFLAGS), p.data(ifreq))
	addr := make([]byte, 16)
	binary.NativeEndian.PutUint16(addr, unix.AF_INET)
	binary.BigEndian.PutUint16(addr[2:], apiPort)
	copy(addr[4:], net.IPv4(127, 0, 0, 1).To4())
	p.call("bind the Runtime API socket", unix.SYS_BIND, reg(regListener), p.data(addr), imm(len(addr)))
	p.call("listen on the Runtime API socket", unix.SYS_LISTEN, reg(regListener), imm(64))
}

// launch is what the second half of a start needs.
type launch struct {
	tasks  []int      // v1 tasks files to write "0" to
	trees  []hostPath // detached mounts and where they go
	passwd string
	input  int // what is stdin; -1 for /dev/null
	output int // write end of the output pipe
	uid    int
	argv   []string
	env    []string
	// processes bounds processes and threads, where a uid's can be.
	processes int
}

// sent are the descriptors that PID 1 hands to the worker when the program runs.
func (s *Sandbox) sent() []uint8 {
	if s.counts() {
		return []uint8{regListener, regProc, regTmp, regShm}
	}
	return []uint8{regListener}
}

// run is the second half: limits, code, identity, program.
func (s *Sandbox) run(l launch) *program {
	p := newProgram(stage.Step)
	p.confine(l)
	p.trees(l.trees)
	p.send = s.sent()
	p.list = stage.ListChild
	s.boundProcesses(p, 0, l.processes)
	s.confineChild(p, l)
	p.execute(l)
	p.list = stage.ListAfter
	s.surrender(p)
	return p
}

// park is run for a sandbox whose function is not known: it ends before the code. With l.argv a program is
// started that waits, else the child waits in which the function's will be executed. PID 1 keeps its rights until
// unpark: nothing of a function runs before.
func (s *Sandbox) park(l launch) *program {
	p := newProgram(stage.Step)
	p.confine(l)
	p.trees(l.trees)
	p.send = s.sent()
	p.hold = stage.HoldChild
	if l.argv != nil {
		p.hold = stage.HoldProgram
		p.cover(waitingDir, taskDir, optDir)
	}
	p.list = stage.ListChild
	s.confineChild(p, l)
	if l.argv != nil {
		p.execute(l)
	}
	return p
}

// exec is what a held child does, once PID 1 has given up its rights.
func (s *Sandbox) exec(l launch) *program {
	p := newProgram(stage.Exec)
	p.null()
	p.execute(l)
	return p
}

// unpark is what is left of run for a parked sandbox. resize are the tmpfs mounts that get another size. What
// waits at the door, a program or only a child, gets the message, once PID 1 has given up its rights.
func (s *Sandbox) unpark(l launch, resize []tmpSize, waiting bool, door int, message []byte) *program {
	p := newProgram(stage.Step)
	for _, t := range resize {
		p.call("resize "+t.path, unix.SYS_MOUNT, imm(0), p.str(t.path), imm(0), imm(unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV), p.str(tmpfsSize(t.bytes)))
	}
	p.trees(l.trees)
	if waiting && !slices.ContainsFunc(l.trees, func(t hostPath) bool { return t.path == optDir }) {
		p.cover(emptyDir, optDir)
	}
	s.boundProcesses(p, heldPID, l.processes)
	s.surrender(p)
	to := p.fd(door)
	p.call("hand the function over", unix.SYS_SENDTO, to, p.data(message), imm(len(message)), imm(unix.MSG_NOSIGNAL), imm(0), imm(0))
	p.call("close the door", unix.SYS_SHUTDOWN, to, imm(unix.SHUT_WR))
	return p
}

// handover is what a waiting program gets: its variables, each ended by a zero byte.
func handover(env []string) (message []byte) {
	for _, v := range env {
		message = append(append(message, v...), 0)
	}
	return message
}

// heldPID is what waits in a parked sandbox: the first child of its PID 1.
const heldPID = 2

// boundProcesses bounds what the uid of a process may have, where no cgroup does it and the uid is one instance's. It
// cannot be raised again, so what is parked gets it with its function.
func (s *Sandbox) boundProcesses(p *program, pid, most int) {
	if s.cgroups.has("pids") || !s.distinct() {
		return
	}
	p.limit("processes", pid, unix.RLIMIT_NPROC, uint64(most))
}

func (p *program) limit(name string, pid, which int, most uint64) {
	pair := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, most), most)
	p.call("limit "+name, unix.SYS_PRLIMIT64, imm(pid), imm(which), p.data(pair), imm(0))
}

// confine puts PID 1 into its cgroups and closes its root.
func (p *program) confine(l launch) {
	if len(l.tasks) > 0 {
		self := p.str("0")
		for _, fd := range l.tasks {
			p.call("join a cgroup", unix.SYS_WRITE, p.fd(fd), self, imm(1))
		}
	}
	p.call("unshare the cgroup namespace", unix.SYS_UNSHARE, imm(unix.CLONE_NEWCGROUP))
	// /dev/stdout opens the pipe again, as the function's uid.
	p.call("give the output pipe away", unix.SYS_FCHOWN, p.fd(l.output), imm(l.uid), imm(l.uid))
	p.call("make / read-only", unix.SYS_MOUNT_SETATTR, imm(unix.AT_FDCWD), p.str("/"), imm(0), p.mountAttr(unix.MOUNT_ATTR_RDONLY), imm(unix.MOUNT_ATTR_SIZE_VER0))
	p.call("mount /etc/passwd", unix.SYS_MOUNT, p.str(l.passwd), p.str("/etc/passwd"), imm(0), imm(unix.MS_BIND), imm(0))
}

// readOnly makes one mount read-only. What is mounted from the root before that is read-only itself needs it: where
// all have one uid, the root's folders are the function's own.
func (p *program) readOnly(path string) {
	p.call("make "+path+" read-only", unix.SYS_MOUNT_SETATTR, imm(unix.AT_FDCWD), p.str(path), imm(0), p.mountAttr(unix.MOUNT_ATTR_RDONLY), imm(unix.MOUNT_ATTR_SIZE_VER0))
}

// trees moves detached mounts to where they go.
func (p *program) trees(trees []hostPath) {
	nothing := p.str("")
	for _, t := range trees {
		p.mountPoint(t)
		p.call("mount "+t.path, unix.SYS_MOVE_MOUNT, p.fd(t.fd), nothing, imm(unix.AT_FDCWD), p.str(t.path), imm(unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
}

// cover mounts one of the root's own directories over others.
func (p *program) cover(dir string, over ...string) {
	from := p.str("/" + dir)
	for _, path := range over {
		p.call("cover "+path, unix.SYS_MOUNT, from, p.str(path), imm(0), imm(unix.MS_BIND), imm(0))
	}
}

// null makes /dev/null the standard input.
func (p *program) null() {
	p.call("open /dev/null", unix.SYS_OPENAT, imm(unix.AT_FDCWD), p.str("/dev/null"), imm(unix.O_RDONLY|unix.O_CLOEXEC), imm(0)).Save = 1 + regScratch
	p.call("set stdin", unix.SYS_DUP3, reg(regScratch), imm(0), imm(0))
}

// confineChild is what the child of PID 1 does before it may execute the program.
func (s *Sandbox) confineChild(p *program, l launch) {
	p.call("setsid", unix.SYS_SETSID)
	if l.input >= 0 {
		p.call("set stdin", unix.SYS_DUP3, p.fd(l.input), imm(0), imm(0))
	} else {
		p.null()
	}
	output := p.fd(l.output)
	p.call("set stdout", unix.SYS_DUP3, output, imm(1), imm(0))
	p.call("set stderr", unix.SYS_DUP3, output, imm(2), imm(0))
	p.call("close descriptors", unix.SYS_CLOSE_RANGE, imm(3), imm(uint32(0xffffffff)), imm(unix.CLOSE_RANGE_CLOEXEC))
	p.identity(l.uid, s.distinct())
	fprog := p.data(make([]byte, 16))
	p.point(fprog.value+8, p.data(s.filter))
	binary.NativeEndian.PutUint16(p.blob[fprog.value:], uint16(len(s.filter)/8))
	p.call("load the seccomp filter", unix.SYS_SECCOMP, imm(1), imm(0), fprog)
}

// execute makes it the program, in its folder.
func (p *program) execute(l launch) {
	p.call("enter "+taskDir, unix.SYS_CHDIR, p.str(taskDir))
	p.call("unblock signals", unix.SYS_RT_SIGPROCMASK, imm(unix.SIG_SETMASK), p.data(make([]byte, 8)), imm(0), imm(8))
	argv, env := p.strs(l.argv), p.strs(l.env)
	p.call(execName, unix.SYS_EXECVE, p.str(l.argv[0]), argv, env)
}

// surrender takes from PID 1 what it could still do: it gets a uid that no program has, and its memory cannot be
// looked into.
func (s *Sandbox) surrender(p *program) {
	p.identity(s.stageUID, s.distinct())
	p.call("become undumpable", unix.SYS_PRCTL, imm(unix.PR_SET_DUMPABLE), imm(0), imm(0), imm(0), imm(0))
	p.call("set the parent death signal", unix.SYS_PRCTL, imm(unix.PR_SET_PDEATHSIG), imm(int(unix.SIGKILL)))
}

// mountPoint makes what a tree below /tmp is mounted on, with the directories above it.
func (p *program) mountPoint(t hostPath) {
	const tmp = "/tmp/"
	if !strings.HasPrefix(t.path, tmp) {
		return
	}
	for i := len(tmp); i < len(t.path); i++ {
		if t.path[i] == '/' {
			p.call("make a mount point in /tmp", unix.SYS_MKDIRAT, imm(unix.AT_FDCWD), p.str(t.path[:i]), imm(0o755)).Ignore = uint16(unix.EEXIST)
		}
	}
	if t.file {
		p.call("make a mount point in /tmp", unix.SYS_MKNODAT, imm(unix.AT_FDCWD), p.str(t.path), imm(unix.S_IFREG|0o644), imm(0)).Ignore = uint16(unix.EEXIST)
		return
	}
	p.call("make a mount point in /tmp", unix.SYS_MKDIRAT, imm(unix.AT_FDCWD), p.str(t.path), imm(0o755)).Ignore = uint16(unix.EEXIST)
}

const execName = "execute the program"

// identity gives up root for a uid: no groups, no capability in any set.
// Without groups, they cannot be given up here.
func (p *program) identity(uid int, groups bool) {
	if groups {
		p.call("setgroups", unix.SYS_SETGROUPS, imm(0), imm(0))
	}
	p.call("setresgid", unix.SYS_SETRESGID, imm(uid), imm(uid), imm(uid))
	p.call("setresuid", unix.SYS_SETRESUID, imm(uid), imm(uid), imm(uid))
	header := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	p.call("drop capabilities", unix.SYS_CAPSET, p.data(append(header, 0, 0, 0, 0)), p.data(make([]byte, 24)))
}

// everySignal is all whose disposition can be set.
func everySignal() []unix.Signal {
	var list []unix.Signal
	for sig := unix.Signal(1); sig <= 64; sig++ {
		if sig != unix.SIGKILL && sig != unix.SIGSTOP {
			list = append(list, sig)
		}
	}
	return list
}

// signals gives each signal the handler 0 (default) or 1 (ignore).
func (p *program) signals(list []unix.Signal, handler byte) {
	action := make([]byte, 32)
	binary.NativeEndian.PutUint64(action, uint64(handler))
	at := p.data(action)
	for _, sig := range list {
		p.call("set a signal's disposition", unix.SYS_RT_SIGACTION, imm(int(sig)), at, imm(0), imm(8))
	}
}

func (p *program) sigset(sig unix.Signal) arg {
	return p.data(binary.NativeEndian.AppendUint64(nil, 1<<(uint(sig)-1)))
}

// mountAttr is a struct mount_attr that sets attributes.
func (p *program) mountAttr(set uint64) arg {
	b := make([]byte, unix.MOUNT_ATTR_SIZE_VER0)
	binary.NativeEndian.PutUint64(b, set)
	return p.data(b)
}

// mask is something of /proc that is hidden.
type mask struct {
	path string
	dir  bool
}

// procMasks are those of /proc's files that tell of the whole machine what no program needs, and exist here.
// Most are closed to an unprivileged uid already; this is the second wall.
func procMasks() (masks []mask) {
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/kallsyms", "/proc/kmsg", "/proc/timer_list", "/proc/sched_debug",
		"/proc/sysrq-trigger", "/proc/cmdline", "/proc/acpi", "/proc/scsi", "/proc/asound", "/proc/interrupts", "/proc/latency_stats"} {
		if info, err := os.Lstat(path); err == nil {
			masks = append(masks, mask{path, info.IsDir()})
		}
	}
	return masks
}

// lastCapability is the highest capability the kernel knows.
func lastCapability() (int, error) {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, fmt.Errorf("capabilities: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < 0 || n > 63 {
		return 0, fmt.Errorf("capabilities: cap_last_cap is %q", b)
	}
	return n, nil
}
