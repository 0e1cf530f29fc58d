//go:build linux

package stage

import (
	"syscall"
	"unsafe"
)

// Everything in this file may run after a fork without exec. The rules, which raw_test.go checks:
// every function is nosplit (the stack cannot grow), free of the race detector's and checkptr's calls, and calls only functions of this file and
// raw system calls; nothing allocates; no pointer is stored (no write barrier): addresses are uintptr
// into variables of this package, which are never moved.

const (
	recvFlags     = 0x40000000 // MSG_CMSG_CLOEXEC
	sendFlags     = 0x4000     // MSG_NOSIGNAL
	clonePidfd    = 0x1000
	cloneNewPID   = 0x20000000
	cloneInto     = 0x200000000 // CLONE_INTO_CGROUP
	sysClone3     = 435
	sysCloseRange = 436
	sysClose      = syscall.SYS_CLOSE
	pollIn        = 1
	ctlHeader     = 16 // length of a cmsghdr
	noFD          = ^uintptr(0)
)

type iovec struct {
	base uintptr
	len  uint64
}

type msghdr struct {
	name       uintptr
	namelen    uint32
	_          uint32
	iov        uintptr
	iovlen     uint64
	control    uintptr
	controllen uint64
	flags      int32
	_          int32
}

type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

type pollFD struct {
	fd              int32
	events, revents int16
}

// inbox is the request being served and the descriptors that came with it.
type inbox struct {
	buf     [MaxMessage / 8]uint64
	control [(ctlHeader + 4*MaxFDs) / 8]uint64
	iov     iovec
	msg     msghdr
	fds     [MaxFDs]int32
	nfds    uintptr
	size    uintptr
}

// outbox is the report being sent.
type outbox struct {
	report  Report
	control [(ctlHeader + 4*4) / 8]uint64
	iov     iovec
	msg     msghdr
	fds     [4]int32
	nfds    uintptr
}

// A process of the stage does one thing at a time, has one thread that does it, and cannot allocate: so
// its state is here and not on a heap.
var (
	request inbox
	reply   outbox
	regs    [MaxRegs]uintptr
	clone   cloneArgs
	pidfd   int32
	allSigs = ^uint64(0)
	oldSigs uint64
	polls   [2]pollFD
	status  uint32
	sigInfo [128 / 8]uint64
	started bool
	forked  bool    // this process is a launcher by Fork: the Go runtime does not run in it
	program uintptr // the program's PID
	held    uint32  // the Hold it was started with
	gate    [2]int32
	born    [2]int32
	word    uint64
)

//go:nosplit
//go:norace
//go:nocheckptr
func (in *inbox) prepare() {
	in.iov.base = uintptr(unsafe.Pointer(&in.buf))
	in.iov.len = MaxMessage
	in.msg.iov = uintptr(unsafe.Pointer(&in.iov))
	in.msg.iovlen = 1
	in.msg.control = uintptr(unsafe.Pointer(&in.control))
	in.msg.controllen = uint64(unsafe.Sizeof(in.control))
	in.msg.flags = 0
	in.nfds = 0
}

// accept takes the descriptors out of the control data, checks the header and turns the relocated
// offsets into addresses. It reports whether the request is whole.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (in *inbox) accept(n uintptr) bool {
	in.size = n
	if in.msg.controllen > ctlHeader {
		length := uintptr(in.control[0])
		if length > uintptr(in.msg.controllen) {
			length = uintptr(in.msg.controllen)
		}
		for at := uintptr(ctlHeader); at+4 <= length && in.nfds < MaxFDs; at += 4 {
			in.fds[in.nfds] = *(*int32)(unsafe.Add(unsafe.Pointer(&in.control), at))
			in.nfds++
		}
	}
	h := in.header()
	if n < HeaderSize || h.Magic != Magic || uintptr(h.Size) != n || in.msg.flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 {
		return false
	}
	ops := uint64(h.Main) + uint64(h.Child) + uint64(h.After)
	if h.OpsOff%8 != 0 || uint64(h.OpsOff)+ops*OpSize > uint64(n) ||
		h.RelocOff%4 != 0 || uint64(h.RelocOff)+uint64(h.RelocLen)*4 > uint64(n) || h.SendLen > 4 {
		return false
	}
	base := unsafe.Pointer(&in.buf)
	for i := uintptr(0); i < uintptr(h.RelocLen); i++ {
		slot := uintptr(*(*uint32)(unsafe.Add(base, uintptr(h.RelocOff)+i*4)))
		if slot%8 != 0 || slot+8 > n {
			return false
		}
		p := (*uint64)(unsafe.Add(base, slot))
		if *p >= uint64(n) {
			return false
		}
		*p += uint64(uintptr(base))
	}
	return true
}

