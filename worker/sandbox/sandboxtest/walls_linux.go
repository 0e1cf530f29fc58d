package sandboxtest

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
)

// Walls is what a sandbox that isolates keeps a hostile function from.
func Walls(t *testing.T, factory Factory) {
	f := open(t, factory)
	t.Run("identity", func(t *testing.T) { testIdentity(t, f) })
	t.Run("processes", func(t *testing.T) { testProcesses(t, f) })
	t.Run("first process", func(t *testing.T) { testFirstProcess(t, f) })
	t.Run("files", func(t *testing.T) { testFiles(t, f) })
	t.Run("writes", func(t *testing.T) { testWrites(t, f) })
	t.Run("tmp", func(t *testing.T) { testTmp(t, f) })
	t.Run("mounted", func(t *testing.T) { testMounted(t, f) })
	t.Run("system calls", func(t *testing.T) { testSystemCalls(t, f) })
	t.Run("foreign system calls", func(t *testing.T) { testForeignCalls(t, f) })
	t.Run("ordinary programs", func(t *testing.T) { testOrdinary(t, f) })
	t.Run("network", func(t *testing.T) { testNetwork(t, f) })
	t.Run("memory", func(t *testing.T) { testMemory(t, f) })
	t.Run("fork bomb", func(t *testing.T) { testForkBomb(t, f) })
	t.Run("cpu", func(t *testing.T) { testCPU(t, f) })
	t.Run("limits", func(t *testing.T) { testLimits(t, f) })
	t.Run("raw system calls", func(t *testing.T) { testAttackCalls(t, f) })
	t.Run("other system call numbers", func(t *testing.T) { testABI(t, f) })
	t.Run("look around", func(t *testing.T) { testLook(t, f) })
	t.Run("apart", func(t *testing.T) { testApart(t, f) })
	t.Run("memory of all kinds", func(t *testing.T) { testMemoryOfAllKinds(t, f) })
	t.Run("cpu shares", func(t *testing.T) { testShares(t, f) })
	t.Run("frozen as a whole", func(t *testing.T) { testFrozenWhole(t, f) })
	t.Run("nothing left", func(t *testing.T) { testNothingLeft(t, f) })
}

func testIdentity(t *testing.T, f *fixture) {
	exit, out := f.py(t, `
import os, pwd
print("groups", os.getgroups() in ([], [os.getgid()]))
print("ids", len(set(os.getresuid())), os.getuid() == os.getgid())
print("name", pwd.getpwuid(os.getuid()).pw_name)
for l in open("/proc/self/status"):
    if l.startswith(("Cap", "NoNewPrivs", "Seccomp:")): print(*l.split())
for what in ("setuid", "setgid", "seteuid"):
    try: getattr(os, what)(0); print(what, "worked")
    except OSError: print(what, "refused")
`)
	want(t, exit, out, "groups True", "ids 1 True", "name sbx_user1051", "CapInh: 0000000000000000", "CapPrm: 0000000000000000", "CapEff: 0000000000000000",
		"CapBnd: 0000000000000000", "CapAmb: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2", "setuid refused", "setgid refused", "seteuid refused")

	if f.lacks(t, noUIDs) {
		return
	}
	uids := map[string]bool{"0": true}
	for range 8 {
		i := f.start(t, f.config(bash, "-c", "echo uid $UID; exec sleep 60"))
		i.until(t, "\n")
		uid := strings.Fields(i.so())[1]
		if uids[uid] {
			t.Errorf("uid %s is another's", uid)
		}
		uids[uid] = true
	}
}

func testProcesses(t *testing.T, f *fixture) {
	other := f.start(t, f.config(bash, "-c", "exec -a a-neighbour sleep 60"))
	defer other.Kill()
	exit, out := f.py(t, `
import os
pids = sorted(int(n) for n in os.listdir("/proc") if n.isdigit())
print("pids", pids == [1, os.getpid()], "parent", os.getppid())
print("neighbour", any(b"a-neighbour" in open(f"/proc/{p}/cmdline", "rb").read() for p in pids if p != os.getpid()))
print("session", os.getsid(0) == os.getpid())
try: os.kill(-1, 9); print("kill all returned")
except ProcessLookupError: print("nobody else to kill")
except PermissionError: print("may kill nobody")
print("host name", os.uname().nodename)
print("cgroup", all(l.rstrip().endswith(":/") for l in open("/proc/self/cgroup")))
`)
	want(t, exit, out, "pids True parent 1", "neighbour False", "session True", "host name doze", "cgroup True")
	select {
	case <-other.Done():
		t.Error("a neighbour was killed")
	default:
	}
}

