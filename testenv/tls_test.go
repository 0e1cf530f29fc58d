package testenv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/doze-run/doze/bus/nodetls"
)

// A cluster with certificates does what one without does: deploy, calls of both kinds, and it goes on
// when its leader is killed. Those who have none of its certificates, or another role's, get nowhere.
func TestSecureCluster(t *testing.T) {
	ctx := t.Context()
	c := StartSecureCluster(t, 3, 2, "--idle-timeout", "1m")
	names := c.functions(ctx, 4)
	for i, f := range names {
		for _, n := range c.Controls {
			if out := n.Invoke(ctx, f, fmt.Sprintf(`{"by":"%s-%d"}`, n.Name, i)); !strings.Contains(string(out.Payload), n.Name) {
				t.Errorf("%s answered %s", n.Name, out.Payload)
			}
		}
	}
	big := `{"x":"` + strings.Repeat("y", 5<<20) + `"}` // in pieces, both ways
	if out := c.Controls[1].Invoke(ctx, names[0], big); out.FunctionError != nil || len(out.Payload) < 5<<20 {
		t.Errorf("a large event: %d bytes came back", len(out.Payload))
	}

	t.Run("strangers", func(t *testing.T) { secureStrangers(t, c) })

	leader := c.Leader(ctx)
	others := c.Others(leader)
	l := startLoad(ctx, 8, `{"sleep":0.05}`, names, others...)
	c.Eventually(60*time.Second, "100 calls are answered", func() bool { return l.answered.Load() >= 100 })
	leader.Kill()
	before := l.answered.Load()
	c.Eventually(60*time.Second, "200 more calls are answered", func() bool { return l.answered.Load() >= before+200 })
	c.Leader(ctx)
	others[0].Create(ctx, "after", others[0].Runtime(ctx, "python"), Python(t, sleeper))
	leader.Start()
	c.Eventually(60*time.Second, "all three are voters and serve", func() bool {
		serving := 0
		for _, n := range others[0].Status(ctx).Nodes {
			if n.Serving && n.Voter && n.Alive {
				serving++
			}
		}
		return serving == 3
	})
	l.end()
	if l.failed.Load() > 0 {
		t.Errorf("%d calls failed, first: %s", l.failed.Load(), l.failures[0])
	}
	const events = 12
	for i := range events {
		out, err := c.Controls[i%3].Client().Invoke(ctx, &lambda.InvokeInput{
			FunctionName: aws.String("after"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`{}`),
		})
		if err != nil || out.StatusCode != 202 {
			t.Fatalf("%v %+v", err, out)
		}
	}
	c.Eventually(60*time.Second, "every event is on every node's bill", func() bool {
		for _, n := range c.Controls {
			if requests, _ := n.Requests(ctx, "after"); requests != events {
				return false
			}
		}
		return true
	})
	c.SameState(ctx)
}

