//go:build linux

package egress

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// DefaultRange is where instances have their addresses unless an operator says otherwise: set aside for
// benchmarks (RFC 2544), so that no network that they want to reach has it.
var DefaultRange = netip.MustParsePrefix("198.18.0.0/15")

// blockBits is the size of what one worker takes of the range: 4096 addresses.
const blockBits = 20

// never are ranges that no instance reaches, whatever is allowed: this host, the link and with it the clouds'
// metadata addresses, those of them that are elsewhere, groups, and what is no address.
var never = []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "224.0.0.0/3"}

// private are ranges that no instance reaches unless the operator allows it: they are the operator's own.
var private = []string{"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16"}

// CheckRange refuses what cannot be the range of instances.
func CheckRange(p netip.Prefix) error {
	if !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 28 {
		return fmt.Errorf("%s is not a range of IPv4 addresses between /8 and /28", p)
	}
	return nil
}

// CheckDestination refuses what cannot be denied or allowed.
func CheckDestination(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is4() {
		return fmt.Errorf("%s is not a range of IPv4 addresses (instances have no IPv6)", p)
	}
	return nil
}

// span is addresses from first to last.
type span struct{ first, last uint32 }

func spanOf(p netip.Prefix) span {
	first := number(p.Masked().Addr())
	return span{first, first | uint32(uint64(1)<<(32-p.Bits())-1)}
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// merged joins ranges that overlap or touch: a set of intervals takes only what is apart.
func merged(prefixes []netip.Prefix) (spans []span) {
	var all []span
	for _, p := range prefixes {
		all = append(all, spanOf(p))
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	for _, s := range all {
		if n := len(spans); n > 0 && uint64(s.first) <= uint64(spans[n-1].last)+1 {
			spans[n-1].last = max(spans[n-1].last, s.last)
			continue
		}
		spans = append(spans, s)
	}
	return spans
}

func parsed(list []string) (prefixes []netip.Prefix) {
	for _, s := range list {
		prefixes = append(prefixes, netip.MustParsePrefix(s))
	}
	return prefixes
}

// blocks are the parts of a range of which a worker takes one, beginning with the one that seed names.
func blocks(r netip.Prefix, seed uint64) (list []netip.Prefix) {
	r = r.Masked()
	bits := max(r.Bits(), blockBits)
	count := uint64(1) << (bits - r.Bits())
	for i := range count {
		at := uint32((seed + i) % count << (32 - bits))
		list = append(list, netip.PrefixFrom(address(number(r.Addr())+at), bits))
	}
	return list
}
