//go:build linux

package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// maxConnections bounds the connections of one instance that the host remembers at once: they are
// remembered in one table for all.
const maxConnections = 1024

// firewall is this worker's nftables table. What another table of the host drops stays dropped.
type firewall struct {
	prefix string // of the names of all host ends

	mu    sync.Mutex
	conn  *nftables.Conn
	table *nftables.Table
	lines *nftables.Set
}

func tableName(tag string) string { return "doze-" + tag }

// policy is who may reach what.
type policy struct {
	block                  netip.Prefix
	never, private, allow  []netip.Prefix
	hostPrefix, workerEnds string
}

// removeTable removes what a dead worker left. It also shows whether there is a firewall to talk to.
func removeTable(tag string) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	there, err := hasTable(tag)
	if err != nil || !there {
		return err
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(tag)})
	return conn.Flush()
}

// hasTable tells whether the table of a worker is there.
func hasTable(tag string) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName(tag) }), err
}

// newFirewall makes the table, as a whole or not at all.
func newFirewall(tag string, p policy) (*firewall, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, err
	}
	f := &firewall{conn: conn, table: conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(tag)})}
	if err := f.write(p); err != nil {
		return nil, errors.Join(err, conn.CloseLasting())
	}
	return f, nil
}

func (f *firewall) write(p policy) error {
	f.lines = &nftables.Set{Table: f.table, Name: "lines", Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFIndex, nftables.TypeIPAddr)}
	tracked := &nftables.Set{Table: f.table, Name: "connections", Dynamic: true, KeyType: nftables.TypeIPAddr, Size: 1 << (32 - min(blockBits, p.block.Bits()))}
	for _, set := range []*nftables.Set{f.lines, tracked} {
		if err := f.conn.AddSet(set, nil); err != nil {
			return err
		}
	}
	var sets [3]*nftables.Set
	for i, list := range [...]struct {
		name     string
		prefixes []netip.Prefix
	}{{"never", p.never}, {"allowed", p.allow}, {"private", p.private}} {
		sets[i] = &nftables.Set{Table: f.table, Name: list.name, Interval: true, KeyType: nftables.TypeIPAddr}
		if err := f.conn.AddSet(sets[i], intervals(list.prefixes)); err != nil {
			return err
		}
	}
	f.refusals()
	never, allowed, private := sets[0], sets[1], sets[2]
	from, to := interfaceIs(expr.MetaKeyIIFNAME, p.workerEnds), interfaceIs(expr.MetaKeyOIFNAME, p.workerEnds)

	// An instance sends as itself or not at all.
	spoof := f.chain("from-instance", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainTypeFilter)
	f.rule(spoof, from, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}, verdict(expr.VerdictDrop))
	f.rule(spoof, from, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: unix.NFT_REG32_00},
		&expr.Payload{DestRegister: unix.NFT_REG32_01, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, SetName: f.lines.Name, SetID: f.lines.ID, Invert: true},
	}, verdict(expr.VerdictDrop))

	// Nothing of the host is for instances, whichever of its addresses they try.
	early := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 10)
	f.rule(f.chain("to-host", nftables.ChainHookInput, early, nftables.ChainTypeFilter), from, reject())
	// Nor is anything of an instance for the host's other programs.
	f.rule(f.chain("from-host", nftables.ChainHookOutput, early, nftables.ChainTypeFilter), to, notReply(), verdict(expr.VerdictDrop))

	forward := f.chain("forward", nftables.ChainHookForward, early, nftables.ChainTypeFilter)
	f.rule(forward, from, interfaceIs(expr.MetaKeyOIFNAME, p.hostPrefix), reject()) // another instance, of whichever worker
	f.rule(forward, from, []expr.Any{                                               // a port of the host that it forwards elsewhere
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(ipsDstNAT), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
	}, reject())
	f.rule(forward, from, destinationIn(never), reject())
	f.rule(forward, from, destinationIn(private), destinationNotIn(allowed), reject())
	f.rule(forward, from, isNew(), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Dynset{SrcRegKey: 1, SetName: tracked.Name, SetID: tracked.ID, Operation: unix.NFT_DYNSET_OP_ADD,
			Exprs: []expr.Any{&expr.Connlimit{Count: maxConnections, Flags: expr.NFT_CONNLIMIT_F_INV}}},
	}, reject())
	f.rule(forward, to, notReply(), verdict(expr.VerdictDrop))

	block := p.block.Masked().Addr().As4()
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.block.Bits()))
	f.rule(f.chain("masquerade", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainTypeNAT), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: block[:]},
		&expr.Masq{},
	})
	return f.conn.Flush()
}

