package control

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quietFor is how long nobody may wait to be accepted until a listener can be closed, and quietLimit
	// bounds the wait for that.
	quietFor   = 20 * time.Millisecond
	quietLimit = 200 * time.Millisecond
	quietLook  = 2 * time.Millisecond
)

// noNewConnections is a socket filter: a segment with SYN and without ACK is dropped, all else passes.
var noNewConnections = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13}, // TCP's flags
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0x12},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0x02, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
}

// quiesce has listeners take no more connections, and returns when those that were made are accepted. To close
// one as it is would reset the connections that wait in its queue, whose clients may have sent a request
// already. Who tries meanwhile hears nothing, tries again and is refused. It does what it can: a listener
// that cannot be filtered is left as it is.
func quiesce(listeners ...net.Listener) {
	for _, l := range listeners {
		if raw := rawOf(l); raw != nil {
			_ = raw.Control(func(fd uintptr) {
				program := unix.SockFprog{Len: uint16(len(noNewConnections)), Filter: &noNewConnections[0]}
				_ = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
			})
		}
	}
	limit, quiet := time.Now().Add(quietLimit), time.Now()
	for time.Since(quiet) < quietFor && time.Now().Before(limit) {
		for _, l := range listeners {
			if waiting(l) {
				quiet = time.Now()
			}
		}
		time.Sleep(quietLook)
	}
}

// waiting says whether connections wait to be accepted.
func waiting(l net.Listener) (some bool) {
	if raw := rawOf(l); raw != nil {
		_ = raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			some = err == nil && info.Unacked > 0 // of a listener: the length of its queue
		})
	}
	return some
}

func rawOf(l net.Listener) syscall.RawConn {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
