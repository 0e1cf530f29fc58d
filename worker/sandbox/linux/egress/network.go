//go:build linux

// Package egress is the network of those instances that may reach outside: for each a network namespace with one
// point-to-point line (a veth pair) to the host, an address that it cannot change, a resolver on its own loopback, and
// a firewall that lets it reach the outside and nothing else.
//
// It knows links, addresses, rules and names. It must not know what a sandbox or a function is.
//
// Lines are laid ahead, in the background, as long as they are used; a Take that finds none waits for one to be
// laid. Nothing is done to the host before the first Take: only what a dead worker left is removed.
//
// What it needs of the host: CAP_NET_ADMIN and CAP_SYS_ADMIN in the host's network namespace, nf_tables with its nat, ct,
// fib-less inet family, veth, and net.ipv4.ip_forward, which it sets to 1 where it is 0 and leaves so: another worker
// may need it by then. It changes no other setting; rp_filter may have any value.
package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// ready is how many lines lie ready for instances while egress is used.
	ready = 8
	// restAfter is how long after the last Take no line is kept ready any more.
	restAfter = 5 * time.Minute
	// goneWithin is how long the kernel may take over a line that was given up before it is told again.
	goneWithin = 2 * time.Second
	// reapEvery is how often it is looked.
	reapEvery = 100 * time.Millisecond
	// ends is what the names of the host ends of all workers begin with.
	ends = "doze"
)

// Config says where the instances' network is.
type Config struct {
	// Tag is six characters [0-9a-f] that are this data directory's and no other's: what a dead worker of it left is
	// recognised by them.
	Tag string
	// Range is where instances have their addresses, zero for DefaultRange. A worker takes a /20 of it that nobody
	// on this host has.
	Range netip.Prefix
	// Deny are ranges that no instance reaches. Allow are private ranges that they reach, where Deny does
	// not have them too; what lies in none of the two and is public is reached.
	Deny, Allow []netip.Prefix
	// ResolvConf is where the host's name servers are, "" for /etc/resolv.conf.
	ResolvConf string
	Logger     *slog.Logger
}

func (c *Config) check() error {
	if !c.Range.IsValid() {
		c.Range = DefaultRange
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	err := CheckRange(c.Range)
	for _, p := range append(c.Deny[:len(c.Deny):len(c.Deny)], c.Allow...) {
		err = errors.Join(err, CheckDestination(p))
	}
	return err
}

// Network lays lines. Its methods may be called from many goroutines.
type Network struct {
	config Config
	ends   string // prefix of the names of this worker's host ends

	// Made by the first Take.
	host     *os.File // the host's network namespace
	routes   *netlink.Handle
	claim    io.Closer // of block
	block    netip.Prefix
	gateway  netip.Addr
	firewall *firewall
	upstream *upstream

	mu      sync.Mutex
	opened  bool
	closed  bool
	lines   chan *Line // ready ones
	slots   slots
	used    time.Time // the last Take
	dying   []*dying
	wake    chan struct{} // of the layer
	done    chan struct{} // closed by Close
	running sync.WaitGroup
}

type dying struct {
	line  *Line
	since time.Time
}

// Open removes what a dead worker left and looks whether this machine has what lines are made of. An error says what
// it lacks.
func Open(config Config) (*Network, error) {
	if err := config.check(); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	n := &Network{config: config, ends: ends + config.Tag, lines: make(chan *Line, ready), wake: make(chan struct{}, 1), done: make(chan struct{})}
	if err := n.sweep(); err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	return n, nil
}

// sweep removes links and rules of a worker of the same data directory.
func (n *Network) sweep() error {
	var caps [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	if caps[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("the capability CAP_NET_ADMIN is missing")
	}
	if err := canForward(); err != nil {
		return err
	}
	if err := removeTable(n.config.Tag); err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Name, n.ends) {
			var missing netlink.LinkNotFoundError
			if err := netlink.LinkDel(link); err != nil && !errors.As(err, &missing) && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("remove %s: %w", link.Attrs().Name, err)
			}
		}
	}
	return nil
}

// open does to the host what lines need. mu is held.
func (n *Network) open() (err error) {
	if n.closed {
		return errClosed
	}
	if n.opened {
		return nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.undo())
		}
	}()
	if n.host, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	if n.routes, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if err := n.takeBlock(); err != nil {
		return err
	}
	n.gateway, n.slots = address(number(n.block.Addr())+1), newSlots(n.block)
	policy := policy{block: n.block, never: append(append(parsed(never), n.config.Range, n.block), n.config.Deny...),
		private: parsed(private), allow: n.config.Allow, hostPrefix: ends, workerEnds: n.ends}
	if n.firewall, err = newFirewall(n.config.Tag, policy); err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	if err := n.forward(); err != nil {
		return err
	}
	n.upstream = newUpstream(n.config.ResolvConf)
	n.opened = true
	n.config.Logger.Info("functions with network egress get addresses of their own", "block", n.block)
	if drops := foreignDrops(); len(drops) > 0 {
		n.config.Logger.Warn("other rules of this host drop what they do not know: let through what comes from and goes to the interfaces "+ends+"*",
			"chains", drops)
	}
	n.running.Go(n.lay)
	n.running.Go(n.reaper)
	return nil
}

