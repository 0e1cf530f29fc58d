package instance

import (
	"net"
	"testing"
	"time"
)

// A request that lies unread for a while is known to have.
func TestUnread(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c := &conn{raw: rawConn(server)}
	c.look = func(fd uintptr) { c.late = sinceReceived(fd) }
	before := time.Now()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	const lies, tick = 100 * time.Millisecond, 10 * time.Millisecond
	time.Sleep(lies)
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if got, most := c.unread(), time.Since(before); got < lies-tick || got > most+tick {
		t.Errorf("unread for %v, want about %v and at most %v", got, lies, most)
	}
	if none := (&conn{}).unread(); none != 0 {
		t.Errorf("without a socket: %v", none)
	}
}
