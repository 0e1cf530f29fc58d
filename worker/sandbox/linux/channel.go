//go:build linux

package linux

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// channel is the worker's end of a control socket.
type channel struct {
	file *os.File
	raw  syscall.RawConn
	buf  [stage.ReportSize]byte
	oob  []byte
}

// newChannel gives the worker's end, and the other one as a bare descriptor.
func newChannel() (*channel, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("control socket: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, -1, fmt.Errorf("control socket: %w", err)
	}
	file := os.NewFile(uintptr(fds[0]), "control")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		unix.Close(fds[1])
		return nil, -1, fmt.Errorf("control socket: %w", err)
	}
	return &channel{file: file, raw: raw, oob: make([]byte, unix.CmsgSpace(4*4))}, fds[1], nil
}

// send hands one request and its descriptors over.
func (c *channel) send(p *program) error {
	b, err := p.encode()
	if err != nil {
		return err
	}
	var rights []byte
	if len(p.fds) > 0 {
		rights = unix.UnixRights(p.fds...)
	}
	var sent error
	err = c.raw.Write(func(fd uintptr) bool {
		for {
			sent = unix.Sendmsg(int(fd), b, rights, nil, unix.MSG_NOSIGNAL)
			if sent != unix.EINTR {
				return sent != unix.EAGAIN
			}
		}
	})
	return errors.Join(err, sent)
}

// receive waits for one report. Its descriptors are the caller's. io.EOF says that the other side
// is gone.
func (c *channel) receive() (report stage.Report, fds []int, err error) {
	var n, oobn int
	var got error
	err = c.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, got = unix.Recvmsg(int(fd), c.buf[:], c.oob, unix.MSG_CMSG_CLOEXEC)
			// The kernel says once that the other side ended before it read all that was sent to it, ahead of what
			// that side has reported.
			if got != unix.EINTR && got != unix.ECONNRESET {
				return got != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = got
	}
	if err != nil {
		return report, nil, err
	}
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(c.oob[:oobn])
		if err != nil {
			return report, nil, fmt.Errorf("control socket: %w", err)
		}
		for i := range messages {
			if more, err := unix.ParseUnixRights(&messages[i]); err == nil {
				fds = append(fds, more...)
			}
		}
	}
	if n == 0 {
		return report, fds, io.EOF
	}
	if n != stage.ReportSize {
		closeAll(fds)
		return report, nil, fmt.Errorf("control socket: a report of %d bytes", n)
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&report)), stage.ReportSize), c.buf[:])
	return report, fds, nil
}

// interrupt makes a waiting and every later receive return os.ErrDeadlineExceeded.
func (c *channel) interrupt() { c.file.SetReadDeadline(time.Unix(1, 0)) }

func (c *channel) close() { c.file.Close() }

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// patient takes back an interrupt, and bounds what is waited for by what a healthy machine needs.
func (c *channel) patient() { c.file.SetReadDeadline(time.Now().Add(sandbox.KillGrace)) }
