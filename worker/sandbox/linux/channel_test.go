//go:build linux

package linux

import (
	"errors"
	"io"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// What the other side reported before it ended is received, although it had not read all that was sent to it.
func TestLastReportIsReceived(t *testing.T) {
	c, other, err := newChannel()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.send(&program{blob: make([]byte, 64)}); err != nil {
		t.Fatal(err)
	}
	said := stage.Report{Kind: stage.Failed, Errno: uint32(unix.EPERM)}
	if _, err := unix.Write(other, unsafe.Slice((*byte)(unsafe.Pointer(&said)), stage.ReportSize)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(other); err != nil {
		t.Fatal(err)
	}
	report, fds, err := c.receive()
	if err != nil || report != said || len(fds) > 0 {
		t.Errorf("received %+v, %v, %v", report, fds, err)
	}
	if _, _, err := c.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last: %v", err)
	}
}
