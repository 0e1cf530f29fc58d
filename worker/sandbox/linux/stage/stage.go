//go:build linux

// Package stage is what runs between the worker and an instance's program: the launcher and each
// instance's PID 1.
//
// The launcher is this same binary, executed once per sandbox and taken over in init, before the
// packages of the rest of the binary have built anything. It stays small and idle, and forks one PID 1
// for each instance. A PID 1 is that fork, without another exec: no Go runtime starts, and it shares
// the launcher's memory until it writes to it, so it costs some tens of kilobytes and a fraction of a
// millisecond. In return, code that runs after the fork must not touch the Go runtime: no allocation,
// no stack growth, no scheduler, only system calls. That code is in raw.go, and a test reads it to
// hold it to that.
//
// A launcher can also fork another launcher: the way into a user namespace, which a process of several threads,
// as every Go process is, cannot enter itself.
//
// The stage has no opinion. A request is a list of system calls; package linux writes the lists and
// knows why. This package must not know what a mount, a cgroup or an instance is.
package stage

import (
	"os"
	"syscall"
	"unsafe"
)

func init() {
	if len(os.Args) != 1 || os.Args[0] != Marker || !isControlSocket() {
		return
	}
	launch()
}

// isControlSocket tells whether descriptor 3 is a unix SEQPACKET socket.
func isControlSocket() bool {
	domain, err := syscall.GetsockoptInt(ControlFD, syscall.SOL_SOCKET, syscall.SO_DOMAIN)
	if err != nil || domain != syscall.AF_UNIX {
		return false
	}
	kind, err := syscall.GetsockoptInt(ControlFD, syscall.SOL_SOCKET, syscall.SO_TYPE)
	return err == nil && kind == syscall.SOCK_SEQPACKET
}

// launch serves requests until the worker closes its end of the socket or dies. init runs on the main
// thread and holds it, so the thread that forks is the one that lives as long as the process: what
// PR_SET_PDEATHSIG needs.
func launch() {
	syscall.CloseOnExec(ControlFD)
	for {
		request.prepare()
		// Not a raw call: while it blocks, the runtime's monitor must know, or it would wake up
		// a hundred times a second to look after this goroutine.
		n, _, errno := syscall.Syscall6(syscall.SYS_RECVMSG, ControlFD, uintptr(unsafe.Pointer(&request.msg)), recvFlags, 0, 0, 0)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			syscall.Exit(0)
		}
		serve(n)
		if forked {
			serveForked()
		}
	}
}
