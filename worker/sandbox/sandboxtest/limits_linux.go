package sandboxtest

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// The walls of quantity: what an instance can use up, and what its neighbours have left. Everything here is
// measured in CPU time and bytes, never by how fast this machine is.

// needs skips where the sandbox itself says that it has no such limit.
func (f *fixture) needs(t *testing.T, limit string) {
	t.Helper()
	for _, line := range f.Missing() {
		if strings.HasPrefix(line, "no "+limit+" cgroup controller") {
			t.Skipf("this sandbox says: %s", line)
		}
	}
}

// eaters are ways to take memory that is not a program's own. Each prints how much it has, in MB.
var eaters = []struct{ name, script string }{
	{"tmp", `
f = open("/tmp/big", "wb", buffering=0)
while n < most: f.write(chunk); got()`},
	{"shm and tmp", `
f = [open("/dev/shm/big", "wb", buffering=0), open("/tmp/big", "wb", buffering=0)]
while n < most:
    try: f[n % 2].write(chunk); got()
    except OSError: f = f[1:] * 2`},
	{"memory files", `
keep = []
while n < most:
    fd = os.memfd_create("x"); keep.append(fd); os.write(fd, chunk); got()`},
	{"System V shared memory", `
import ctypes
libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p
while n < most:
    id = libc.shmget(0, len(chunk), 0o1600)
    if id < 0: raise OSError("shmget")
    ctypes.memset(libc.shmat(id, None, 0), 1, len(chunk)); got()`},
	{"pipes", `
import fcntl
keep = []
while n < most:
    r, w = os.pipe(); keep += [r, w]; os.set_blocking(w, False)
    try: fcntl.fcntl(w, 1031, 1 << 20)
    except OSError: pass
    room = fcntl.fcntl(w, 1032)
    got(os.write(w, bytes(room)) / 2**20)`},
	{"unix sockets", `
keep = []
while n < most:
    a, b = socket.socketpair(); keep += [a, b]; a.setblocking(False)
    try:
        while True: got(a.send(chunk[:65536]) / 2**20)
    except BlockingIOError: pass`},
	{"TCP sockets", `
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(100)
keep = []
while n < most:
    a = socket.create_connection(l.getsockname()); b, _ = l.accept(); keep += [a, b]
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20); b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    a.setblocking(False)
    try:
        while True: got(a.send(chunk[:65536]) / 2**20)
    except BlockingIOError: pass`},
	{"UDP sockets", `
# What does not fit is dropped: what counts is what can be read in the end.
keep = []
for _ in range(900):
    a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(("127.0.0.1", 0)); a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20); keep.append(a)
    a.setblocking(False)
    for _ in range(12):
        try: a.sendto(chunk[:32768], a.getsockname())
        except BlockingIOError: break
for a in keep:
    try:
        while True: got(len(a.recv(65536)) / 2**20)
    except BlockingIOError: pass`},
	{"descriptors passed on", `
# Open files that nobody holds but a message that nobody reads.
import array
a, b = socket.socketpair(); a.setblocking(False); keep = []
while n < most:
    fds = [os.memfd_create("x") for _ in range(8)]
    for fd in fds: os.write(fd, chunk)
    try: a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    except OSError: keep += [a, b]; a, b = socket.socketpair(); a.setblocking(False)
    for fd in fds: os.close(fd)
    got(8)`},
	{"page tables", `
import mmap
keep = []
while n < most:
    m = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    for at in range(0, 1 << 30, 1 << 21): m[at] # a page of zeroes, and a page of the table for it
    keep.append(m); got(2)`},
	{"children", `
while n < most:
    if os.fork() == 0:
        keep = bytearray(1 << 20); import time; time.sleep(60); os._exit(0)
    got()`},
	{"names", `
# What the kernel remembers of each file that was looked for: some 80 MB, which it gives up again.
for n in range(40):
    for i in range(4000):
        try: os.stat(f"/usr/{n}-{i}-" + "x" * 180)
        except FileNotFoundError: pass`},
}