func testFirstProcess(t *testing.T, f *fixture) {
	exit, out := f.py(t, `
import os, signal
for s in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
    try: os.kill(1, s); print("signal", int(s), "worked")
    except PermissionError: pass
for name in ("environ", "mem", "maps", "fd", "root", "cwd", "exe", "syscall", "stack"):
    p = "/proc/1/" + name
    try:
        os.listdir(p) if name == "fd" else os.readlink(p) if name in ("root", "cwd", "exe") else open(p, "rb").read(1)
        print(name, "can be seen")
    except OSError: pass
    except Exception as e: print(name, e)
print("status", [l.split()[1] for l in open("/proc/1/status") if l.startswith(("Uid", "CapPrm", "CapEff", "CapBnd"))] [1:])
print("uid 0", open("/proc/1/status").read().split("Uid:")[1].split()[0] == "0", "mine", open("/proc/1/status").read().split("Uid:")[1].split()[0] == str(os.getuid()))
print("done")
`)
	mine := "False"
	if f.lacks(t, noUIDs) {
		// It may be sent signals then, which the kernel does not let through to a first process.
		mine, out = "True", strings.ReplaceAll(out, "worked", "sent")
	}
	want(t, exit, out, "done", "uid 0 False mine "+mine, "status ['0000000000000000', '0000000000000000', '0000000000000000']")
	if strings.Contains(out, "worked") || strings.Contains(out, "can be seen") {
		t.Errorf("the first process is not out of reach:\n%s", out)
	}
}

func testFiles(t *testing.T, f *fixture) {
	// Files of the host, readable for everyone, in all the places where one could be.
	secret := "doze-secret-" + strconv.Itoa(os.Getpid())
	for _, dir := range []string{f.data, t.TempDir(), "/var/tmp", "/dev/shm", "/home", "/srv", "/run"} {
		path := filepath.Join(dir, secret)
		if err := os.WriteFile(path, []byte("secret"), 0o666); err == nil {
			t.Cleanup(func() { os.Remove(path) })
		}
	}
	exit, out := f.py(t, fmt.Sprintf(`
import os, stat
for d, dirs, files in os.walk("/"):
    dirs[:] = [x for x in dirs if not (d == "/" and x in ("proc", "usr", "lib", "lib64", "bin", "sbin"))] # the host's programs
    for n in dirs + files:
        p = os.path.join(d, n)
        if %q in n: print("FOUND", p)
        try: m = os.lstat(p).st_mode
        except OSError: continue
        if stat.S_ISSOCK(m) or stat.S_ISBLK(m): print("FOUND socket or disk", p)
        if stat.S_ISCHR(m) and not p.startswith("/dev/"): print("FOUND device", p)
        if not stat.S_ISLNK(m) and not stat.S_ISCHR(m) and os.access(p, os.W_OK) and not p.startswith(("/tmp", "/dev/shm")): print("FOUND writable", p)
for p in ("/etc/shadow", "/etc/gshadow", "/etc/machine-id", "/etc/ssh", "/etc/sudoers", "/etc/ssl/private", "/root", "/sys", "/var/lib", "/var/log", "/boot", "/srv", "/proc/1/root/etc",
    "/dev/mem", "/dev/kmsg", "/dev/tty", "/dev/pts", "/dev/fuse", "/dev/vda"):
    if os.path.exists(p): print("FOUND", p)
print(sorted(os.listdir("/dev")))
for p in ("/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/timer_list", "/proc/cmdline", "/proc/sysrq-trigger"):
    try:
        if open(p, "rb").read(1): print("FOUND content of", p)
    except OSError: pass
for l in open("/proc/self/mountinfo"):
    f = l.split()
    o = f[5].split(",")
    if "nosuid" not in o or ("nodev" not in o and not f[4].startswith(("/dev", "/proc/"))): print("FOUND weak mount", l)
print("done")
`, secret))
	want(t, exit, out, "done", "['fd', 'full', 'null', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'urandom', 'zero']")
	if strings.Contains(out, "FOUND") {
		t.Error(out)
	}
}

