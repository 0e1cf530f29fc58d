//go:build linux

package linux

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// output is the read end of the pipe that is an instance's stdout and stderr.
type output struct {
	file *os.File
	raw  syscall.RawConn
}

func newOutput(fd int) (*output, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("output pipe", err)
	}
	f := os.NewFile(uintptr(fd), "output")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &output{file: f, raw: raw}, nil
}

// Read implements io.Reader. At the end it gives the pipe back.
func (o *output) Read(b []byte) (int, error) {
	n, err := o.file.Read(b)
	if err != nil && len(b) > 0 {
		o.file.Close()
		err = io.EOF // a pipe that was closed here has nothing more either
	}
	return n, err
}

// Buffered implements sandbox.Output.
func (o *output) Buffered() (n int, err error) {
	var got error
	err = o.raw.Control(func(fd uintptr) { n, got = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		return 0, nil // closed: everything has been read
	}
	return n, got
}

func (o *output) close() { o.file.Close() }

// SyscallConn implements syscall.Conn: with it the caller can read what there is without waiting.
func (o *output) SyscallConn() (syscall.RawConn, error) { return o.raw, nil }
