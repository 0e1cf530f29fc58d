package sandboxtest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// Egress is what an instance that may reach outside reaches, and what it does not. The factory's sandboxes have
// InstanceRange, the world's ResolvConf, and the world's Denied denied.
func Egress(t *testing.T, w *World, factory Factory) {
	f := open(t, factory)
	t.Run("outside", func(t *testing.T) { testOutside(t, f, w) })
	t.Run("names", func(t *testing.T) { testNames(t, f, w) })
	t.Run("out of reach", func(t *testing.T) { testOutOfReach(t, f, w) })
	t.Run("neighbours", func(t *testing.T) { testNeighbours(t, f, w) })
	t.Run("spoofed source", func(t *testing.T) { testSpoof(t, f, w) })
	t.Run("no power over the network", func(t *testing.T) { testNetworkPower(t, f) })
	t.Run("many connections", func(t *testing.T) { testConnections(t, f, w) })
	t.Run("none stays none", func(t *testing.T) { testNone(t, f, w) })
	t.Run("nothing left", func(t *testing.T) { testLinesGo(t, f) })
}

// outside is config with egress.
func (f *fixture) outside(argv ...string) sandbox.Config {
	c := f.config(argv...)
	c.Egress = true
	return c
}

// tryReach defines try(name, address, port), which prints whom it reached, or why not.
const tryReach = `
import socket, errno, os, sys, struct, time
def try_(name, address, port, data=b"GET / HTTP/1.0\r\n\r\n"):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.settimeout(4)
    began = time.monotonic()
    try:
        s.connect((address, port))
        s.sendall(data)
        got = b""
        while True:
            b = s.recv(4096)
            if not b: break
            got += b
        print(name, "reached", got.split(b"\r\n\r\n")[-1].decode())
    except OSError as e:
        print(name, "not reached", errno.errorcode.get(e.errno, type(e).__name__), "at once" if time.monotonic() - began < 2 else "late")
    finally: s.close()
def mine():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(("198.51.100.1", 9))
    return s.getsockname()[0]
`

func testOutside(t *testing.T, f *fixture, w *World) {
	exit, out := f.start(t, f.outside(python, "-c", tryReach+fmt.Sprintf(`
try_("http", %q, 80)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(4)
s.sendto(b"ping", (%[1]q, 9)); print("udp", s.recvfrom(100)[0].decode())
print("interfaces", sorted(n for _, n in socket.if_nameindex()))
`, w.Outside.Addr))).wait(t)
	want(t, exit, out, "http reached the outside", "udp ping", "interfaces ['eth0', 'lo']")
	for _, from := range w.Outside.Callers() {
		if from != w.Outside.Near.String() {
			t.Errorf("the outside was called from %s, not from the host's %s", from, w.Outside.Near)
		}
	}
}

func testNames(t *testing.T, f *fixture, w *World) {
	exit, out := f.start(t, f.outside(python, "-c", tryReach+fmt.Sprintf(`
name, server = %q, "127.0.0.1"
try_("by name", name, 80)
try: socket.gethostbyname("nobody.doze.test")
except socket.gaierror as e: print("nobody", e.errno == socket.EAI_NONAME)
def query(type, flags=b"\x01\x00"):
    return b"\xab\xcd" + flags + b"\0\1\0\0\0\0\0\0" + b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0" + struct.pack(">HH", type, 1)
def ask(kind, q):
    s = socket.socket(socket.AF_INET, kind); s.settimeout(1)
    s.connect((server, 53))
    s.sendall(struct.pack(">H", len(q)) + q if kind == socket.SOCK_STREAM else q)
    try: return len(s.recv(4096))
    except TimeoutError: return 0
    except ConnectionError: return 0
print("tcp", ask(socket.SOCK_STREAM, query(1)) > 20)
print("zone transfer", ask(socket.SOCK_STREAM, query(252)), ask(socket.SOCK_DGRAM, query(252)))
print("update", ask(socket.SOCK_DGRAM, query(1, b"\x28\x00")))
print("nonsense", ask(socket.SOCK_DGRAM, b"nonsense"), ask(socket.SOCK_DGRAM, b""), ask(socket.SOCK_STREAM, b"\xff" * 40))
`, w.Name))).wait(t)
	want(t, exit, out, "by name reached the outside", "nobody True", "tcp True", "zone transfer 0 0", "update 0", "nonsense 0 0 0")
}