// testMemoryOfAllKinds has an instance of 64 MB try to get 512 in each way that there is. It may be refused, or be
// ended, or have what it got taken back (as names are); it may not hold it.
func testMemoryOfAllKinds(t *testing.T, f *fixture) {
	f.needs(t, "memory")
	if f.lacks(t, noMemory) {
		return // only what processes have mapped, and files in /tmp and /dev/shm, is looked at
	}
	const limit, most = 64, 512
	for _, e := range eaters {
		t.Run(e.name, func(t *testing.T) {
			c := f.config(python, "-c", fmt.Sprintf(`
import os, socket, sys
n, most, chunk = 0, %d, b"x" * (1 << 20)
def got(mb=1):
    global n
    n += mb
    print("got", int(n), flush=True)
try:
%s
    print("all", flush=True)
except (OSError, MemoryError) as e: print("refused", e, flush=True)
`, most, strings.ReplaceAll(strings.TrimPrefix(e.script, "\n"), "\n", "\n    ")))
			// The first line of a script is indented by the replacement only behind it.
			c.Argv[2] = strings.Replace(c.Argv[2], "try:\n", "try:\n    ", 1)
			c.MemoryBytes, c.TmpBytes, c.MaxProcesses = limit<<20, 1<<30, 1024
			i := f.start(t, c)
			exit, out := i.wait(t)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			last, got := lines[len(lines)-1], 0
			for _, line := range lines {
				if s, ok := strings.CutPrefix(line, "got "); ok {
					got, _ = strconv.Atoi(s)
				}
			}
			peak := i.MemoryPeakBytes()
			t.Logf("%d MB; %+v; peak %d MB; %s", got, exit, peak>>20, last)
			if strings.Contains(out, "Error") && !strings.Contains(out, "refused") {
				t.Fatalf("the script failed:\n%s", out)
			}
			// A packet that has come is charged to the group it is for even when that is at its limit.
			if peak > limit<<20+limit<<20/8 {
				t.Errorf("it used %d bytes, its limit is %d", peak, limit<<20)
			}
			if got > limit*5/4 {
				t.Errorf("it has %d MB, its limit is %d", got, limit)
			}
		})
	}
}

// burner is a Python program that keeps CPU 0 of those it may use busy with n processes and prints, for each, how
// many milliseconds of CPU time it has had.
func burner(n int) string {
	return fmt.Sprintf(`
import os, socket, time
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
socket.create_connection((host, int(port))).recv(1) # both begin when both are there
for _ in range(%d - 1):
    if os.fork() == 0: break
me, told = os.getpid(), 0
while True:
    for _ in range(20000): pass
    now = int(time.process_time() * 1000)
    if now >= told + 20: print("cpu", me, now, flush=True); told = now
`, n)
}

// burnt is the CPU time of all processes of a burner, in milliseconds.
func burnt(i *instance) int {
	last := map[string]int{}
	out := i.so()
	for line := range strings.Lines(out[:strings.LastIndexByte(out, '\n')+1]) {
		var pid string
		var ms int
		if n, _ := fmt.Sscanf(line, "cpu %s %d", &pid, &ms); n == 2 {
			last[pid] = ms
		}
	}
	sum := 0
	for _, ms := range last {
		sum += ms
	}
	return sum
}

