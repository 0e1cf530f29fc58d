package instance

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sinceReceived is how long ago a TCP socket last received data, in the kernel's ticks; 0 where that cannot be told.
func sinceReceived(fd uintptr) time.Duration {
	// Not GetsockoptTCPInfo, which allocates, and all of it.
	var info unix.TCPInfo
	size := uint32(unsafe.Offsetof(info.Last_data_recv) + unsafe.Sizeof(info.Last_data_recv))
	whole := size
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || size < whole {
		return 0
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond
}