func testOutOfReach(t *testing.T, f *fixture, w *World) {
	script := tryReach + fmt.Sprintf("try_('denied', %q, 80)\n", w.Denied.Addr)
	lines := []string{"denied not reached ECONNREFUSED at once", "own loopback not reached ECONNREFUSED at once"}
	for _, a := range append([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, w.HostAddrs...) {
		name := a.String()
		if a.IsLoopback() {
			name = "own loopback"
		} else {
			lines = append(lines, name+" not reached ECONNREFUSED at once")
		}
		script += fmt.Sprintf("try_(%q, %q, %d)\n", name, a, w.HostPort)
	}
	for _, a := range []string{"169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "100.100.100.200", "168.63.129.16", "240.0.0.1", "198.18.0.1"} {
		script += fmt.Sprintf("try_(%q, %[1]q, 80)\n", a)
	}
	script += `
for a in ("224.0.0.251", "255.255.255.255", "127.255.255.254"):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1); s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    try: s.sendto(b"x", (a, 9)); s.recv(10); print(a, "reached")
    except OSError: print(a, "no answer")
for a in ("fe80::1%eth0", "2001:db8::1", "fd00:ec2::254"):
    try: try_(a, a, 80)
    except OSError as e: print(a, "not reached", e)
`
	_, out := f.start(t, f.outside(python, "-c", script)).wait(t)
	for _, line := range lines {
		if !strings.Contains("\n"+out, "\n"+line+"\n") {
			t.Errorf("no line %q in:\n%s", line, out)
		}
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, " reached") && !strings.Contains(line, "not reached") || strings.Contains(line, "late") {
			t.Errorf("%s", line)
		}
	}
	if n := strings.Count(out, "\n"); n < 14+len(w.HostAddrs) {
		t.Errorf("only %d lines:\n%s", n, out)
	}
	if callers := w.Denied.Callers(); len(callers) > 0 {
		t.Errorf("the denied machine was called by %v", callers)
	}
}

// testNeighbours lets two instances try each other, and the host and the outside try them.
func testNeighbours(t *testing.T, f *fixture, w *World) {
	listen := tryReach + `
l = socket.socket(); l.bind(("0.0.0.0", 8080)); l.listen(8)
print("listening", mine(), flush=True)
while True:
    c, a = l.accept(); print("CALLED by", a, flush=True); c.sendall(b"a neighbour"); c.close()
`
	one, two := f.start(t, f.outside(python, "-c", listen)), f.start(t, f.outside(python, "-c", listen))
	var addrs []string
	for _, i := range []*instance{one, two} {
		i.until(t, "\n")
		addrs = append(addrs, strings.Fields(i.so())[1])
	}
	if addrs[0] == addrs[1] || !InstanceRange.Contains(netip.MustParseAddr(addrs[0])) {
		t.Fatalf("addresses %v", addrs)
	}
	exit, out := f.start(t, f.outside(python, "-c", tryReach+fmt.Sprintf("try_('one', %q, 8080); try_('two', %q, 8080); try_('api', %[1]q, 9001)", addrs[0], addrs[1]))).wait(t)
	want(t, exit, out, "one not reached ECONNREFUSED at once", "two not reached ECONNREFUSED at once", "api not reached ECONNREFUSED at once")
	if c, err := net.DialTimeout("tcp4", addrs[0]+":8080", time.Second); err == nil {
		c.Close()
		t.Error("the host reached an instance")
	}
	if w.Outside.Dial(addrs[0]+":8080") == nil {
		t.Error("the outside reached an instance")
	}
	for _, i := range []*instance{one, two} {
		if strings.Contains(i.so(), "CALLED") {
			t.Errorf("an instance was called: %s", i.so())
		}
	}
}

// testSpoof tries to send as another. What a thread with all rights in the namespace could send is package egress's test.
func testSpoof(t *testing.T, f *fixture, w *World) {
	before := len(w.Outside.Callers())
	exit, out := f.start(t, f.outside(python, "-c", tryReach+fmt.Sprintf(`
own = mine().rsplit(".", 1)
for source in (own[0] + "." + str(int(own[1]) ^ 1), "198.51.100.7", %q):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, 15, 1) # IP_FREEBIND, which needs no right
    try: s.bind((source, 0)); s.sendto(b"spoofed", (%q, 9)); print("sent")
    except OSError as e: print("not sent", errno.errorcode[e.errno])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(4)
s.sendto(b"honest", (%[2]q, 9)); s.recv(10); print("honest")
`, w.Outside.Near, w.Outside.Addr))).wait(t)
	want(t, exit, out, "honest")
	if n := len(w.Outside.Callers()) - before; n != 1 {
		t.Errorf("%d datagrams came out, of which one was honest:\n%s", n, out)
	}
}