//go:nosplit
//go:norace
//go:nocheckptr
func (in *inbox) header() *Header {
	return (*Header)(unsafe.Pointer(&in.buf))
}

// clear closes the descriptors and wipes the bytes, so that nothing of one instance's environment is in
// the memory that the next one's PID 1 is forked from.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (in *inbox) clear() {
	for i := uintptr(0); i < in.nfds; i++ {
		call3(sysClose, uintptr(in.fds[i]), 0, 0)
	}
	for i := uintptr(0); i < (in.size+7)/8; i++ {
		in.buf[i] = 0
	}
	in.nfds = 0
	in.size = 0
}

// run performs count operations from the first on. It returns the index of the one that failed.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (in *inbox) run(first, count uint32) (uint32, uintptr) {
	ops := unsafe.Add(unsafe.Pointer(&in.buf), uintptr(in.header().OpsOff)+uintptr(first)*OpSize)
	for i := uint32(0); i < count; i++ {
		op := (*Op)(unsafe.Add(ops, uintptr(i)*OpSize))
		r, errno := call(uintptr(op.Nr), in.arg(op, 0), in.arg(op, 1), in.arg(op, 2), in.arg(op, 3), in.arg(op, 4), in.arg(op, 5))
		if errno == uintptr(syscall.EINTR) {
			i--
			continue
		}
		if errno != 0 && op.Ignore != AnyError && errno != uintptr(op.Ignore) {
			return i, errno
		}
		if op.Save != 0 && op.Save <= MaxRegs {
			regs[op.Save-1] = r
		}
	}
	return 0, 0
}

//go:nosplit
//go:norace
//go:nocheckptr
func (in *inbox) arg(op *Op, i uintptr) uintptr {
	v := uintptr(op.Arg[i])
	switch op.Kind[i] {
	case Data:
		if v < in.size {
			return uintptr(unsafe.Pointer(&in.buf)) + v
		}
		return 0
	case FD:
		if v < in.nfds {
			return uintptr(in.fds[v])
		}
		return noFD
	case Reg:
		if v < MaxRegs {
			return regs[v]
		}
		return noFD
	}
	return v
}

//go:nosplit
//go:norace
//go:nocheckptr
func (out *outbox) send(to uintptr, kind, a, errno, list uint32) {
	out.report.Kind, out.report.A, out.report.Errno, out.report.List = kind, a, errno, list
	out.iov.base = uintptr(unsafe.Pointer(&out.report))
	out.iov.len = ReportSize
	out.msg.iov = uintptr(unsafe.Pointer(&out.iov))
	out.msg.iovlen = 1
	out.msg.control, out.msg.controllen = 0, 0
	if out.nfds > 0 {
		length := uintptr(ctlHeader) + out.nfds*4
		out.control[0] = uint64(length)
		out.control[1] = uint64(syscall.SOL_SOCKET) | uint64(syscall.SCM_RIGHTS)<<32
		for i := uintptr(0); i < out.nfds; i++ {
			*(*int32)(unsafe.Add(unsafe.Pointer(&out.control), ctlHeader+i*4)) = out.fds[i]
		}
		out.msg.control = uintptr(unsafe.Pointer(&out.control))
		out.msg.controllen = uint64(length+7) &^ 7
		out.nfds = 0
	}
	call3(syscall.SYS_SENDMSG, to, uintptr(unsafe.Pointer(&out.msg)), sendFlags)
}