func testWrites(t *testing.T, f *fixture) {
	f.write(t, "file", "content", 0o666)
	if err := os.Chmod(f.code, 0o777); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(f.code, 0o755)
	exit, out := f.py(t, `
import os
for d in ("/", "/var/task", "/opt", "/var/runtime", "/usr", "/etc", "/dev", "/proc", "/var", "/home", "/run", "/mnt", "/usr/local"):
    try: open(os.path.join(d, "new"), "w"); print("WROTE in", d)
    except OSError: pass
for p in ("/var/task/file", "/etc/passwd", "/etc/hosts", "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger", "/proc/self/oom_score_adj",
    "/proc/self/uid_map", "/proc/self/mem", "/proc/self/clear_refs"):
    if os.path.exists(p) and os.stat(p).st_rdev == os.stat("/dev/null").st_rdev: continue # masked: nobody reads what is written
    try: open(p, "r+b", buffering=0).write(b"0"); print("WROTE", p)
    except OSError: pass
try: os.unlink("/var/task/file"); print("WROTE: removed")
except OSError: pass
print("oom", open("/proc/self/oom_score_adj").read().strip())
try: os.mknod("/tmp/disk", 0o600 | 0o060000, os.makedev(254, 0)); print("MADE a device")
except OSError: pass
os.mkfifo("/tmp/fifo")
open("/dev/null", "w").write("x"); print(len(open("/dev/urandom", "rb").read(8)))
open("/dev/shm/a", "w").write("x")
print("done")
`)
	want(t, exit, out, "done", "8", "oom 500")
	if strings.Contains(out, "WROTE") || strings.Contains(out, "MADE") {
		t.Error(out)
	}
}

func testTmp(t *testing.T, f *fixture) {
	c := f.config(python, "-c", `
import os
n = 0
try:
    with open("/tmp/big", "wb", buffering=0) as f:
        while n < 64 << 20: n += f.write(b"x" * 65536)
except OSError as e: print("full", e.strerror)
print("bytes", n <= 8 << 20, n >= 7 << 20)
os.remove("/tmp/big")
n = 0
try:
    while n < 100000: open(f"/tmp/{n}", "w").close(); n += 1
except OSError as e: print("files", e.strerror, n <= 2048)
n = 0
try:
    with open("/dev/shm/big", "wb", buffering=0) as f:
        while n < 256 << 20: n += f.write(b"x" * 65536)
except OSError as e: print("shm", e.strerror)
`)
	c.TmpBytes = 8 << 20
	i := f.start(t, c)
	exit, out := i.wait(t)
	want(t, exit, out, "full No space left on device", "bytes True True", "files No space left on device True", "shm No space left on device")
	// Another instance sees nothing of it.
	exit, out = f.sh(t, `ls -A /tmp /dev/shm /var/tmp | wc -l; echo x > /var/tmp/y && cat /tmp/y`)
	want(t, exit, out, "x")
	if lines := strings.Fields(out); len(lines) == 0 || lines[0] != "5" { // three names, two empty lines between
		t.Errorf("a new /tmp is not empty: %q", out)
	}
}

