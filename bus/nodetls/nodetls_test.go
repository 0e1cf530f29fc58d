package nodetls

import (
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const year = 365 * 24 * time.Hour

type cluster struct {
	t   *testing.T
	dir string
	ca  *Authority
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "ca")}
	err := CreateAuthority(c.dir, "test", 10*year)
	if err == nil {
		c.ca, err = OpenAuthority(c.dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) issue(role Role, name string, validity time.Duration) *Issued {
	c.t.Helper()
	issued, err := c.ca.Issue(Identity{role, name}, []string{"127.0.0.1", "node.example"}, validity)
	if err != nil {
		c.t.Fatal(err)
	}
	return issued
}

func (c *cluster) node(role Role, name string) *Node {
	c.t.Helper()
	if err := c.issue(role, name, year).Write(c.file(name+".pem"), false); err != nil {
		c.t.Fatal(err)
	}
	n, err := Load(c.file(name+".pem"), c.file(CertFile))
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// meet connects two sides over TCP and answers what each of them says.
func meet(t *testing.T, server, client *tls.Config) (atServer, atClient error, saw tls.ConnectionState) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	var state tls.ConnectionState
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		err = conn.Handshake()
		if err == nil {
			state = conn.ConnectionState()
			_, err = conn.Write([]byte("x"))
		}
		done <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		defer conn.Close()
		// In TLS 1.3 a server's refusal comes with the first byte.
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	return <-done, err, state
}

func TestNodesKnowEachOther(t *testing.T) {
	c := newCluster(t)
	control, worker, client := c.node(Control, "control-1"), c.node(Worker, "w.1"), c.node(Client, "ops")
	s, cl, state := meet(t, control.Server(Control, Worker), worker.Client(Control))
	if s != nil || cl != nil {
		t.Fatalf("server: %v, client: %v", s, cl)
	}
	if peer, err := Peer(state); err != nil || peer != (Identity{Worker, "w.1"}) || peer.String() != "doze://worker/w.1" {
		t.Errorf("server saw %v, %v", peer, err)
	}
	stranger := newCluster(t).node(Control, "control-1")
	for name, pair := range map[string][2]*tls.Config{
		"a role that may not come":       {control.Server(Control), worker.Client(Control)},
		"a client's role as a worker":    {control.Server(Worker), client.Client(Control)},
		"nobody may come":                {control.Server(), worker.Client(Control)},
		"no certificate":                 {control.Server(Worker), {InsecureSkipVerify: true}},
		"another authority's node comes": {control.Server(Control), stranger.Client(Control)},
		"another authority's node":       {stranger.Server(Control, Worker), worker.Client(Control)},
		"a worker for a control node":    {worker.Server(Control), control.Client(Control)},
		"a client's certificate serves":  {client.Server(Control), control.Client(Client)},
		"TLS 1.2":                        {control.Server(Worker), old(worker.Client(Control))},
	} {
		if s, cl, _ := meet(t, pair[0], pair[1]); s == nil || cl == nil {
			t.Errorf("%s: server %v, client %v", name, s, cl)
		}
	}
}

func old(c *tls.Config) *tls.Config {
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	return c
}

// A certificate is renewed under a running node; a bad file leaves the old one in use.
func TestRenew(t *testing.T) {
	c := newCluster(t)
	control, worker := c.node(Control, "c"), c.node(Worker, "w")
	again := func() { control.mu.Lock(); control.looked = time.Time{}; control.mu.Unlock() }
	before := control.current().cert.Leaf.SerialNumber
	issued := c.issue(Control, "c", 2*year)
	if err := issued.Write(c.file("c.pem"), false); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("overwritten unasked: %v", err)
	}
	if err := issued.Write(c.file("c.pem"), true); err != nil {
		t.Fatal(err)
	}
	again()
	s, cl, _ := meet(t, control.Server(Worker), worker.Client(Control))
	if s != nil || cl != nil || control.current().cert.Leaf.SerialNumber.Cmp(before) == 0 || control.Err() != nil {
		t.Fatalf("renewed: %v, %v, %v", s, cl, control.Err())
	}
	if err := os.WriteFile(c.file("c.pem"), []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	again()
	if s, cl, _ := meet(t, control.Server(Worker), worker.Client(Control)); s != nil || cl != nil || control.Err() == nil {
		t.Fatalf("with a bad file: %v, %v, %v", s, cl, control.Err())
	}
	// The authority is replaced in steps: first both, then only the new one.
	next := newCluster(t)
	both, err := os.ReadFile(c.file(CertFile))
	if err == nil {
		var text []byte
		text, err = os.ReadFile(next.file(CertFile))
		both = append(both, text...)
	}
	if err = errors.Join(err, issued.Write(c.file("c.pem"), true), os.WriteFile(c.file(CertFile), both, 0o644)); err != nil {
		t.Fatal(err)
	}
	again()
	if s, cl, _ := meet(t, control.Server(Worker), worker.Client(Control)); s != nil || cl != nil {
		t.Fatalf("old authority of two: %v, %v", s, cl)
	}
	newcomer := next.node(Worker, "w2")
	newcomer.caFile = c.file(CertFile)
	newcomer.looked = time.Time{}
	if s, cl, _ := meet(t, control.Server(Worker), newcomer.Client(Control)); s != nil || cl != nil {
		t.Fatalf("new authority of two: %v, %v", s, cl)
	}
}

func TestExpired(t *testing.T) {
	c := newCluster(t)
	if err := c.issue(Worker, "w", -time.Minute).Write(c.file("w.pem"), false); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(c.file("w.pem"), c.file(CertFile)); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Fatal(err)
	}
	if until := c.issue(Worker, "long", 100*year).Until; !until.Equal(c.ca.cert.NotAfter) {
		t.Errorf("outlives its authority: %v", until)
	}
}

func TestFiles(t *testing.T) {
	c := newCluster(t)
	if err := CreateAuthority(c.dir, "again", year); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an authority was overwritten: %v", err)
	}
	c.node(Worker, "w")
	for name, mode := range map[string]fs.FileMode{KeyFile: 0o600, GossipFile: 0o600, CertFile: 0o644, "w.pem": 0o600} {
		if info, err := os.Stat(c.file(name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if names, err := os.ReadDir(c.dir); err != nil || len(names) != 4 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if err := errors.Join(os.Chmod(c.file("w.pem"), 0o644), os.Chmod(c.file(KeyFile), 0o604)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(c.file("w.pem"), c.file(CertFile)); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others may read: %v", err)
	}
	if _, err := OpenAuthority(c.dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("an authority's key that others may read: %v", err)
	}
	for _, id := range []Identity{{"", "n"}, {"root", "n"}, {Worker, ""}, {Worker, "a/b"}, {Worker, "-a"}, {Worker, "a b"}, {Worker, strings.Repeat("a", MaxName+1)}} {
		if _, err := c.ca.Issue(id, nil, year); !errors.Is(err, ErrIdentity) {
			t.Errorf("%v: %v", id, err)
		}
	}
}
