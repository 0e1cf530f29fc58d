//go:build linux

package egress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

func TestMerged(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "[]"},
		{"10.0.0.0/8", "[10.0.0.0-10.255.255.255]"},
		{"10.1.0.0/16 10.0.0.0/8", "[10.0.0.0-10.255.255.255]"},
		{"10.0.1.0/24 10.0.0.0/24", "[10.0.0.0-10.0.1.255]"},
		{"0.0.0.0/0 1.2.3.4/32", "[0.0.0.0-255.255.255.255]"},
		{"255.0.0.0/8 1.2.3.4/32", "[1.2.3.4-1.2.3.4 255.0.0.0-255.255.255.255]"},
		{"10.0.0.77/8", "[10.0.0.0-10.255.255.255]"},
	} {
		var got []string
		for _, s := range merged(parsed(strings.Fields(c.in))) {
			got = append(got, fmt.Sprint(address(s.first), "-", address(s.last)))
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%q: %v, want %s", c.in, got, c.want)
		}
	}
}

func TestBlocks(t *testing.T) {
	all := blocks(DefaultRange, 33)
	if len(all) != 32 || all[0].String() != "198.18.16.0/20" || all[31].String() != "198.18.0.0/20" {
		t.Errorf("%v", all)
	}
	if small := blocks(netip.MustParsePrefix("192.0.2.128/25"), 7); fmt.Sprint(small) != "[192.0.2.128/25]" {
		t.Errorf("%v", small)
	}
	for _, bad := range []string{"10.0.0.0/7", "10.0.0.0/29", "2001:db8::/32"} {
		if CheckRange(netip.MustParsePrefix(bad)) == nil {
			t.Errorf("%s was taken for a range", bad)
		}
	}
	if CheckDestination(netip.MustParsePrefix("fd00::/8")) == nil || CheckDestination(netip.Prefix{}) == nil {
		t.Error("a destination that none can be was taken")
	}
}

func TestSlots(t *testing.T) {
	n := &Network{slots: newSlots(netip.MustParsePrefix("192.0.2.0/29"))}
	var got []uint32
	for {
		slot, err := n.takeSlot()
		if err != nil {
			if !errors.Is(err, errFull) {
				t.Fatal(err)
			}
			break
		}
		got = append(got, slot)
	}
	if fmt.Sprint(got) != "[2 3 4 5 6]" {
		t.Errorf("%v", got)
	}
	n.slots.free = []uint32{4, 2}
	if slot, err := n.takeSlot(); slot != 4 || err != nil {
		t.Errorf("%d %v", slot, err)
	}
}

func TestParseServers(t *testing.T) {
	for in, want := range map[string]string{
		"": "[127.0.0.1:53]",
		"# nameserver 192.0.2.9\nnameserver 192.0.2.1\nsearch example.org\nnameserver 2001:db8::1 # x\n": "[192.0.2.1:53 [2001:db8::1]:53]",
		"nameserver nonsense\nnameserver fe80::1%eth0\n":                                                 "[[fe80::1%eth0]:53]",
		"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n":               "[1.1.1.1:53 1.1.1.2:53 1.1.1.3:53]",
	} {
		if got := fmt.Sprint(parseServers(strings.NewReader(in))); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func query(t testing.TB, kind dnsmessage.Type, change func(*dnsmessage.Message)) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("a.test."), Type: kind, Class: dnsmessage.ClassINET}}}
	if change != nil {
		change(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAllowed(t *testing.T) {
	if !allowed(query(t, dnsmessage.TypeA, nil)) || !allowed(query(t, dnsmessage.TypeTXT, nil)) {
		t.Error("a plain question is refused")
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "nonsense": []byte("nonsense"),
		"an answer":      query(t, dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Response = true }),
		"an update":      query(t, dnsmessage.TypeSOA, func(m *dnsmessage.Message) { m.OpCode = 5 }),
		"a transfer":     query(t, dnsmessage.TypeAXFR, nil),
		"a part of one":  query(t, 251, nil),
		"two questions":  query(t, dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }),
		"no question":    query(t, dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Questions = nil }),
		"half a message": query(t, dnsmessage.TypeA, nil)[:20],
	} {
		if allowed(b) {
			t.Errorf("%s is passed on", name)
		}
	}
}

func FuzzAllowed(f *testing.F) {
	f.Add([]byte{})
	f.Add(query(f, dnsmessage.TypeA, nil))
	f.Add(query(f, dnsmessage.TypeAXFR, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if answer := refused(b); allowed(b) && len(answer) > 0 && allowed(answer) {
			t.Error("the refusal is a question")
		}
	})
}

