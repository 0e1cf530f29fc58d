//go:build linux

package egress

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Line is a network namespace that reaches outside. It is one instance's, once.
type Line struct {
	n     *Network
	slot  uint32 // of the worker's block
	addr  netip.Addr
	index int // of the host end
	ns    *os.File
	names *names
	once  sync.Once
}

// FD is the namespace, to be entered. It is open until Release.
func (l *Line) FD() int { return int(l.ns.Fd()) }

// Release gives the line up. Nothing of its instance may be alive any more. It does not wait: the kernel takes
// the namespace and both ends of the line down in its own time, and the reaper looks whether it has.
func (l *Line) Release() {
	if l != nil {
		l.once.Do(func() { l.n.reap(l) })
	}
}

// inside is the name of the instance's interface.
const inside = "eth0"

// build makes one line. It is done by a thread that is in the new namespace meanwhile.
func (n *Network) build() (_ *Line, err error) {
	slot, err := n.takeSlot()
	if err != nil {
		return nil, err
	}
	l := &Line{n: n, slot: slot, addr: address(number(n.block.Addr()) + slot)}
	defer func() {
		if err != nil {
			l.Release()
			err = fmt.Errorf("line to the outside: %w", err)
		}
	}()
	ends := [2]net.HardwareAddr{newMAC(), newMAC()}
	if err := l.inNamespace(func() error { return l.layInside(ends) }); err != nil {
		return nil, err
	}
	return l, l.layOutside(ends[1])
}

// newMAC is an address that no vendor has.
func newMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^1 | 2
	return mac
}

// inNamespace runs f in a new network namespace, and keeps that in l.ns. A thread that cannot come back is given up.
func (l *Line) inNamespace(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- os.NewSyscallError("unshare", err)
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			l.ns = ns
			err = f()
		}
		back := unix.Setns(int(l.n.host.Fd()), unix.CLONE_NEWNET)
		if back == nil {
			runtime.UnlockOSThread()
		}
		result <- errors.Join(err, os.NewSyscallError("setns", back))
	}()
	return <-result
}

// layInside makes the line, and all that the instance sees of it: an address of its own and one neighbour, which
// is not asked for by ARP and has no service, through which everything goes. There is no IPv6. f's thread is inside.
func (l *Line) layInside(ends [2]net.HardwareAddr) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.NumTxQueues, attrs.NumRxQueues = inside, ends[1], 1, 1
	eth := &netlink.Veth{LinkAttrs: attrs, PeerName: l.hostEnd(), PeerHardwareAddr: ends[0], PeerNumTxQueues: 1, PeerNumRxQueues: 1,
		PeerNamespace: netlink.NsFd(l.n.host.Fd())}
	if err := h.LinkAdd(eth); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	link, err := h.LinkByName(inside)
	if err != nil {
		return err
	}
	index, gateway := link.Attrs().Index, l.n.gateway.AsSlice()
	if err := noIPv6(h, link); err != nil {
		return err
	}
	return errors.Join(
		h.AddrAdd(link, &netlink.Addr{IPNet: single(l.addr)}),
		h.LinkSetUp(link),
		h.NeighSet(&netlink.Neigh{LinkIndex: index, IP: gateway, HardwareAddr: ends[0], State: netlink.NUD_PERMANENT, Family: unix.AF_INET}),
		h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gateway, Flags: int(netlink.FLAG_ONLINK), Src: l.addr.AsSlice()}),
		l.serveNames(),
	)
}

// layOutside connects the host end. It has no address of the host. mac is that of the other end.
func (l *Line) layOutside(mac net.HardwareAddr) error {
	h := l.n.routes
	link, err := h.LinkByName(l.hostEnd())
	if err != nil {
		return err
	}
	l.index = link.Attrs().Index
	if err := l.n.firewall.admit(l.index, l.addr); err != nil {
		return err
	}
	if err := noIPv6(h, link); err != nil {
		return err
	}
	return errors.Join(
		h.LinkSetUp(link),
		h.NeighSet(&netlink.Neigh{LinkIndex: l.index, IP: l.addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT, Family: unix.AF_INET}),
		h.RouteAdd(&netlink.Route{LinkIndex: l.index, Dst: single(l.addr), Scope: netlink.SCOPE_LINK}),
	)
}

// noIPv6 keeps a link from giving itself an address. A kernel without IPv6 has nothing to keep.
func noIPv6(h *netlink.Handle, link netlink.Link) error {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	if err := h.LinkSetIP6AddrGenMode(link, none); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("no IPv6 on %s: %w", link.Attrs().Name, err)
	}
	return nil
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

// hostEnd is the name of this line's interface on the host.
func (l *Line) hostEnd() string { return fmt.Sprintf("%s%03x", l.n.ends, l.slot) }