func testMounted(t *testing.T, f *fixture) {
	c := f.config(bash, "-c", `cat /opt/layer /var/runtime/client "$0/tool" "$1"; ls /opt; echo x > "$0/new" || echo read-only`)
	dirs := map[string]string{}
	for _, name := range []string{"layer", "client", "tool"} {
		dirs[name] = codeDir(t)
		if err := os.WriteFile(filepath.Join(dirs[name], name), []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(codeDir(t), "single")
	if err := os.WriteFile(file, []byte("single\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.OptDir, c.RuntimeDir, c.ReadOnly = dirs["layer"], dirs["client"], []string{dirs["tool"], file, "/usr/bin", "/bin"}
	c.Argv = append(c.Argv, dirs["tool"], file)
	exit, out := f.start(t, c).wait(t)
	want(t, exit, out, "layer", "client", "tool", "single", "read-only")

	exit, out = f.sh(t, `ls -A /opt /var/runtime | grep -c . `)
	if !strings.HasPrefix(out, "2\n") { // the two headings
		t.Errorf("%+v %q", exit, out)
	}
}

func testSystemCalls(t *testing.T, f *fixture) {
	calls := []struct {
		name  string
		nr    int
		args  string
		errno unix.Errno
	}{
		{"unshare", unix.SYS_UNSHARE, "0", unix.EPERM},
		{"unshare user", unix.SYS_UNSHARE, "0x10000000", unix.EPERM},
		{"setns", unix.SYS_SETNS, "0, 0", unix.EPERM},
		{"clone user", unix.SYS_CLONE, "0x10000000 | 17, 0, 0, 0, 0", unix.EPERM},
		{"clone mount", unix.SYS_CLONE, "0x00020000 | 17, 0, 0, 0, 0", unix.EPERM},
		{"clone net", unix.SYS_CLONE, "0x40000000 | 17, 0, 0, 0, 0", unix.EPERM},
		{"clone3", unix.SYS_CLONE3, "0, 0", unix.ENOSYS},
		{"mount", unix.SYS_MOUNT, "0, 0, 0, 0, 0", unix.EPERM},
		{"umount2", unix.SYS_UMOUNT2, "0, 0", unix.EPERM},
		{"pivot_root", unix.SYS_PIVOT_ROOT, "0, 0", unix.EPERM},
		{"chroot", unix.SYS_CHROOT, "0", unix.EPERM},
		{"open_tree", unix.SYS_OPEN_TREE, "-1, 0, 0", unix.EPERM},
		{"move_mount", unix.SYS_MOVE_MOUNT, "-1, 0, -1, 0, 0", unix.EPERM},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, "-1, 0, 0, 0, 0", unix.EPERM},
		{"fsopen", unix.SYS_FSOPEN, "0, 0", unix.EPERM},
		{"ptrace", unix.SYS_PTRACE, "0, 0, 0, 0", unix.EPERM},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, "1, 0, 0, 0, 0, 0", unix.EPERM},
		{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, "1, 0, 0, 0, 0, 0", unix.EPERM},
		{"pidfd_getfd", unix.SYS_PIDFD_GETFD, "-1, 0, 0", unix.EPERM},
		{"bpf", unix.SYS_BPF, "0, 0, 0", unix.EPERM},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, "0, 0, 0, 0, 0", unix.EPERM},
		{"userfaultfd", unix.SYS_USERFAULTFD, "1", unix.EPERM},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, "1, 0", unix.EPERM},
		{"keyctl", unix.SYS_KEYCTL, "0, 0, 0, 0, 0", unix.EPERM},
		{"add_key", unix.SYS_ADD_KEY, "0, 0, 0, 0, 0", unix.EPERM},
		{"request_key", unix.SYS_REQUEST_KEY, "0, 0, 0, 0", unix.EPERM},
		{"init_module", unix.SYS_INIT_MODULE, "0, 0, 0", unix.EPERM},
		{"finit_module", unix.SYS_FINIT_MODULE, "-1, 0, 0", unix.EPERM},
		{"kexec_load", unix.SYS_KEXEC_LOAD, "0, 0, 0, 0", unix.EPERM},
		{"reboot", unix.SYS_REBOOT, "0, 0, 0, 0", unix.EPERM},
		{"clock_settime", unix.SYS_CLOCK_SETTIME, "0, 0", unix.EPERM},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, "0, 0", unix.EPERM},
		{"adjtimex", unix.SYS_ADJTIMEX, "0", unix.EPERM},
		{"sethostname", unix.SYS_SETHOSTNAME, "0, 0", unix.EPERM},
		{"swapon", unix.SYS_SWAPON, "0, 0", unix.EPERM},
		{"syslog", unix.SYS_SYSLOG, "10, 0, 0", unix.EPERM},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, "-1, 0, 0", unix.EPERM},
		{"personality", unix.SYS_PERSONALITY, "0x0040000", unix.EPERM},
		{"socket packet", unix.SYS_SOCKET, "17, 3, 0", unix.EAFNOSUPPORT},
		{"socket vsock", unix.SYS_SOCKET, "40, 1, 0", unix.EAFNOSUPPORT},
		{"socket alg", unix.SYS_SOCKET, "38, 5, 0", unix.EAFNOSUPPORT},
		{"io_setup", unix.SYS_IO_SETUP, "65536, 0", unix.ENOSYS},
		{"socket raw", unix.SYS_SOCKET, "2, 3, 1", unix.EPERM},
	}
	var script strings.Builder
	script.WriteString("import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nA = ctypes.c_long\ndef call(name, nr, *args):\n    ctypes.set_errno(0)\n    r = libc.syscall(A(nr), *[A(a) for a in args])\n    if r == 0 and name.startswith('clone'): os._exit(99)\n    print(name, '=', ctypes.get_errno())\n")
	lines := make([]string, len(calls))
	for i, c := range calls {
		fmt.Fprintf(&script, "call(%q, %d, %s)\n", c.name, c.nr, c.args)
		lines[i] = fmt.Sprintf("%s = %d", c.name, int(c.errno))
	}
	exit, out := f.py(t, script.String())
	want(t, exit, out, lines...)
}

