package nodetls

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Only those with the right certificates come out of a listener; others, and those who say nothing, hold up
// nobody.
func TestListen(t *testing.T) {
	c := newCluster(t)
	control, worker := c.node(Control, "c"), c.node(Worker, "w")
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	l := control.Listen(inner, slog.New(slog.NewTextHandler(&log, nil)), Control)
	address := l.Addr().String()
	var silent []net.Conn
	for range maxHandshakes - 1 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, conn)
	}
	refused, err := tls.Dial("tcp", address, worker.Client(Control))
	if err == nil {
		// In TLS 1.3 a server's refusal comes with the first byte.
		_, err = io.ReadFull(refused, make([]byte, 1))
		_ = refused.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("a worker: %v", err)
	}
	go func() {
		conn, err := tls.Dial("tcp", address, c.node(Control, "c2").Client(Control))
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = conn.Write([]byte("x"))
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if peer, err := Peer(conn.(*tls.Conn).ConnectionState()); err != nil || peer != (Identity{Control, "c2"}) {
		t.Errorf("%v, %v", peer, err)
	}
	_ = conn.Close()
	begun := time.Now()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > handshakeLimit/2 {
		t.Errorf("closing waited %v for those who say nothing", took)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepted after the end: %v", err)
	}
	for _, conn := range silent {
		_ = conn.Close()
	}
	if !strings.Contains(log.String(), "doze://worker/w may not connect here") {
		t.Errorf("the log says %s", log.String())
	}
}

// A node's folder is whole, and is not overwritten unasked.
func TestFolder(t *testing.T) {
	c := newCluster(t)
	dir := filepath.Join(t.TempDir(), "w1")
	if err := c.issue(Worker, "w1", year).WriteDir(dir, c.dir, false); err != nil {
		t.Fatal(err)
	}
	n, err := LoadDir(dir, nil)
	if err != nil || n.Identity() != (Identity{Worker, "w1"}) {
		t.Fatalf("%v, %v", n, err)
	}
	own, err := LoadGossipKey(dir)
	if err != nil || len(own) != gossipBytes {
		t.Fatalf("%d bytes, %v", len(own), err)
	}
	if theirs, err := LoadGossipKey(newCluster(t).dir); err != nil || string(theirs) == string(own) {
		t.Errorf("two clusters have one key (%v)", err)
	}
	if err := c.issue(Worker, "w1", year).WriteDir(dir, c.dir, false); err == nil {
		t.Error("overwritten unasked")
	}
	if err := c.issue(Worker, "w1", 2*year).WriteDir(dir, c.dir, true); err != nil {
		t.Error(err)
	}
	if _, err := LoadDir(t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "doze ca issue") {
		t.Errorf("an empty folder: %v", err)
	}
}