// secureStrangers knocks at every port that nodes have for one another.
func secureStrangers(t *testing.T, c *Cluster) {
	node := func(dir string) *nodetls.Node {
		n, err := nodetls.LoadDir(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	other := Authority(t)
	worker := node(c.Workers[0].TLSDir).Client(nodetls.Control)
	nobody := &tls.Config{InsecureSkipVerify: true}
	stranger := node(Issue(t, other, "control", "c1")).Client(nodetls.Control)
	stranger.VerifyConnection = nil // whoever is there
	victim := c.Controls[0]
	for port, address := range map[string]string{"raft": victim.Raft, "calls": victim.Calls, "streams": victim.Streams, "routes": victim.Routes} {
		for who, config := range map[string]*tls.Config{"nobody": nobody, "another authority's control node": stranger, "a worker": worker} {
			if who == "a worker" && (port == "calls" || port == "streams") {
				continue // it may come there; bus has what it may do
			}
			if err := knock(address, config); err == nil {
				t.Errorf("%s was let in at %s", who, port)
			} else if text := err.Error(); !strings.Contains(text, "remote error: tls") {
				t.Errorf("%s at %s: %v, which is no refusal", who, port, err)
			}
		}
		if err := inClear(address); err == nil {
			t.Errorf("the %s port speaks in clear", port)
		}
	}
	if err := knock(victim.Calls, worker); err != nil {
		t.Errorf("a worker at calls: %v", err)
	}
	if err := knock(victim.Raft, node(c.Controls[1].TLSDir).Client(nodetls.Control)); err != nil {
		t.Errorf("a control node at raft: %v", err)
	}

	// Nodes with the wrong certificates say why they do not start, or why nobody takes them in.
	for _, tc := range []struct{ verb, dir, says string }{
		{"control", c.Workers[0].TLSDir, "--role control"},
		{"worker", c.Controls[0].TLSDir, "--role worker"},
		{"worker", t.TempDir(), "doze ca issue"},
		{"worker", expired(t, other), "has ended"},
	} {
		out, err := exec.Command(Binary(t), tc.verb, "--tls-dir", tc.dir, "--join", victim.Gossip, "--data-dir", t.TempDir(), "--gossip-port", "0").CombinedOutput()
		if err == nil || !strings.Contains(string(out), tc.says) {
			t.Errorf("doze %s with %s: %v\n%s", tc.verb, tc.dir, err, out)
		}
	}
	for name, dir := range map[string]string{"another authority's": Issue(t, other, "worker", "w9"), "none": ""} {
		w := c.AddWorker()
		c.Workers = slices.DeleteFunc(c.Workers, func(n *Member) bool { return n == w })
		w.places = w.places[:len(w.places)-2] // its certificate
		if dir != "" {
			w.places = append(slices.DeleteFunc(w.places, func(s string) bool { return s == "--name" || s == w.Name }), "--tls-dir", dir)
		}
		w.told(t, name, "no node of the cluster takes this one in")
	}
	// One that has the key of gossip, and no certificate of the authority's.
	mixed := Issue(t, other, "worker", "w8")
	key, err := os.ReadFile(filepath.Join(c.ca, nodetls.GossipFile))
	if err = errors.Join(err, os.WriteFile(filepath.Join(mixed, nodetls.GossipFile), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	w := c.AddWorker()
	c.Workers = slices.DeleteFunc(c.Workers, func(n *Member) bool { return n == w })
	w.places = append(slices.DeleteFunc(w.places[:len(w.places)-2], func(s string) bool { return s == "--name" || s == w.Name }), "--tls-dir", mixed)
	w.told(t, "another authority's with the gossip key", "doze ca")
	if s := victim.Status(t.Context()); len(s.Workers) != len(c.Workers) {
		t.Errorf("the cluster has workers %v", s.Workers)
	}
}

// knock connects and waits for what the other side says. One that lets in greets, or waits for a request.
func knock(address string, config *tls.Config) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = io.ReadFull(conn, make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// inClear connects without TLS and says what is said in NATS, and waits for an answer.
func inClear(address string) error {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(8 * time.Second))
	if _, err := conn.Write([]byte("CONNECT {\"verbose\":true}\r\nPING\r\n")); err != nil {
		return err
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if answer[0] == 0x15 { // an alert of TLS
		return errors.New("an alert")
	}
	return nil
}

// expired is a folder whose certificate has ended.
func expired(t *testing.T, authority string) string {
	t.Helper()
	ca, err := nodetls.OpenAuthority(authority)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(nodetls.Identity{Role: nodetls.Worker, Name: "old"}, nil, -time.Minute)
	dir := filepath.Join(t.TempDir(), "old")
	if err == nil {
		err = issued.WriteDir(dir, authority, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// told starts a node that cannot come to be ready, waits until its log says something, and ends it.
func (n *Member) told(t *testing.T, who, says string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.binary, append([]string{n.verb}, append(n.places, n.args...)...)...)
	text, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	for b := make([]byte, 4096); !strings.Contains(log.String(), says); {
		k, err := text.Read(b)
		log.Write(b[:k])
		if err != nil {
			t.Errorf("%s: %v\n%s", who, err, log.String())
			break
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_, _ = io.Copy(io.Discard, text)
	_ = cmd.Wait() // killed when it takes too long, as ctx says
}
