package sandboxtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// InstanceRange is where instances have their addresses while there is a World.
var InstanceRange = netip.MustParsePrefix("198.18.0.0/16")

// World is what an instance with egress can try to reach: two machines behind this host, and this host. The
// machines are network namespaces with addresses of 198.19.0.0/16.
type World struct {
	// Outside answers HTTP and names, and Denied HTTP.
	Outside, Denied *Machine
	// Host is where this host answers HTTP on all its addresses.
	HostPort  int
	HostAddrs []netip.Addr
	// ResolvConf names Outside as the name server. It knows Name and nothing else.
	ResolvConf, Name string
}

// Machine is one of them.
type Machine struct {
	Addr    netip.Addr
	Network netip.Prefix
	// Near is this host's address there.
	Near netip.Addr
	ns   *os.File

	mu      sync.Mutex
	callers []string
}

// Callers are the addresses that HTTP requests and datagrams came from.
func (m *Machine) Callers() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.callers...)
}

func (m *Machine) heard(from net.Addr) {
	host, _, _ := net.SplitHostPort(from.String())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.callers = append(m.callers, host)
}

// NewWorld makes one, for the time of the test.
func NewWorld(t *testing.T) *World {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("test hosts are network namespaces, which need root")
	}
	seed := os.Getpid() % 64 * 4
	w := &World{Name: "outside.doze.test", Outside: newMachine(t, seed), Denied: newMachine(t, seed+1)}
	w.Outside.serve(t, "the outside")
	w.Denied.serve(t, "what is denied")
	w.Outside.serveNames(t, w.Name)
	w.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(w.ResolvConf, []byte("nameserver "+w.Outside.Addr.String()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	serveHTTP(t, l, func(net.Addr) {}, "the host")
	w.HostPort = l.Addr().(*net.TCPAddr).Port
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			w.HostAddrs = append(w.HostAddrs, p.Addr())
		}
	}
	for _, a := range append(w.HostAddrs, w.Outside.Addr, w.Denied.Addr) { // what an instance does not reach is there
		port := 80
		if a != w.Outside.Addr && a != w.Denied.Addr {
			port = w.HostPort
		}
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, uint16(port)).String(), 5*time.Second)
		if err != nil {
			t.Fatalf("the test's own world: %v", err)
		}
		c.Close()
	}
	return w
}

func newMachine(t *testing.T, number int) *Machine {
	t.Helper()
	m := &Machine{
		Network: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(number), 0}), 24),
		Near:    netip.AddrFrom4([4]byte{198, 19, byte(number), 1}), Addr: netip.AddrFrom4([4]byte{198, 19, byte(number), 2}),
	}
	name := fmt.Sprintf("tw%d", number)
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	err = inside(nil, func() error {
		if m.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "up"
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(host.Fd())}); err != nil {
			return err
		}
		return up(h, "up", m.Addr, m.Near)
	})
	if err != nil {
		t.Fatalf("a test host: %v", err)
	}
	t.Cleanup(func() { m.ns.Close() })
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(name); err == nil {
			netlink.LinkDel(link)
		}
	})
	if err := up(h, name, m.Near, netip.Addr{}); err != nil {
		t.Fatalf("a test host: %v", err)
	}
	return m
}

func up(h *netlink.Handle, name string, addr, gateway netip.Addr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	err = errors.Join(h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}), h.LinkSetUp(link))
	if gateway.IsValid() {
		err = errors.Join(err, h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}))
	}
	return err
}

// inside does f with its thread in a network namespace, or in a new one.
func inside(ns *os.File, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			result <- err
			return
		}
		defer home.Close()
		if ns == nil {
			err = unix.Unshare(unix.CLONE_NEWNET)
		} else {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
		result <- err
	}()
	return <-result
}

// Dial connects from there.
func (m *Machine) Dial(address string) error {
	return inside(m.ns, func() error {
		c, err := net.DialTimeout("tcp4", address, time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

func (m *Machine) serve(t *testing.T, word string) {
	var l net.Listener
	var p net.PacketConn
	if err := inside(m.ns, func() (err error) {
		if l, err = net.Listen("tcp4", "0.0.0.0:80"); err == nil {
			p, err = net.ListenPacket("udp4", "0.0.0.0:9")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	serveHTTP(t, l, m.heard, word)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 2048); ; {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			m.heard(from)
			p.WriteTo(b[:n], from)
		}
	}()
	t.Cleanup(func() { p.Close(); <-done })
}

func serveHTTP(t *testing.T, l net.Listener, heard func(net.Addr), word string) {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _ := net.ResolveTCPAddr("tcp", r.RemoteAddr)
		heard(from)
		io.WriteString(w, word)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}

// serveNames answers for one name, over UDP and TCP.
func (m *Machine) serveNames(t *testing.T, name string) {
	var p net.PacketConn
	var l net.Listener
	if err := inside(m.ns, func() (err error) {
		if p, err = net.ListenPacket("udp4", "0.0.0.0:53"); err == nil {
			l, err = net.Listen("tcp4", "0.0.0.0:53")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for b := make([]byte, 2048); ; {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			p.WriteTo(m.answer(b[:n], name), from)
		}
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 2048)
			if n, err := c.Read(b); err == nil && n > 2 {
				a := m.answer(b[2:n], name)
				c.Write(append([]byte{byte(len(a) >> 8), byte(len(a))}, a...))
			}
			c.Close()
		}
	})
	t.Cleanup(func() { p.Close(); l.Close(); serving.Wait() })
}

func (m *Machine) answer(query []byte, name string) []byte {
	var q dnsmessage.Message
	if err := q.Unpack(query); err != nil || len(q.Questions) != 1 {
		return nil
	}
	a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RecursionAvailable: true, RCode: dnsmessage.RCodeNameError}, Questions: q.Questions}
	if q.Questions[0].Name.String() == name+"." {
		a.RCode = dnsmessage.RCodeSuccess
		if q.Questions[0].Type == dnsmessage.TypeA {
			a.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.AResource{A: m.Addr.As4()},
			}}
		}
	}
	b, _ := a.Pack()
	return b
}
