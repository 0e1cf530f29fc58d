//go:build linux

package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// slots are the addresses of a block that instances can have.
type slots struct {
	next, end uint32
	free      []uint32 // given back, the longest ago first
}

// newSlots leaves out the first address, the gateway and the last one.
func newSlots(block netip.Prefix) slots {
	return slots{next: 2, end: uint32(1)<<(32-block.Bits()) - 1}
}

// errFull says that every address is in use.
var errFull = fmt.Errorf("every address of the block is in use: %w", unix.EAGAIN)

// takeSlot prefers addresses that nobody had, then those that nobody has had for the longest time.
func (n *Network) takeSlot() (slot uint32, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.slots
	switch {
	case s.next < s.end:
		slot = s.next
		s.next++
	case len(s.free) > 0:
		slot = s.free[0]
		s.free = s.free[1:]
	default:
		return 0, errFull
	}
	return slot, nil
}

// reap takes a line apart. With the last descriptor of the namespace the kernel removes it, and both ends of the line.
func (n *Network) reap(l *Line) {
	l.names.close()
	if l.ns != nil {
		l.ns.Close()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dying = append(n.dying, &dying{l, time.Now()})
}

// reaper gives addresses back once their lines are gone, until Close.
func (n *Network) reaper() {
	ticker := time.NewTicker(reapEvery)
	defer ticker.Stop()
	for {
		select {
		case <-n.done:
			return
		case <-ticker.C:
			n.look(goneWithin)
		}
	}
}

// look sees which lines are gone, and removes those that should have been. It says how many are left.
func (n *Network) look(within time.Duration) int {
	n.mu.Lock()
	all := n.dying
	n.dying = nil
	n.mu.Unlock()
	var left []*dying
	for _, d := range all {
		if !n.gone(d, within) {
			left = append(left, d)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dying = append(n.dying, left...)
	return len(n.dying)
}

func (n *Network) gone(d *dying, within time.Duration) bool {
	link, err := n.routes.LinkByName(d.line.hostEnd())
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
	case err != nil:
		return false
	case time.Since(d.since) < within:
		return false
	default:
		if err := n.routes.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			n.config.Logger.Error("a line to the outside is left behind", "link", d.line.hostEnd(), "err", err)
			d.since = time.Now()
			return false
		}
	}
	if d.line.index != 0 {
		if err := n.firewall.expel(d.line.index, d.line.addr); err != nil && !errors.Is(err, unix.ENOENT) {
			n.config.Logger.Error("firewall", "err", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slots.free = append(n.slots.free, d.line.slot)
	return true
}

// reapAll returns when nothing is left of any line, or says that something is.
func (n *Network) reapAll() error {
	end := time.Now().Add(2 * goneWithin)
	for left := n.look(goneWithin / 4); left > 0; left = n.look(goneWithin / 4) {
		if time.Now().After(end) {
			return fmt.Errorf("egress: %d lines are left behind", left)
		}
		time.Sleep(reapEvery / 10)
	}
	return nil
}
