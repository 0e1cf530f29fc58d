//go:build linux

package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func network(t *testing.T, hosts ...string) (*Network, []*Host) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: run the tests as root to have this test")
	}
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	var all []*Host
	for _, name := range hosts {
		h, err := n.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
	return n, all
}

// echo answers with what it is sent, until the end of the test.
func echo(t *testing.T, h *Host) string {
	t.Helper()
	l, err := h.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, h *Host, address string, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return h.Dial(ctx, "tcp4", address)
}

// What is refused does not arrive, the other way round it does not come back; others are not concerned.
func TestPartition(t *testing.T) {
	n, h := network(t, "a", "b", "c")
	a, b, c := h[0], h[1], h[2]
	at := echo(t, b)
	for _, from := range []*Host{a, c, n.Switch} {
		conn, err := dial(t, from, at, 5*time.Second)
		if err != nil {
			t.Fatalf("from %s: %v", from.Name, err)
		}
		if host := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); host != from.Addr {
			t.Errorf("%s has the address %s, want %s", from.Name, host, from.Addr)
		}
		conn.Close()
	}
	if !Range.Contains(a.Addr) || a.Addr == b.Addr {
		t.Errorf("addresses %s and %s", a.Addr, b.Addr)
	}
	if err := b.Refuse(a); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, a, at, 300*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a refused host's connection ended with %v, and not in silence", err)
	}
	if conn, err := dial(t, c, at, 5*time.Second); err != nil {
		t.Errorf("another host: %v", err)
	} else {
		conn.Close()
	}
	if err := b.Accept(a); err != nil {
		t.Fatal(err)
	}
	if conn, err := dial(t, a, at, 5*time.Second); err != nil {
		t.Errorf("after the partition: %v", err)
	} else {
		conn.Close()
	}
}

// Of a thousand datagrams about as many are lost as was asked for.
func TestLoss(t *testing.T) {
	_, h := network(t, "a", "b")
	var p net.PacketConn
	if err := h[1].Do(func() (err error) {
		p, err = net.ListenPacket("udp4", netip.AddrPortFrom(h[1].Addr, 9000).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := h[1].Lose(300); err != nil {
		t.Fatal(err)
	}
	conn, err := h[0].Dial(t.Context(), "udp4", p.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const sent = 1000
	got := 0
	for i := range sent {
		if _, err := conn.Write([]byte(strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
		// A datagram between two namespaces of one machine has arrived when Write returns, or never will: what
		// is there is read at once, so that the socket's buffer bounds nothing.
		_ = p.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, _, err := p.ReadFrom(make([]byte, 16)); err == nil {
			got++
		}
	}
	if got < 600 || got > 800 { // 700, and over six standard deviations
		t.Errorf("%d of %d datagrams arrived at a loss of 30 %%", got, sent)
	}
}

// What leaves a host is held to a rate, and is not any more after Heal.
func TestRate(t *testing.T) {
	_, h := network(t, "a", "b")
	at := echo(t, h[1])
	take := func() time.Duration {
		conn, err := dial(t, h[0], at, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		const size = 256 << 10
		begun := time.Now()
		go conn.Write(make([]byte, size))
		if _, err := io.CopyN(io.Discard, conn, size); err != nil {
			t.Fatal(err)
		}
		return time.Since(begun)
	}
	if err := h[0].Limit(256 << 10); err != nil {
		t.Fatal(err)
	}
	if took := take(); took < 700*time.Millisecond {
		t.Errorf("256 KB at 256 KB a second took %v", took)
	}
	if err := h[0].Heal(); err != nil {
		t.Fatal(err)
	}
	if took := take(); took > 500*time.Millisecond {
		t.Errorf("256 KB at no limit took %v", took)
	}
}

// A process is on its host, and ends with the network.
func TestProcessEndsWithNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: run the tests as root to have this test")
	}
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.Add("a")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "600")
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	its, _ := os.Readlink("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net")
	var hosts, own string
	own, _ = os.Readlink("/proc/self/ns/net")
	if err := h.Do(func() (err error) { hosts, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	if its != hosts || its == own {
		t.Errorf("the process is in %s, its host in %s, the test in %s", its, hosts, own)
	}
	n.Close()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("after the network's end the process: %v", err)
	}
}