func testForeignCalls(t *testing.T, f *fixture) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the machine code is for amd64")
	}
	// getpid by the 32-bit gate, where numbers mean other calls; and by the x32 numbers.
	run := `
import ctypes, mmap
m = mmap.mmap(-1, 4096, prot=7)
m.write(bytes.fromhex(%q))
f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))
print("returned", f(), flush=True)
`
	exit, out := f.py(t, fmt.Sprintf(run, "b814000000cd80c3"))
	// A kernel without that gate has no such instruction: then it is the processor that refuses.
	if exit.Signal != "bad system call" && exit.Signal != "segmentation fault" {
		t.Errorf("int 0x80: %+v %q", exit, out)
	}
	exit, out = f.py(t, fmt.Sprintf(run, "b8270000400f05c3"))
	want(t, exit, out, "returned -38")
}

func testOrdinary(t *testing.T, f *fixture) {
	exit, out := f.sh(t, `set -e
cd /tmp; mkdir -p a/b; seq 1000 > a/b/n; sort -rn a/b/n | head -1; tar cf - a | gzip | gunzip | tar tf - | tail -1
date +%Y > /dev/null; id -un; env -i true; find / -maxdepth 1 > /dev/null; (sleep 0.01 & wait); cat <<< here
mktemp > /dev/null; ln -s a l; chmod 700 a; cp -r a c; diff -r a c && echo same; timeout 5 true; nice true; ulimit -n; getent hosts localhost > /dev/null && echo resolves`)
	want(t, exit, out, "1000", "a/b/n", "sbx_user1051", "here", "same", "1024", "resolves")
	exit, out = f.py(t, `
import threading, subprocess, socket, ssl, tempfile, multiprocessing, concurrent.futures, asyncio, hashlib, random, os
ts = [threading.Thread(target=lambda: sum(range(10000))) for _ in range(20)]
[x.start() for x in ts]; [x.join() for x in ts]
print(subprocess.run(["echo", "sub"], capture_output=True, text=True).stdout.strip())
a, b = socket.socketpair(); a.send(b"x"); print(b.recv(1))
print(len(ssl.create_default_context().get_ca_certs()) >= 0)
with concurrent.futures.ProcessPoolExecutor(2) as e: print(list(e.map(abs, [-1, -2])))
async def f(): await asyncio.sleep(0.001); return "async"
print(asyncio.run(f()))
with tempfile.NamedTemporaryFile() as t: print(t.name.startswith("/tmp/"))
print(os.cpu_count() >= 1)
`)
	want(t, exit, out, "sub", "b'x'", "True", "[1, 2]", "async")
	testInstalled(t, f)
	if _, err := os.Stat("/usr/bin/node"); err != nil {
		t.Log("node is not installed here and was not tried")
		return
	}
	i := f.start(t, f.config("/usr/bin/node", "-e", `
const {Worker, isMainThread} = require('worker_threads');
const {execSync} = require('child_process');
console.log(execSync('echo from node').toString().trim());
require('fs').writeFileSync('/tmp/x', 'y');
require('dns').lookup('localhost', (e, a) => console.log('dns', e ? e.code : a));
new Worker('require("worker_threads").parentPort.postMessage(require("os").cpus().length > 0)', {eval: true}).on('message', m => console.log('worker', m));
`))
	exit, out = i.wait(t)
	want(t, exit, out, "from node", "worker true")
}