// compete lets two burners that want the same CPU run until both have had enough for a comparison, and gives what
// each had of it from when both were there.
func compete(t *testing.T, a, b *instance) (int, int) {
	t.Helper()
	var gates []net.Conn
	for _, i := range []*instance{a, b} {
		i.Listener().(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience))
		c, err := i.Listener().Accept()
		if err != nil {
			t.Fatal(err)
		}
		gates = append(gates, c)
	}
	for _, c := range gates {
		c.Close()
	}
	end := time.Now().Add(4 * patience)
	wait := func(until func() bool) {
		for !until() {
			if time.Now().After(end) {
				t.Fatalf("no progress: %d and %d ms", burnt(a), burnt(b))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	wait(func() bool { return burnt(a) > 100 && burnt(b) > 100 })
	a0, b0 := burnt(a), burnt(b)
	wait(func() bool { return burnt(a)-a0+burnt(b)-b0 > 3000 })
	return burnt(a) - a0, burnt(b) - b0
}

// testShares: CPU goes by weight, whatever else the machine does meanwhile: who is beside the two takes from both.
func testShares(t *testing.T, f *fixture) {
	f.needs(t, "cpu")
	t.Run("one to three", func(t *testing.T) {
		small := f.config(python, "-c", burner(1))
		small.CPUMilli = 500
		large := f.config(python, "-c", burner(1))
		large.CPUMilli = 1500
		s, l := compete(t, f.start(t, small), f.start(t, large))
		t.Logf("%d ms and %d ms of CPU: 1 : %.2f", s, l, float64(l)/float64(s))
		if ratio := float64(l) / float64(s); ratio < 2 || ratio > 4.5 {
			t.Errorf("500 and 1500 thousandths of a CPU have shared it 1 : %.2f", ratio)
		}
	})
	t.Run("many against one", func(t *testing.T) {
		// Sixteen processes of a greedy instance weigh no more than the one of its neighbour.
		greedy := f.config(python, "-c", burner(16))
		modest := f.config(python, "-c", burner(1))
		g, m := compete(t, f.start(t, greedy), f.start(t, modest))
		t.Logf("%d ms and %d ms of CPU", g, m)
		if share := float64(m) / float64(g+m); share < 0.35 {
			t.Errorf("the neighbour of a greedy instance has %.0f%% of the CPU, want half", 100*share)
		}
	})
	t.Run("cap", func(t *testing.T) {
		// Alone on the machine or not, over a second of its own clock it has a quarter.
		c := f.config(python, "-c", `
import time
begin, cpu = time.monotonic(), time.process_time()
while time.monotonic() - begin < 2: pass
print("used", round((time.process_time() - cpu) / (time.monotonic() - begin), 3))
`)
		c.CPUMilli, c.HardCPU = 250, true
		exit, out := f.start(t, c).wait(t)
		var used float64
		if _, err := fmt.Sscanf(out, "used %g", &used); err != nil || exit.Code != 0 {
			t.Fatalf("%+v %q", exit, out)
		}
		if used > 0.33 {
			t.Errorf("it had %.3f of a CPU, its cap is 0.25", used)
		}
	})
}

// testFrozenWhole: every thread and process stands still, and finds afterwards that time has gone by.
func testFrozenWhole(t *testing.T, f *fixture) {
	c := f.config(python, "-c", `
import os, threading, time
def spin():
    while True: pass
threading.Thread(target=spin, daemon=True).start()
r, w = os.pipe()
if os.fork() == 0: spin()
last, cpu = time.monotonic(), time.process_time()
print("up", flush=True)
while True:
    time.sleep(0.01)
    now, used = time.monotonic(), time.process_time()
    if now - last > 1: print("jump %d ms, %d ms of CPU" % ((now - last) * 1000, (used - cpu) * 1000), flush=True)
    last, cpu = now, used
`)
	i := f.start(t, c)
	z, ok := i.Process.(sandbox.Freezer)
	if !ok {
		t.Skip("this sandbox does not freeze")
	}
	i.until(t, "up")
	const stood = 3 * time.Second
	if err := z.Freeze(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(stood)
	if err := z.Thaw(); err != nil {
		t.Fatal(err)
	}
	// A loaded machine can keep it waiting for a while too; the jump of the freeze is the long one.
	end := time.Now().Add(patience)
	for {
		for line := range strings.Lines(i.so()) {
			var jump, cpu int
			if n, _ := fmt.Sscanf(line, "jump %d ms, %d ms of CPU", &jump, &cpu); n == 2 && strings.HasSuffix(line, "\n") && jump >= int(stood/time.Millisecond)*9/10 {
				if cpu > jump/3 {
					t.Errorf("a frozen instance has had %d ms of CPU in %d ms", cpu, jump)
				}
				t.Log(strings.TrimSpace(line))
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("it has not noticed that it stood for %s: %q", stood, i.so())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// testApart: what one instance leaves or has open cannot be found by its neighbour.
func testApart(t *testing.T, f *fixture) {
	holder := f.start(t, f.config(python, "-c", `
import os, socket, time
open("/tmp/mine", "w").write("secret of the holder"); os.chmod("/tmp", 0o777); os.chmod("/tmp/mine", 0o666)
open("/dev/shm/mine", "w").write("secret of the holder")
a = socket.socket(socket.AF_UNIX); a.bind("\0holder"); a.listen()
b = socket.socket(socket.AF_UNIX); b.bind("/tmp/holder"); b.listen()
c = socket.socket(); c.bind(("0.0.0.0", 7777)); c.listen()
os.environ["SECRET"] = "of the holder"
print("up", os.getuid(), flush=True)
time.sleep(60)
`))
	holder.until(t, "\n")
	exit, out := f.py(t, `
import os, socket
for p in ("/tmp/mine", "/dev/shm/mine", "/tmp/holder"):
    if os.path.exists(p): print("FOUND", p)
for family, address in ((socket.AF_UNIX, "\0holder"), (socket.AF_UNIX, "/tmp/holder"), (socket.AF_INET, ("127.0.0.1", 7777))):
    try: socket.socket(family).connect(address); print("FOUND", address)
    except OSError: pass
if "holder" in open("/proc/net/unix").read(): print("FOUND in /proc/net/unix")
if "1E61" in open("/proc/net/tcp").read(): print("FOUND in /proc/net/tcp")
for name in os.listdir("/proc"):
    if not name.isdigit(): continue
    for what in ("environ", "cmdline", "maps"):
        try: text = open(f"/proc/{name}/{what}", "rb").read()
        except OSError: continue
        if b"holder" in text and int(name) != os.getpid(): print("FOUND in", name, what)
print("uid", os.getuid())
for signal in (0, 9):
    for pid in range(2, 5000):
        if pid == os.getpid(): continue
        try: os.kill(pid, signal); print("FOUND process", pid)
        except OSError: pass
print("done")
`)
	want(t, exit, out, "done")
	if strings.Contains(out, "FOUND") {
		t.Error(out)
	}
	if uid := strings.Fields(holder.so())[1]; strings.Contains(out, "uid "+uid+"\n") && !f.lacks(t, noUIDs) {
		t.Errorf("two instances have uid %s", uid)
	}
	select {
	case <-holder.Done():
		t.Error("the neighbour has been ended")
	default:
	}
}
