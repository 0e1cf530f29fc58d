//go:build linux

package linux

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// A program is a list of system calls for the stage, the bytes they point at and the descriptors they
// use. It is written once and sent once.
type program struct {
	kind   uint32
	lists  [3][]stage.Op
	names  [3][]string // what each operation is for, for the error text
	blob   []byte      // begins with room for the header, so that its offsets are those of the request
	relocs []uint32
	fds    []int
	send   []uint8
	into   bool
	hold   uint32
	flags  uint32
	list   int // the list that call appends to
}

// arg is one argument of a system call.
type arg struct {
	kind  uint8
	value uint64
}

func newProgram(kind uint32) *program {
	return &program{kind: kind, blob: make([]byte, stage.HeaderSize, 4096)}
}

func imm[T ~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~uintptr](v T) arg {
	return arg{stage.Imm, uint64(v)}
}

func reg(i uint8) arg { return arg{stage.Reg, uint64(i)} }

// data puts b, aligned to 8 bytes, into the request.
func (p *program) data(b []byte) arg {
	for len(p.blob)%8 != 0 {
		p.blob = append(p.blob, 0)
	}
	at := len(p.blob)
	p.blob = append(p.blob, b...)
	return arg{stage.Data, uint64(at)}
}

// str puts s, ended by a zero byte, into the request.
func (p *program) str(s string) arg {
	at := len(p.blob)
	p.blob = append(p.blob, s...)
	p.blob = append(p.blob, 0)
	return arg{stage.Data, uint64(at)}
}

// strs puts a list of strings and the array of their addresses into the request.
func (p *program) strs(list []string) arg {
	at := make([]arg, len(list))
	for i, s := range list {
		at[i] = p.str(s)
	}
	array := p.data(make([]byte, 8*(len(list)+1)))
	for i, a := range at {
		p.point(array.value+uint64(i)*8, a)
	}
	return array
}

// point makes the 8 bytes at the offset slot the address of target.
func (p *program) point(slot uint64, target arg) {
	*(*uint64)(unsafe.Pointer(&p.blob[slot])) = target.value
	p.relocs = append(p.relocs, uint32(slot))
}

// fd lets the descriptor ride with the request. It stays the caller's.
func (p *program) fd(fd int) arg {
	p.fds = append(p.fds, fd)
	return arg{stage.FD, uint64(len(p.fds) - 1)}
}

// call appends one system call. name says what it is for.
func (p *program) call(name string, nr uintptr, args ...arg) *stage.Op {
	op := stage.Op{Nr: uint32(nr)}
	for i, a := range args {
		op.Kind[i], op.Arg[i] = a.kind, a.value
	}
	p.lists[p.list] = append(p.lists[p.list], op)
	p.names[p.list] = append(p.names[p.list], name)
	return &p.lists[p.list][len(p.lists[p.list])-1]
}

var errTooLong = errors.New("the arguments, the environment and the paths are too long together")

// encode gives the bytes of the request.
func (p *program) encode() ([]byte, error) {
	total := len(p.lists[0]) + len(p.lists[1]) + len(p.lists[2])
	if size := len(p.blob) + 16 + 4*len(p.relocs) + total*stage.OpSize; size > stage.MaxMessage {
		return nil, fmt.Errorf("%w: %d bytes, %d are the most", errTooLong, size, stage.MaxMessage)
	}
	if len(p.fds) > stage.MaxFDs {
		return nil, fmt.Errorf("%d mounts and descriptors, %d are the most", len(p.fds), stage.MaxFDs)
	}
	h := stage.Header{
		Magic: stage.Magic, Kind: p.kind,
		Main: uint32(len(p.lists[0])), Child: uint32(len(p.lists[1])), After: uint32(len(p.lists[2])),
		RelocLen: uint32(len(p.relocs)), SendLen: uint32(len(p.send)),
	}
	copy(h.Send[:], p.send)
	if p.into {
		h.IntoCgroup = 1
	}
	h.Hold, h.Flags = p.hold, p.flags
	h.RelocOff = uint32(p.data(nil).value)
	for _, r := range p.relocs {
		p.blob = append(p.blob, unsafe.Slice((*byte)(unsafe.Pointer(&r)), 4)...)
	}
	h.OpsOff = uint32(p.data(nil).value)
	for i := range p.lists {
		for j := range p.lists[i] {
			p.blob = append(p.blob, unsafe.Slice((*byte)(unsafe.Pointer(&p.lists[i][j])), stage.OpSize)...)
		}
	}
	h.Size = uint32(len(p.blob))
	copy(p.blob, unsafe.Slice((*byte)(unsafe.Pointer(&h)), stage.HeaderSize))
	return p.blob, nil
}

// failure words a Failed report about this program.
func (p *program) failure(r stage.Report) error {
	errno := unix.Errno(r.Errno)
	list := r.List & 0xff
	if list == stage.ListStage {
		if r.A == 2 {
			return fmt.Errorf("clone: %w", errno)
		}
		return fmt.Errorf("stage: request refused: %w", errno)
	}
	if int(list) < len(p.names) && int(r.A) < len(p.names[list]) {
		return fmt.Errorf("%s: %w", p.names[list][r.A], errno)
	}
	return fmt.Errorf("stage: step %d: %w", r.A, errno)
}