// ipsDstNAT is IPS_DST_NAT of the kernel's nf_conntrack_common.h.
const ipsDstNAT = 1 << 5

func (f *firewall) chain(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority, kind nftables.ChainType) *nftables.Chain {
	return f.conn.AddChain(&nftables.Chain{Name: name, Table: f.table, Type: kind, Hooknum: hook, Priority: priority})
}

func (f *firewall) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	f.conn.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: all})
}

// admit lets a host end send with its instance's address; expel takes that back.
func (f *firewall) admit(index int, addr netip.Addr) error {
	return f.change(index, addr, f.conn.SetAddElements)
}
func (f *firewall) expel(index int, addr netip.Addr) error {
	return f.change(index, addr, f.conn.SetDeleteElements)
}

func (f *firewall) change(index int, addr netip.Addr, do func(*nftables.Set, []nftables.SetElement) error) error {
	key := append(native(uint32(index)), addr.AsSlice()...)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := do(f.lines, []nftables.SetElement{{Key: key}}); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	return nil
}

func (f *firewall) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn.DelTable(f.table)
	err := f.conn.Flush()
	if errors.Is(err, unix.ENOENT) { // an operator has flushed all there was
		err = nil
	}
	return errors.Join(err, f.conn.CloseLasting())
}

// foreignDrops names chains of other tables that drop what is forwarded unless they know it: a rule of ours
// cannot overrule them.
func foreignDrops() (names []string) {
	conn, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil
	}
	for _, c := range chains {
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop &&
			(c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyINet) {
			names = append(names, c.Table.Name+" "+c.Name)
		}
	}
	return names
}

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// interfaceIs matches names that begin with the prefix.
func interfaceIs(key expr.MetaKey, prefix string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)}}
}

func stateHas(bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bits), Xor: native(0)},
		&expr.Cmp{Op: op, Register: 1, Data: native(0)},
	}
}

func notReply() []expr.Any {
	return stateHas(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, expr.CmpOpEq)
}

func isNew() []expr.Any { return stateHas(expr.CtStateBitNEW, expr.CmpOpNeq) }

func destinationIn(set *nftables.Set) []expr.Any    { return destination(set, false) }
func destinationNotIn(set *nftables.Set) []expr.Any { return destination(set, true) }

func destination(set *nftables.Set, invert bool) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: invert},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// refusals says at once that there is no way, so that a program need not wait for its time-out: to TCP by a reset,
// which the kernel sends as often as needed, to others by an ICMP message.
func (f *firewall) refusals() {
	refuse := f.conn.AddChain(&nftables.Chain{Name: refusing, Table: f.table})
	f.rule(refuse, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	})
	f.rule(refuse, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
}

const refusing = "refuse"

func reject() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: refusing}} }

// intervals are ranges as a set takes them: each begins, and ends before the next address.
func intervals(prefixes []netip.Prefix) (elements []nftables.SetElement) {
	for _, s := range merged(prefixes) {
		elements = append(elements, nftables.SetElement{Key: address(s.first).AsSlice()})
		if s.last != ^uint32(0) {
			elements = append(elements, nftables.SetElement{Key: address(s.last + 1).AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}
