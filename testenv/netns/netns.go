//go:build linux

// Package netns is a small network of machines on one machine, for tests: each a network namespace with an address
// of its own, all at one bridge, which is in a namespace too. Nothing of it is in the host's own namespace, and
// nothing has a name: the kernel removes all of it with the last process that is in it, whoever was killed.
//
// It knows links, addresses and what keeps packets from arriving. It must not know what a node of a cluster is.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Range is where the machines have their addresses; it is set aside for tests (RFC 2544).
var Range = netip.MustParsePrefix("198.19.0.0/17")

const (
	bridge = "switch"
	// first is the number of the first host; the numbers below are the switch's own.
	first = 10
	// maxHosts is how many there can be.
	maxHosts = 200
)

// Network is hosts that reach one another and the switch.
type Network struct {
	// Switch is a machine, too: who measures is on it.
	Switch *Host
	mu     sync.Mutex
	hosts  []*Host
}

// New makes a network without hosts. An error says what this machine lacks.
func New() (*Network, error) {
	s, err := newHost("switch", netip.AddrFrom4([4]byte{198, 19, 0, 1}))
	if err != nil {
		return nil, err
	}
	err = s.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs(bridge)}); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
		return up(bridge, s.Addr)
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return &Network{Switch: s}, nil
}

// Add makes a host at the switch.
func (n *Network) Add(name string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.hosts) == maxHosts {
		return nil, fmt.Errorf("a network has at most %d hosts", maxHosts)
	}
	number := first + len(n.hosts)
	h, err := newHost(name, netip.AddrFrom4([4]byte{198, 19, 0, byte(number)}))
	if err != nil {
		return nil, err
	}
	port := fmt.Sprint("port", number)
	err = h.Do(func() error {
		line := &netlink.Veth{LinkAttrs: attrs(uplink), PeerName: port, PeerNamespace: netlink.NsFd(n.Switch.ns.Fd())}
		if err := netlink.LinkAdd(line); err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		return up(uplink, h.Addr)
	})
	if err == nil {
		err = n.Switch.Do(func() error {
			link, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			master, err := netlink.LinkByName(bridge)
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetMaster(link, master), netlink.LinkSetUp(link))
		})
	}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	n.hosts = append(n.hosts, h)
	return h, nil
}

// Close gives the namespaces up. Processes that are still in them are killed.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range append(n.hosts, n.Switch) {
		h.close()
	}
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// up gives a link an address and makes it work, and the loopback with it.
func up(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	mask := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(Range.Bits(), 32)}
	return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: mask}), netlink.LinkSetUp(link), netlink.LinkSetUp(lo))
}

// Host is a machine: a namespace, and one thread that is in it.
type Host struct {
	Name string
	Addr netip.Addr

	ns   *os.File
	work chan func()
	done chan struct{}

	mu      sync.Mutex
	refused map[netip.Addr]bool
	loss    int // packets of a thousand
}

// newHost makes a namespace. What the thread starts is killed with it, which is why one lives as long as the host.
func newHost(name string, addr netip.Addr) (*Host, error) {
	h := &Host{Name: name, Addr: addr, work: make(chan func()), done: make(chan struct{}), refused: map[netip.Addr]bool{}}
	made := make(chan error, 1)
	go func() {
		defer close(h.done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		err := os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
		if err == nil {
			h.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
		if err != nil {
			return
		}
		for f := range h.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("a network namespace: %w", err)
	}
	return h, nil
}

func (h *Host) close() {
	close(h.work)
	<-h.done
	h.ns.Close()
}

// Do does f on the host. It must not be called after Close.
func (h *Host) Do(f func() error) error {
	result := make(chan error, 1)
	h.work <- func() { result <- f() }
	return <-result
}

// Start starts a process on the host. It is killed when the thread of the host ends: with Close, or with the process
// that made the network, however that ended.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return h.Do(cmd.Start)
}

// Dial connects from the host. The address must be one: names are not looked up. A dial that hangs holds up
// others: it has to have a limit.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	// The socket is made in the namespace of the thread that makes it; one thread for all dials would let them
	// wait for one another.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = os.NewSyscallError("setns", err)
			return
		}
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
	}()
	<-done
	return conn, err
}

// Listen listens on the host, at any free port of its address.
func (h *Host) Listen() (l net.Listener, err error) {
	err = h.Do(func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(h.Addr, 0).String())
		return err
	})
	return l, err
}
