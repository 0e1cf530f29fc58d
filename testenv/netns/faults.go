//go:build linux

package netns

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// uplink is the name of a host's one link.
const uplink = "eth0"

// Refuse drops what comes from another host, silently, as a cut cable would: it is one way of a partition.
func (h *Host) Refuse(others ...*Host) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range others {
		h.refused[o.Addr] = true
	}
	return h.filter()
}

// Accept ends Refuse.
func (h *Host) Accept(others ...*Host) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range others {
		delete(h.refused, o.Addr)
	}
	return h.filter()
}

// Lose drops at random so many of a thousand packets that come to the host; 0 ends it.
func (h *Host) Lose(perMille int) error {
	if perMille < 0 || perMille > 1000 {
		return fmt.Errorf("%d of a thousand packets cannot be lost", perMille)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.loss = perMille
	return h.filter()
}

// filter writes the host's one table anew. Packets are dropped where they come in: a drop where they go out is an
// error to who sends them, which no broken line gives.
func (h *Host) filter() error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(h.ns.Fd())))
	if err != nil {
		return fmt.Errorf("nf_tables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "faults"}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	for addr := range h.refused {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr.AsSlice()},
			drop,
		}})
	}
	if h.loss > 0 {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(fromOutside(), []expr.Any{
			&expr.Numgen{Register: 1, Modulus: 1000, Type: unix.NFT_NG_RANDOM},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, uint32(h.loss))},
			drop,
		})})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nf_tables on %s: %w", h.Name, err)
	}
	return nil
}

func fromOutside() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, uplink)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}}
}

// Limit lets so many bytes a second leave the host, in bursts of 16 KB, and drops what would wait for more than
// about 64 KB; 0 ends it.
func (h *Host) Limit(bytesPerSecond uint64) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		at := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
		const burst, queue = 16 << 10, 64 << 10
		tbf := &netlink.Tbf{QdiscAttrs: at, Rate: bytesPerSecond, Limit: queue}
		if bytesPerSecond == 0 {
			list, err := netlink.QdiscList(link)
			if err != nil {
				return err
			}
			for _, q := range list {
				if q.Type() == "tbf" {
					return netlink.QdiscDel(q)
				}
			}
			return nil
		}
		tbf.Buffer = netlink.Xmittime(bytesPerSecond, burst)
		if err := netlink.QdiscReplace(tbf); err != nil {
			return fmt.Errorf("tbf on %s: %w", h.Name, err)
		}
		return nil
	})
}

// Heal ends every fault of the host.
func (h *Host) Heal() error {
	h.mu.Lock()
	clear(h.refused)
	h.loss = 0
	err := h.filter()
	h.mu.Unlock()
	if err != nil {
		return err
	}
	return h.Limit(0)
}