// TestAsk has a first server that is silent, one that answers others' questions, and one that answers.
func TestAsk(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	serve := func(answer func(q []byte) []byte) string {
		p, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for b := make([]byte, 2048); ; {
				n, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				for _, a := range [][]byte{{1, 2}, answer(b[:n])} {
					p.WriteTo(a, from)
				}
			}
		}()
		t.Cleanup(func() { p.Close(); <-done })
		return p.LocalAddr().String()
	}
	good := serve(func(q []byte) []byte { return refused(q) })
	closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	q := query(t, dnsmessage.TypeA, nil)
	u := newUpstream("/does/not/exist")
	u.looked, u.servers = time.Now().Add(time.Hour), []string{closed.LocalAddr().String(), good}
	if a := u.ask(t.Context(), "udp", q); len(a) < 12 || a[0] != q[0] || a[3]&15 != byte(dnsmessage.RCodeServerFailure) {
		t.Errorf("%x", a)
	}
	u.servers = nil
	if a := u.ask(t.Context(), "udp", q); len(a) < 12 || a[2]&0x80 == 0 || a[3]&15 != byte(dnsmessage.RCodeServerFailure) {
		t.Errorf("without a server: %x", a)
	}
	for range maxAsking {
		u.asking <- struct{}{}
	}
	u.servers = []string{good}
	if a := u.ask(t.Context(), "udp", q); len(a) < 12 || a[3]&15 != byte(dnsmessage.RCodeServerFailure) {
		t.Errorf("too many at once: %x", a)
	}
}

func openTest(t *testing.T, tag string) *Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("lines need root; run the tests as root to test them")
	}
	n, err := Open(Config{Tag: tag, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if left := ofTag(t, tag); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	return n
}

// ofTag is all that the host has of a worker's network.
func ofTag(t *testing.T, tag string) (list []string) {
	t.Helper()
	links, err := whole(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, ends+tag) {
			list = append(list, l.Attrs().Name)
		}
	}
	if f, err := hasTable(tag); err != nil || f {
		list = append(list, fmt.Sprint("the table ", err))
	}
	return list
}

// enter does f in a line's namespace.
func enter(t *testing.T, l *Line, f func() error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(l.FD(), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		if unix.Setns(int(l.n.host.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// TestSpoofing has all rights inside the namespace, which no function has, and sends with another's address.
func TestSpoofing(t *testing.T) {
	n := openTest(t, "00feed")
	l, err := n.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	other := l.addr.Next().Next()
	heard := func() uint64 {
		f, err := netlink.LinkByName(l.hostEnd())
		if err != nil {
			t.Fatal(err)
		}
		return f.Attrs().Statistics.RxPackets
	}
	before := heard()
	try := func(from netip.Addr) (err error) {
		enter(t, l, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			eth, err := h.LinkByName(inside)
			if err != nil {
				return err
			}
			if from != l.addr {
				if err := h.AddrAdd(eth, &netlink.Addr{IPNet: single(from)}); err != nil {
					return err
				}
			}
			return nil
		})
		enter(t, l, func() error {
			// A private address: a datagram that gets as far as the firewall's other rules is rejected, and that is heard.
			c, dialErr := net.DialUDP("udp4", &net.UDPAddr{IP: from.AsSlice()}, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 9})
			if dialErr != nil {
				return dialErr
			}
			defer c.Close()
			c.Write([]byte("x"))
			c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			_, err = c.Read(make([]byte, 10))
			return nil
		})
		return err
	}
	if err := try(l.addr); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("as itself: %v", err)
	}
	if err := try(other); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("as another it gets an answer: %v", err)
	}
	if heard() == before {
		t.Error("nothing was sent at all: the test shows nothing")
	}
}

// TestTwoWorkers lay lines side by side.
func TestTwoWorkers(t *testing.T) {
	a, b := openTest(t, "00aaaa"), openTest(t, "00aaab")
	var lines []*Line
	for _, n := range []*Network{a, b, a, b} {
		l, err := n.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release()
		lines = append(lines, l)
	}
	if a.block.Overlaps(b.block) {
		t.Errorf("%v and %v", a.block, b.block)
	}
	seen := map[netip.Addr]bool{}
	for _, l := range lines {
		if seen[l.addr] {
			t.Errorf("%v twice", l.addr)
		}
		seen[l.addr] = true
	}
}

// TestSweep leaves things as a worker does that is killed, and opens again.
func TestSweep(t *testing.T) {
	const tag = "00dead"
	first := openTest(t, tag)
	l, err := first.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(ofTag(t, tag)) < 2 {
		t.Fatalf("%v", ofTag(t, tag))
	}
	second, err := Open(Config{Tag: tag, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range ofTag(t, tag) {
		if name == l.hostEnd() || strings.Contains(name, "table") {
			t.Errorf("%s is left", name)
		}
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	l.Release()
}

// TestManyAtOnce takes and releases from many goroutines.
func TestManyAtOnce(t *testing.T) {
	n := openTest(t, "00cafe")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				l, err := n.Take(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				l.Release()
			}
		})
	}
	all.Wait()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Take(canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func BenchmarkTake(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("lines need root")
	}
	n, err := Open(Config{Tag: "00beef", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	if l, err := n.Take(b.Context()); err == nil {
		l.Release()
	}
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			l, err := n.build()
			if err != nil {
				b.Fatal(err)
			}
			l.Release()
		}
	})
}