// testInstalled runs what else functions call, where this machine has it.
func testInstalled(t *testing.T, f *fixture) {
	f.write(t, "Hello.java", `
import java.nio.file.*; import java.util.concurrent.*;
class Hello { public static void main(String[] a) throws Exception {
	Files.writeString(Path.of("/tmp/j"), "x");
	var pool = Executors.newFixedThreadPool(4); int sum = 0;
	Callable<Integer> one = () -> 1;
	for (var done : pool.invokeAll(java.util.Collections.nCopies(8, one))) sum += done.get();
	pool.shutdown(); System.out.println("java " + sum); } }
`, 0o644)
	for _, p := range []struct{ path, script, want string }{
		{"/usr/bin/perl", `perl -MPOSIX -e 'my $p = fork; exit 0 unless $p; wait; open(my $f, ">", "/tmp/p"); print "perl ", -e "/tmp/p", "\n"'`, "perl 1"},
		{"/usr/bin/git", `cd /tmp && git init -q g && cd g && echo x > x && git add x && git -c user.name=f -c user.email=f@example.com commit -qm c && git log --format='git %s'`, "git c"},
		{"/usr/bin/openssl", `echo x | openssl dgst -sha256 -r | cut -c1-8`, "73cb3858"},
		{"/usr/bin/sqlite3", `sqlite3 /tmp/s.db 'create table t (x); insert into t values (7); select * from t'`, "7"},
		{"/usr/bin/curl", `curl --version | grep -c ^curl`, "1"},
		{"/usr/bin/java", `java -Xmx64m -XX:+UseSerialGC /var/task/Hello.java`, "java 8"},
	} {
		if _, err := os.Stat(p.path); err != nil {
			t.Logf("%s is not installed here and was not tried", p.path)
			continue
		}
		c := f.config(bash, "-c", p.script)
		c.MemoryBytes = 512 << 20
		exit, out := f.start(t, c).wait(t)
		want(t, exit, out, p.want)
	}
}

func testNetwork(t *testing.T, f *fixture) {
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	abstract := "@doze-sandboxtest-" + strconv.Itoa(os.Getpid())
	unixHost, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	defer unixHost.Close()
	exit, out := f.py(t, fmt.Sprintf(`
import socket
def try_(name, family, address):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(5)
    try: s.connect(address); print(name, "CONNECTED")
    except OSError as e: print(name, "refused")
try_("host", socket.AF_INET, ("127.0.0.1", %d))
try_("abstract", socket.AF_UNIX, "\0%s")
try_("metadata", socket.AF_INET, ("169.254.169.254", 80))
try_("outside", socket.AF_INET, ("192.0.2.1", 80))
print("interfaces", [n for _, n in socket.if_nameindex()])
try: socket.socket(socket.AF_INET, socket.SOCK_STREAM).bind(("127.0.0.1", 9001)); print("bound")
except OSError: print("port is taken")
`, host.Addr().(*net.TCPAddr).Port, abstract[1:]))
	want(t, exit, out, "host refused", "abstract refused", "metadata refused", "outside refused", "port is taken")
	if strings.Contains(out, "CONNECTED") || !strings.Contains(out, "interfaces ['lo'") {
		t.Error(out)
	}
	// The same address inside is each instance's own endpoint.
	var wg sync.WaitGroup
	for n := range 4 {
		i := f.start(t, f.config(python, "-c", `
import os, urllib.request
print(urllib.request.urlopen("http://" + os.environ["AWS_LAMBDA_RUNTIME_API"]).read().decode())`))
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "endpoint %d", n) })}
		go server.Serve(i.Listener())
		wg.Go(func() {
			defer server.Close()
			exit, out := i.wait(t)
			want(t, exit, out, fmt.Sprintf("endpoint %d", n))
		})
	}
	wg.Wait()
}

func testMemory(t *testing.T, f *fixture) {
	t.Run("program", func(t *testing.T) {
		exit, out := f.py(t, `
l = []
while True: l.append(bytearray(1 << 20))`)
		if exit.Signal != "killed" || !exit.OutOfMemory {
			t.Errorf("%+v %q", exit, out)
		}
	})
	t.Run("child", func(t *testing.T) {
		i := f.start(t, f.config(bash, "-c", `python3 -c "bytearray(1 << 30)"; echo "child $?"; exit 0`))
		exit, out := i.wait(t)
		want(t, exit, out, "child 137")
		if !exit.OutOfMemory {
			t.Error("the kernel's kill is not reported")
		}
	})
	t.Run("innocent", func(t *testing.T) {
		if exit, out := f.sh(t, `kill -9 $$`); exit.OutOfMemory {
			t.Errorf("%+v %q", exit, out)
		}
	})
}