var errClosed = errors.New("egress: closed")

// forwarding is the setting that makes the host pass on what is not for itself.
const forwarding = "/proc/sys/net/ipv4/ip_forward"

// canForward says why the host cannot be made to.
func canForward() error {
	b, err := os.ReadFile(forwarding)
	if err == nil && strings.TrimSpace(string(b)) == "0" {
		err = unix.Access(forwarding, unix.W_OK)
	}
	if err != nil {
		return fmt.Errorf("net.ipv4.ip_forward is not 1 and cannot be set: %w", err)
	}
	return nil
}

// forward makes the host pass on what is not for itself. It is never taken back.
func (n *Network) forward() error {
	b, err := os.ReadFile(forwarding)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) != "0" {
		return nil
	}
	if err := os.WriteFile(forwarding, []byte("1"), 0); err != nil {
		return fmt.Errorf("net.ipv4.ip_forward is 0 and cannot be set to 1: %w", err)
	}
	n.config.Logger.Warn("net.ipv4.ip_forward was 0 and is 1 now, and stays so: functions with network egress need it")
	return nil
}

// takeBlock finds a block that no interface, route or other worker of this host has. Its mark is a socket in the
// abstract namespace, which belongs to this network namespace and goes with the process.
func (n *Network) takeBlock() error {
	taken, err := n.taken()
	if err != nil {
		return err
	}
	var seed uint64
	fmt.Sscanf(n.config.Tag, "%x", &seed)
	for _, block := range blocks(n.config.Range, seed) {
		if overlaps(block, taken) {
			continue
		}
		mark, err := net.Listen("unix", "@doze-egress-"+block.String())
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			return err
		}
		n.block, n.claim = block, mark
		return nil
	}
	return fmt.Errorf("every part of %s is in use on this machine: set another range with --egress-range", n.config.Range)
}

// whole lists until nothing changed meanwhile, as other programs may do at any time: the kernel then says that
// something may be missing.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	const tries = 100
	for range tries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// taken are the IPv4 networks that this host is in or has a route to.
func (n *Network) taken() (list []netip.Prefix, err error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return n.routes.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		return n.routes.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	add := func(ipnet *net.IPNet) {
		if ipnet == nil {
			return
		}
		bits, _ := ipnet.Mask.Size()
		if addr, ok := netip.AddrFromSlice(ipnet.IP.To4()); ok && bits > 0 {
			list = append(list, netip.PrefixFrom(addr, bits))
		}
	}
	for _, a := range addrs {
		add(a.IPNet)
	}
	for _, r := range routes {
		add(r.Dst)
	}
	return list, nil
}

func overlaps(p netip.Prefix, list []netip.Prefix) bool {
	for _, q := range list {
		if p.Overlaps(q) {
			return true
		}
	}
	return false
}

// Take gives a line: one that lies ready, or else a new one. The caller releases it.
func (n *Network) Take(ctx context.Context) (*Line, error) {
	n.mu.Lock()
	if err := n.open(); err != nil {
		n.mu.Unlock()
		return nil, err
	}
	n.used = time.Now()
	n.running.Add(1) // Close waits for this
	n.mu.Unlock()
	defer n.running.Done()
	defer n.more()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case l := <-n.lines:
		return l, nil
	default:
		return n.build()
	}
}

// more wakes the layer.
func (n *Network) more() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// lay keeps lines ready while they are used, until Close.
func (n *Network) lay() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failures := 0
	for {
		select {
		case <-n.done:
			return
		case <-timer.C:
		case <-n.wake:
			if failures > 0 {
				continue // not before the timer
			}
		}
		n.mu.Lock()
		rest := time.Until(n.used.Add(restAfter))
		n.mu.Unlock()
		if rest <= 0 {
			n.drain()
			timer.Reset(restAfter) // a Take wakes
			continue
		}
		if len(n.lines) == cap(n.lines) {
			timer.Reset(rest)
			continue
		}
		l, err := n.build()
		if err != nil {
			failures++
			n.config.Logger.Warn("a line to the outside cannot be laid", "err", err)
			timer.Reset(min(time.Minute, time.Second<<min(failures, 6)))
			continue
		}
		failures = 0
		n.lines <- l // this goroutine alone sends
		timer.Reset(0)
	}
}

// drain gives the lines up that lie ready.
func (n *Network) drain() {
	for {
		select {
		case l := <-n.lines:
			l.Release()
		default:
			return
		}
	}
}

// undo removes what open has made so far.
func (n *Network) undo() error {
	var errs []error
	if n.firewall != nil {
		errs = append(errs, n.firewall.close())
	}
	if n.claim != nil {
		errs = append(errs, n.claim.Close())
	}
	if n.routes != nil {
		n.routes.Close()
	}
	if n.host != nil {
		errs = append(errs, n.host.Close())
	}
	n.firewall, n.claim, n.routes, n.host = nil, nil, nil, nil
	return errors.Join(errs...)
}

// Close removes every line and every rule. All lines have been released.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	close(n.done)
	opened := n.opened
	n.mu.Unlock()
	n.running.Wait()
	if !opened {
		return nil
	}
	n.drain()
	return errors.Join(n.reapAll(), n.undo())
}