// serve is the launcher's answer to one request of n bytes.
//
//go:nosplit
//go:norace
//go:nocheckptr
func serve(n uintptr) {
	if !request.accept(n) {
		reply.send(ControlFD, Failed, 1, uint32(syscall.EBADMSG), ListStage)
		request.clear()
		return
	}
	h := request.header()
	switch h.Kind {
	case Setup:
		setup(h)
	case Spawn, Fork:
		spawn(h)
	}
	request.clear()
}

// serveForked is the life of a launcher by Fork.
//
//go:nosplit
//go:norace
//go:nocheckptr
func serveForked() {
	for {
		request.prepare()
		n, errno := call3(syscall.SYS_RECVMSG, ControlFD, uintptr(unsafe.Pointer(&request.msg)), recvFlags)
		if errno == uintptr(syscall.EINTR) {
			continue
		}
		if errno != 0 || n == 0 {
			exit(0)
		}
		serve(n)
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func setup(h *Header) {
	for i := uintptr(0); i < uintptr(h.SendLen); i++ {
		if r := uintptr(h.Send[i]); r < MaxRegs {
			regs[r] = noFD
		}
	}
	if at, errno := request.run(0, h.Main); errno != 0 {
		reply.send(ControlFD, Failed, at, uint32(errno), ListMain)
	} else {
		attach(h)
		reply.send(ControlFD, Done, 0, 0, 0)
	}
	for i := uintptr(0); i < uintptr(h.SendLen); i++ {
		if r := uintptr(h.Send[i]); r < MaxRegs && regs[r] != noFD {
			call3(sysClose, regs[r], 0, 0)
		}
	}
}

// spawn forks. In a launcher by Fork it returns as well.
//
//go:nosplit
//go:norace
//go:nocheckptr
func spawn(h *Header) {
	if request.nfds < 1 {
		return
	}
	control := uintptr(request.fds[0])
	clone.flags = cloneNewPID | clonePidfd
	if h.Kind == Fork {
		clone.flags = uint64(h.Flags) | clonePidfd
	}
	clone.pidfd = uint64(uintptr(unsafe.Pointer(&pidfd)))
	clone.exitSignal = uint64(syscall.SIGCHLD)
	clone.cgroup = 0
	if h.IntoCgroup == 1 && request.nfds > 1 {
		clone.flags |= cloneInto
		clone.cgroup = uint64(request.fds[1])
	}
	// No handler of the Go runtime may run in the child: it has no scheduler.
	sigmask(&allSigs, &oldSigs)
	pid, errno := call3(sysClone3, uintptr(unsafe.Pointer(&clone)), unsafe.Sizeof(clone), 0)
	if errno == 0 && pid == 0 {
		if h.Kind == Fork {
			if _, errno := call3(syscall.SYS_DUP3, control, ControlFD, syscall.O_CLOEXEC); errno != 0 {
				exit(1)
			}
			forked = true
			return
		}
		first(control)
	}
	sigmask(&oldSigs, nil)
	if errno != 0 {
		reply.send(control, Failed, 2, uint32(errno), ListStage)
		return
	}
	reply.fds[0], reply.nfds = pidfd, 1
	reply.send(control, Spawned, uint32(pid), 0, 0)
	call3(sysClose, uintptr(pidfd), 0, 0)
}

// first is PID 1 of an instance: it does what it is told, starts the program, and then waits for the
// program to end or the worker to go away. It never returns: its end is the end of every process of the
// instance.
//
//go:nosplit
//go:norace
//go:nocheckptr
func first(control uintptr) {
	// The launcher's socket is replaced, so that no instance holds it.
	if _, errno := call3(syscall.SYS_DUP3, control, ControlFD, syscall.O_CLOEXEC); errno != 0 {
		exit(1)
	}
	for {
		obey(request.header())
		if started {
			supervise()
		}
		request.clear()
		request.prepare()
		if program != 0 {
			attend()
		}
		n, errno := call3(syscall.SYS_RECVMSG, ControlFD, uintptr(unsafe.Pointer(&request.msg)), recvFlags)
		if errno == uintptr(syscall.EINTR) {
			continue
		}
		if errno != 0 || n == 0 {
			exit(0)
		}
		if !request.accept(n) {
			reply.send(ControlFD, Failed, 1, uint32(syscall.EBADMSG), ListStage)
			exit(1)
		}
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func obey(h *Header) {
	if at, errno := request.run(0, h.Main); errno != 0 {
		reply.send(ControlFD, Failed, at, uint32(errno), h.Kind<<8|ListMain)
		exit(1)
	}
	if h.Child == 0 {
		if program != 0 { // held until now
			if held == HoldChild {
				awaitExec()
			}
			reply.send(ControlFD, Started, uint32(program), 0, 0)
			started = true
			return
		}
		return
	}
	// The child makes itself ready while this process gives up what it is, and executes its program only when
	// that is done: no program ever runs beside a PID 1 with any right. The second pipe is closed by the
	// execution, or by the child's end.
	if !pipe(&gate) || !pipe(&born) {
		exit(1)
	}
	pid, errno := call3(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0)
	if errno == 0 && pid == 0 {
		become(h)
	}
	if errno != 0 {
		reply.send(ControlFD, Failed, 2, uint32(errno), h.Kind<<8|ListStage)
		exit(1)
	}
	program = pid
	if at, errno := request.run(h.Main+h.Child, h.After); errno != 0 {
		reply.send(ControlFD, Failed, at, uint32(errno), h.Kind<<8|ListAfter)
		exit(1)
	}
	call3(sysClose, uintptr(born[1]), 0, 0)
	call3(syscall.SYS_WRITE, uintptr(gate[1]), uintptr(unsafe.Pointer(&word)), 1)
	call3(sysClose, uintptr(gate[0]), 0, 0)
	call3(sysClose, uintptr(gate[1]), 0, 0)
	held = h.Hold
	if held != HoldChild {
		awaitExec()
	}
	attach(h)
	reply.send(ControlFD, Started, uint32(pid), 0, 0)
	started = held == 0
}

// awaitExec waits until the child has executed its program, or ended.
//
//go:nosplit
//go:norace
//go:nocheckptr
func awaitExec() {
	for {
		if _, errno := call3(syscall.SYS_READ, uintptr(born[0]), uintptr(unsafe.Pointer(&word)), 1); errno != uintptr(syscall.EINTR) {
			break
		}
	}
	call3(sysClose, uintptr(born[0]), 0, 0)
}

// become is the child: its last operation executes the program, and waits for PID 1's word.
//
//go:nosplit
//go:norace
//go:nocheckptr
func become(h *Header) {
	call3(sysClose, uintptr(gate[1]), 0, 0)
	if h.Hold == HoldChild {
		at, errno := request.run(h.Main, h.Child)
		if errno == 0 {
			obeyExec()
		}
		reply.send(ControlFD, Failed, at, uint32(errno), h.Kind<<8|ListChild)
		exit(127)
	}
	at, errno := request.run(h.Main, h.Child-1)
	if errno == 0 {
		for {
			n, errno := call3(syscall.SYS_READ, uintptr(gate[0]), uintptr(unsafe.Pointer(&word)), 1)
			if errno == uintptr(syscall.EINTR) {
				continue
			}
			if n != 1 {
				exit(127) // PID 1 is gone, and has said why
			}
			break
		}
		at = h.Child - 1
		_, errno = request.run(h.Main+at, 1)
	}
	reply.send(ControlFD, Failed, at, uint32(errno), h.Kind<<8|ListChild)
	exit(127)
}

// obeyExec waits for the one request that a held child gets. The end of its socket is the end of the child.
//
//go:nosplit
//go:norace
//go:nocheckptr
func obeyExec() {
	for {
		request.clear()
		request.prepare()
		n, errno := call3(syscall.SYS_RECVMSG, 0, uintptr(unsafe.Pointer(&request.msg)), recvFlags)
		if errno == uintptr(syscall.EINTR) {
			continue
		}
		if errno != 0 || n == 0 {
			exit(0)
		}
		if !request.accept(n) || request.header().Kind != Exec {
			reply.send(ControlFD, Failed, 1, uint32(syscall.EBADMSG), ListStage)
			exit(127)
		}
		at, errno := request.run(0, request.header().Main)
		reply.send(ControlFD, Failed, at, uint32(errno), Exec<<8|ListMain)
		exit(127)
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func pipe(ends *[2]int32) bool {
	_, errno := call3(syscall.SYS_PIPE2, uintptr(unsafe.Pointer(ends)), syscall.O_CLOEXEC, 0)
	return errno == 0
}

// attach puts the descriptors that the request asked for into the next report.
//
//go:nosplit
//go:norace
//go:nocheckptr
func attach(h *Header) {
	for i := uintptr(0); i < uintptr(h.SendLen); i++ {
		if r := uintptr(h.Send[i]); r < MaxRegs {
			reply.fds[i] = int32(regs[r])
			reply.nfds = i + 1
		}
	}
}

// supervise gives up every descriptor that is not needed and waits for the end.
//
//go:nosplit
//go:norace
//go:nocheckptr
func supervise() {
	request.clear()
	signals := regs[SignalReg]
	call3(sysCloseRange, 0, ControlFD-1, 0)
	if signals > ControlFD+1 {
		call3(sysCloseRange, ControlFD+1, signals-1, 0)
	}
	call3(sysCloseRange, signals+1, 0xffffffff, 0)
	attend()
	exit(0) // nobody speaks to a supervising PID 1: the worker is gone
}

// attend waits for word on the control socket. Meanwhile it reaps what was orphaned; at the program's end it
// reports it and ends.
//
//go:nosplit
//go:norace
//go:nocheckptr
func attend() {
	polls[0].fd, polls[0].events = ControlFD, pollIn
	polls[1].fd, polls[1].events = int32(regs[SignalReg]), pollIn
	for {
		for {
			pid, errno := call4(syscall.SYS_WAIT4, noFD, uintptr(unsafe.Pointer(&status)), syscall.WNOHANG, 0)
			if errno == uintptr(syscall.EINTR) {
				continue
			}
			if errno != 0 || pid == 0 {
				break
			}
			if pid == program {
				reply.send(ControlFD, Exited, status, 0, 0)
				exit(0)
			}
		}
		polls[0].revents, polls[1].revents = 0, 0
		call(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&polls)), 2, 0, 0, 0, 0)
		if polls[0].revents != 0 {
			return
		}
		if polls[1].revents != 0 {
			call3(syscall.SYS_READ, uintptr(polls[1].fd), uintptr(unsafe.Pointer(&sigInfo)), unsafe.Sizeof(sigInfo))
		}
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func sigmask(set, old *uint64) {
	const setMask = 2
	call4(syscall.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8)
}

//go:nosplit
//go:norace
//go:nocheckptr
func exit(code uintptr) {
	for {
		call3(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func call3(nr, a, b, c uintptr) (uintptr, uintptr) {
	r, _, errno := syscall.RawSyscall(nr, a, b, c)
	return r, uintptr(errno)
}

//go:nosplit
//go:norace
//go:nocheckptr
func call4(nr, a, b, c, d uintptr) (uintptr, uintptr) {
	r, _, errno := syscall.RawSyscall6(nr, a, b, c, d, 0, 0)
	return r, uintptr(errno)
}

//go:nosplit
//go:norace
//go:nocheckptr
func call(nr, a, b, c, d, e, f uintptr) (uintptr, uintptr) {
	r, _, errno := syscall.RawSyscall6(nr, a, b, c, d, e, f)
	return r, uintptr(errno)
}