func testForkBomb(t *testing.T, f *fixture) {
	c := f.config(python, "-c", `
import os, time
n = 0
try:
    while n < 5000:
        if os.fork() == 0: time.sleep(60); os._exit(0)
        n += 1
except OSError as e: print("bounded", n < 64)
`)
	c.MaxProcesses = 64
	exit, out := f.start(t, c).wait(t)
	if f.lacks(t, noProcesses) {
		if exit.Signal != "killed" {
			t.Errorf("%+v, %q", exit, out)
		}
	} else {
		want(t, exit, out, "bounded True")
	}

	c = f.config(bash, "-c", `echo lit; bomb() { bomb | bomb & }; bomb; while :; do :; done`)
	c.MaxProcesses, c.CPUMilli, c.HardCPU = 64, 200, true
	i := f.start(t, c)
	i.until(t, "lit")
	begin := time.Now()
	i.Kill()
	i.wait(t)
	if took := time.Since(begin); took > sandbox.KillGrace {
		t.Errorf("a fork bomb took %s to end", took)
	}
}

func testCPU(t *testing.T, f *fixture) {
	if f.lacks(t, noCPU) {
		return
	}
	c := f.config(python, "-c", `
import time
begin, used = time.monotonic(), time.process_time() # the interpreter's own start may take long
while time.monotonic() - begin < 1: pass
print("share", (time.process_time() - used) / (time.monotonic() - begin) < 0.45)
`)
	c.CPUMilli, c.HardCPU = 250, true
	exit, out := f.start(t, c).wait(t)
	want(t, exit, out, "share True")
}

func testLimits(t *testing.T, f *fixture) {
	exit, out := f.py(t, `
import resource as r
print("core", r.getrlimit(r.RLIMIT_CORE)); print("files", r.getrlimit(r.RLIMIT_NOFILE)); print("queues", r.getrlimit(r.RLIMIT_MSGQUEUE))
try: r.setrlimit(r.RLIMIT_NOFILE, (4096, 4096)); print("raised")
except ValueError: print("not raised")
`)
	want(t, exit, out, "core (0, 0)", "files (1024, 1024)", "queues (0, 0)", "not raised")
}

// testNothingLeft counts what the worker holds, before and after.
func testNothingLeft(t *testing.T, f *fixture) {
	round := func() {
		var wg sync.WaitGroup
		for n := range 40 {
			wg.Go(func() {
				p, err := f.Start(t.Context(), f.config(bash, "-c", "(sleep 60 &); echo up; [ $0 = 1 ] && exec sleep 60", strconv.Itoa(n%2)))
				if err != nil {
					t.Error(err)
					return
				}
				b := make([]byte, 3)
				p.Output().Read(b)
				p.Kill()
				readAll(t, p.Output())
				<-p.Done()
			})
		}
		wg.Wait()
	}
	round()
	before := count(t)
	round()
	round()
	after := count(t)
	for name, n := range after {
		// The runtime may keep a thread or two more, and a goroutine that is on its way out.
		if n > before[name]+2 {
			t.Errorf("%s: %d before, %d after", name, before[name], n)
		}
	}
}

// count gives what could be left behind: of this process, and below every cgroup that has doze in its name.
func count(t *testing.T) map[string]int {
	t.Helper()
	list := func(path string) int {
		e, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{"descriptors": list("/proc/self/fd"), "goroutines": runtime.NumGoroutine(), "mounts": strings.Count(string(mounts), "\n")}
	for _, pattern := range []string{"/sys/fs/cgroup/doze-*/t-*", "/sys/fs/cgroup/*/doze-*/t-*", "/sys/fs/cgroup/*/*/doze-*/t-*"} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			var s unix.Stat_t
			if unix.Stat(dir, &s) == nil && int(s.Uid) == os.Geteuid() { // another user's are other tests'
				n["cgroups"]++
			}
		}
	}
	spaces := map[string]bool{}
	for _, pid := range descendants(t) {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
			spaces[to] = true
		}
	}
	n["network namespaces"] = len(spaces)
	return n
}

// descendants are the processes below this one: the machine has others, of other tests too.
func descendants(t *testing.T) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	children := map[int][]int{}
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		var pid, parent int
		var state string
		_, behind, _ := strings.Cut(string(raw), ") ")
		if _, err := fmt.Sscan(string(raw), &pid); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(behind, &state, &parent); err != nil {
			t.Fatal(err)
		}
		children[parent] = append(children[parent], pid)
	}
	all := children[os.Getpid()]
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}
