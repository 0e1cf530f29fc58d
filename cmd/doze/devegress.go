package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// rangesValue is a list of ranges of IPv4 addresses. Set adds to it.
type rangesValue struct{ to *[]netip.Prefix }

func (v *rangesValue) Type() string { return "CIDR" }
func (v *rangesValue) String() string {
	parts := make([]string, len(*v.to))
	for i, p := range *v.to {
		parts[i] = p.String()
	}
	return strings.Join(parts, ",")
}

// Set takes one range, or several with commas in between. A single address is a range of one.
func (v *rangesValue) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		p, err := parseRange(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		if !slices.Contains(*v.to, p) {
			*v.to = append(*v.to, p)
		}
	}
	return nil
}

func parseRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
		p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not a range of addresses, such as 10.1.0.0/16 or 10.1.2.3", s)
	case !p.Addr().Is4():
		return p, fmt.Errorf("%s is not a range of IPv4 addresses: instances have no IPv6", s)
	}
	return p.Masked(), nil
}

// poolValue is a range that instances' addresses are taken from.
type poolValue struct{ to *netip.Prefix }

func (v *poolValue) Type() string   { return "CIDR" }
func (v *poolValue) String() string { return v.to.String() }
func (v *poolValue) Set(s string) error {
	p, err := parseRange(s)
	if err != nil {
		return err
	}
	if p.Bits() < 8 || p.Bits() > 28 {
		return fmt.Errorf("%s is not between /8 and /28", s)
	}
	*v.to = p
	return nil
}