// testNetworkPower tries what only an administrator of the network may do.
func testNetworkPower(t *testing.T, f *fixture) {
	exit, out := f.start(t, f.outside(python, "-c", tryReach+`
import fcntl
def refused(name, do):
    try: do(); print(name, "WORKED")
    except OSError as e: print(name, errno.errorcode[e.errno])
refused("packet", lambda: socket.socket(17, socket.SOCK_RAW, 0x300))
refused("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6))
refused("raw6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
refused("ping", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1))
def route(kind, body):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.bind((0, 0)); s.send(struct.pack("=IHHII", 16 + len(body), kind, 0x605, 1, 0) + body)
    code = struct.unpack("=i", s.recv(4096)[16:20])[0]
    if code: raise OSError(-code, "")
eth = socket.if_nametoindex("eth0")
refused("new address", lambda: route(20, struct.pack("=BBBBI", 2, 24, 0, 0, eth) + struct.pack("=HH4s", 8, 2, b"\x0a\0\0\1")))
refused("new route", lambda: route(24, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + struct.pack("=HHI", 8, 4, eth)))
refused("set link", lambda: route(16, struct.pack("=BBHiII", 0, 0, 0, eth, 0, 1)))
refused("netfilter", lambda: (lambda s: (s.bind((0, 0)), s.send(struct.pack("=IHHII", 20, 0xa00, 5, 1, 0) + b"\1\0\0\0"), [None for c in [struct.unpack("=i", s.recv(4096)[16:20])[0]] if c and (_ for _ in ()).throw(OSError(-c, ""))]))(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused("ioctl", lambda: fcntl.ioctl(s, 0x8916, struct.pack("16sHH4s8s", b"eth0", 2, 0, b"\x0a\0\0\1", b"")))
refused("bind to device", lambda: s.setsockopt(socket.SOL_SOCKET, 36, 1))
refused("transparent", lambda: s.setsockopt(socket.IPPROTO_IP, 19, 1))
refused("sysctl", lambda: open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w"))
refused("port 54", lambda: s.bind(("127.0.0.1", 54)))
`)).wait(t)
	want(t, exit, out, "raw EPERM", "raw6 EPERM", "ping EACCES", "new address EPERM", "new route EPERM", "set link EPERM", "ioctl EPERM", "transparent EPERM", "port 54 EACCES")
	if strings.Contains(out, "WORKED") || strings.Count(out, "\n") != 13 {
		t.Errorf("%s", out)
	}
}

// testConnections makes more connections than the host remembers for one instance. How many that is the kernel does
// not count to the last one.
func testConnections(t *testing.T, f *fixture, w *World) {
	exit, out := f.start(t, f.outside(python, "-c", tryReach+fmt.Sprintf(`
answered = refused = 0
while answered < 5000 and refused < 3:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)
    s.connect((%q, 9)); s.send(b"x")
    try: s.recv(10); answered += 1
    except OSError: refused += 1
    s.close()
print("refused", refused, "after at least 1000", answered >= 1000, "and at most 2000", answered <= 2000)
print(answered)
`, w.Outside.Addr))).wait(t)
	want(t, exit, out, "refused 3 after at least 1000 True and at most 2000 True")
	// Another instance is not touched by that.
	exit, out = f.start(t, f.outside(python, "-c", tryReach+fmt.Sprintf("try_('next', %q, 80)", w.Outside.Addr))).wait(t)
	want(t, exit, out, "next reached the outside")
}

func testNone(t *testing.T, f *fixture, w *World) {
	exit, out := f.py(t, tryReach+fmt.Sprintf(`
try_("outside", %q, 80)
began = time.monotonic()
try: socket.gethostbyname(%q); print("a name was found")
except socket.gaierror: print("no names", "at once" if time.monotonic() - began < 1 else "late")
`, w.Outside.Addr, w.Name))
	want(t, exit, out, "outside not reached ENETUNREACH at once", "no names at once")
}

// testLinesGo starts and ends many, and counts the host's interfaces and this process's descriptors.
func testLinesGo(t *testing.T, f *fixture) {
	run := func(n int) {
		for range n {
			f.start(t, f.outside(bash, "-c", "exit 0")).wait(t)
		}
	}
	run(10)
	count := func() (links, fds int) {
		// Lines that lie ready, and those that are just going, are there for a while.
		for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
			links = len(hostEnds(t))
			if links <= 8 || time.Now().After(deadline) {
				break
			}
		}
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return links, len(entries)
	}
	_, fds := count()
	run(60)
	links, after := count()
	if links > 8 || after > fds+30 { // three for each of the lines that lie ready
		t.Errorf("%d interfaces are left, and %d descriptors after %d", links, after, fds)
	}
}

// hostEnds are the interfaces of instances on this host.
func hostEnds(t *testing.T) (names []string) {
	t.Helper()
	all, err := filepath.Glob("/sys/class/net/doze*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		names = append(names, filepath.Base(path))
	}
	slices.Sort(names)
	return names
}
