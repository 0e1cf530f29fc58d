package bus

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/doze-run/doze/bus/nodetls"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// certificates are a cluster's authority and what it issued.
type certificates struct {
	t   testing.TB
	dir string
	ca  *nodetls.Authority
}

func newCertificates(t testing.TB) *certificates {
	t.Helper()
	c := &certificates{t: t, dir: filepath.Join(t.TempDir(), "ca")}
	err := nodetls.CreateAuthority(c.dir, "test", time.Hour)
	if err == nil {
		c.ca, err = nodetls.OpenAuthority(c.dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// node is a node with its certificate; of no authority it is nil, and has none.
func (c *certificates) node(role nodetls.Role, name string) *nodetls.Node {
	if c == nil {
		return nil
	}
	c.t.Helper()
	issued, err := c.ca.Issue(nodetls.Identity{Role: role, Name: name}, nil, time.Hour)
	dir := filepath.Join(c.t.TempDir(), name)
	if err == nil {
		err = issued.WriteDir(dir, c.dir, false)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	n, err := nodetls.LoadDir(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// freeAddress is one that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// rawConn is a NATS client that knows nothing of Doze, and what its server said to it.
type rawConn struct {
	*nats.Conn
	refused chan error
}

func dialRaw(t *testing.T, address string, config *tls.Config) *rawConn {
	t.Helper()
	r := &rawConn{refused: make(chan error, 64)}
	var err error
	r.Conn, err = nats.Connect("nats://"+address, nats.Secure(config), nats.TLSHandshakeFirst(), nats.NoReconnect(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { r.refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// isRefused holds that the server refuses what has just been sent, and says so.
func (r *rawConn) isRefused(t *testing.T, verb, subject string) {
	t.Helper()
	select {
	case err := <-r.refused:
		if text := strings.ToLower(err.Error()); !strings.Contains(text, "permissions violation for "+verb) || !strings.Contains(text, strings.ToLower(subject)) {
			t.Errorf("%s to %s: %v", verb, subject, err)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("%s to %s is not refused", verb, subject)
	}
}

// Who has no certificate of the cluster's, or not one for where he knocks, gets nowhere.
func TestStrangersGetNowhere(t *testing.T) {
	c := newCertificates(t)
	p := newPlaneOver(t, c, 16<<20)
	address := p.server.config.Listen
	other := newCertificates(t)
	connect := func(options ...nats.Option) error {
		nc, err := nats.Connect("nats://"+address, append(options, nats.NoReconnect(), nats.Timeout(time.Second))...)
		if err == nil {
			nc.Close()
		}
		return err
	}
	if err := connect(nats.Secure(c.node(nodetls.Worker, "w9").Client(nodetls.Control)), nats.TLSHandshakeFirst()); err != nil {
		t.Fatalf("a worker of the cluster: %v", err)
	}
	nobody := &tls.Config{InsecureSkipVerify: true}
	for name, options := range map[string][]nats.Option{
		"in clear":                    nil,
		"no certificate":              {nats.Secure(nobody), nats.TLSHandshakeFirst()},
		"TLS after the greeting":      {nats.Secure(nobody)},
		"another authority's control": {nats.Secure(other.node(nodetls.Control, "test").Client(nodetls.Control)), nats.TLSHandshakeFirst()},
		"a client's certificate":      {nats.Secure(c.node(nodetls.Client, "ops").Client(nodetls.Control)), nats.TLSHandshakeFirst()},
		"the password of in process":  {nats.Token(p.server.password)},
	} {
		if err := connect(options...); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
	// Nor does a node of the cluster speak to a server that is not one.
	if err := connect(nats.Secure(other.node(nodetls.Worker, "w1").Client(nodetls.Control)), nats.TLSHandshakeFirst()); err == nil {
		t.Error("a node took another authority's server for its own")
	}
}

// A node that is not let in, or meets one that it must not speak to, is told what to do.
func TestRefusedNodeIsTold(t *testing.T) {
	c, other := newCertificates(t), newCertificates(t)
	p := newPlaneOver(t, c, 16<<20)
	for name, tc := range map[string]struct {
		certificate *nodetls.Node
		says        string
	}{
		"none":              {nil, "--tls-dir"},
		"another authority": {other.node(nodetls.Worker, "w1"), "doze ca"},
		"a client's":        {c.node(nodetls.Client, "w1"), "doze ca issue"},
	} {
		var text lockedText
		log := slog.New(slog.NewTextHandler(&text, nil))
		m := NewMesh("w1", nil, tc.certificate, log)
		m.SetHomes([]Home{{Node: "test", Address: p.server.config.Listen}})
		for end := time.Now().Add(20 * time.Second); !strings.Contains(text.String(), tc.says) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if now, _ := m.Connected(); now != 0 || !strings.Contains(text.String(), tc.says) {
			t.Errorf("%s: connected to %d, and was told\n%s", name, now, text.String())
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// lockedText is a bytes.Buffer for several goroutines.
type lockedText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// What a worker that was taken over tries at a home with its certificate.
func TestWorkerAtHomeIsHeldToItsOwn(t *testing.T) {
	c := newCertificates(t)
	p := newPlaneOver(t, c, 16<<20)
	rogue := dialRaw(t, p.server.config.Listen, c.node(nodetls.Worker, "rogue").Client(nodetls.Control))
	for _, subject := range []string{
		"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.DELETE.CALLS_0", "$JS.API.STREAM.PURGE.CALLS_0",
		"$JS.API.STREAM.MSG.GET.CALLS_0", "$JS.API.CONSUMER.CREATE.CALLS_0.x.c.0.x", pullAPI + "CALLS_0.x", "$JS.ACK.CALLS_0.x.1.1.1.1.1",
		"$SYS.REQ.SERVER.PING", "c.0.x", subjectHint, subjectRetire, subjectInUse, subjectNode + "." + "apply",
		workerSubject("w1", verbHost), subjectReport + ".w1", subjectAsker + ".test.x.w1", subjectProbe + ".test.x.w1", subjectReply + ".w1.x",
		subjectSlot + ".w1.x", subjectQueue + ".w1", subjectPull + ".w1.x", subjectSettle + ".w1.CALLS_0.x.1.1.1.1.1", inbox("test") + ".x",
	} {
		if err := rogue.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
		rogue.isRefused(t, "publish", subject)
	}
	for _, subject := range []string{
		">", "*", "c.>", "$JS.>", "$JS.EVENT.>", "w.>", "w.w1.*", "w.*.host", "s.>", "s.w1.*", "a.>", "r.*", "h", "n.>", "_INBOX.>", inbox("test") + ".>", "i.>",
	} {
		if _, err := rogue.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		rogue.isRefused(t, "subscription", subject)
	}

	// What it may is no way around: where an answer goes is looked at.
	mine := NewQueueID("1", "f", "1", "r")
	if err := p.control.openQueue(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	p.control.relay.note(mine)
	victim := NewQueueID("2", "f", "1", "r")
	for i := 0; victim.shard() == mine.shard(); i++ {
		victim = NewQueueID("2", "f", "1", string(rune('a'+i)))
	}
	if err := p.control.nc.Publish(victim.subject(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	pull := []byte(`{"group":"p","priority":0,"batch":1,"expires":1000000}`)
	for _, reply := range []string{"$JS.API.STREAM.PURGE." + victim.stream(), "$JS.API.STREAM.DELETE." + victim.stream(), subjectNode + ".join", subjectSlot + ".w1.x", ""} {
		for _, subject := range []string{
			subjectPull + ".rogue." + string(mine), subjectSettle + ".rogue." + mine.stream() + "." + string(mine) + ".1.1.1.1.1",
			subjectQueue + ".rogue", subjectAsker + "." + p.asker.id + ".rogue", subjectReport + ".rogue",
		} {
			m := nats.NewMsg(subject)
			m.Reply, m.Data = reply, pull
			if err := rogue.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
		m := nats.NewMsg(subjectSettle + ".rogue." + mine.stream() + "." + string(mine) + ".1.1.1.1.1")
		m.Reply, m.Data = reply, []byte("+NXT")
		if err := rogue.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	// A pull of its own, parked after those, has ended by its limit: so have theirs.
	own, err := rogue.SubscribeSync(subjectSlot + ".rogue.x")
	if err != nil {
		t.Fatal(err)
	}
	if err := rogue.PublishRequest(subjectPull+".rogue."+string(mine), own.Subject, pull); err != nil {
		t.Fatal(err)
	}
	if m, err := own.NextMsg(5 * time.Second); err != nil || m.Header.Get("Status") != "408" {
		t.Fatalf("its own pull: %v, %v", m, err)
	}
	stream, err := p.control.js.Stream(t.Context(), victim.stream())
	if err != nil || stream.CachedInfo().State.Msgs != 1 {
		t.Errorf("the other's queue: %v, %v", stream, err)
	}
}

// Nobody but the worker that was granted a call answers it.
func TestNobodyAnswersForAnother(t *testing.T) {
	c := newCertificates(t)
	p := newPlaneOver(t, c, 16<<20)
	rogue := dialRaw(t, p.server.config.Listen, c.node(nodetls.Worker, "rogue").Client(nodetls.Control))
	running, finish := make(chan *Delivery), make(chan struct{})
	q := openQueue(t, p)
	r := newRunner(t, q, func(d *Delivery) *Answer {
		running <- d
		<-finish
		return echo(d)
	})
	if err := r.slot.Park(PriorityRecent, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	answer := make(chan *Answer, 1)
	go func() { answer <- p.asker.Ask(q.ID, newCall([]byte("right")), testLimits, nil) }()
	d := <-running
	// It knows all that there is to know of the call.
	wrong := appendAnswer(nil, d.from.token, d.ID, &Answer{Worker: "w1", Outcome: 1, Payload: []byte("wrong")}, false)
	for _, worker := range []string{"rogue", "w1"} {
		if err := rogue.Publish(subjectAsker+"."+p.asker.id+"."+worker, wrong); err != nil {
			t.Fatal(err)
		}
	}
	if err := rogue.Flush(); err != nil {
		t.Fatal(err)
	}
	close(finish)
	if a := <-answer; a.Fault != nil || string(a.Payload) != "right" {
		t.Errorf("%+v, %s", a, a.Payload)
	}
}

// securePlane is a durable plane whose workers come over TLS.
func securePlane(t *testing.T, c *certificates) (control *Conn, address string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	address = freeAddress(t)
	server, err := StartServer(ServerConfig{
		Name: "store", StoreDir: t.TempDir(), MemoryBytes: 1 << 20, StoreBytes: MinStorageBytes, SyncInterval: time.Minute,
		Listen: address, TLS: c.node(nodetls.Control, "store"), Streams: true, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close(context.Background()) })
	if control, err = Connect(t.Context(), ConnConfig{Name: "store", Server: server, Logger: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = control.Close() })
	if err := control.EnsureStreams(t.Context(), StreamsConfig{StorageBytes: MinStorageBytes, Replicas: 1, EventShards: 1}); err != nil {
		t.Fatal(err)
	}
	stop, err := control.ServeCode()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stop() })
	return control, address
}

// A worker ships usage and logs, hears its marks and fetches code with its certificate alone.
func TestWorkerOnDurablePlaneOverTLS(t *testing.T) {
	c := newCertificates(t)
	control, address := securePlane(t, c)
	worker, err := Connect(t.Context(), ConnConfig{
		Name: "w1", URLs: []string{"nats://" + address}, TLS: c.node(nodetls.Worker, "w1"), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = worker.Close() })

	marks := make(chan *dozev1.UsageApplied, 4)
	stopMarks, err := worker.Usage().OnApplied(func(a *dozev1.UsageApplied) { marks <- a })
	if err != nil {
		t.Fatal(err)
	}
	defer stopMarks()
	stopAnswer, err := control.Usage().AnswerApplied(func(epoch string) (uint64, error) { return uint64(len(epoch)), nil })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stopAnswer() }()
	if mark, err := worker.Usage().AppliedMark(t.Context(), "abc"); err != nil || mark != 3 {
		t.Errorf("mark %d, %v", mark, err)
	}
	shipped := make(chan *UsageDelivery, 4)
	stop := collect(t, control.Usage(), func(all []*UsageDelivery) {
		for _, d := range all {
			_ = d.Ack()
			shipped <- d
		}
	})
	if err := worker.Usage().PublishUsage(t.Context(), testBatch("e-1", 1, 10)); err != nil {
		t.Fatal(err)
	}
	d := <-shipped
	if d.Worker != "w1" || d.Batch.Epoch != "e-1" {
		t.Errorf("shipped by %q: %v", d.Worker, d.Batch.Epoch)
	}
	for _, to := range []string{"w2", d.Worker} {
		if err := control.Usage().AnnounceApplied(to, &dozev1.UsageApplied{Epoch: to, Sequence: 10}); err != nil {
			t.Fatal(err)
		}
	}
	if a := <-marks; a.Epoch != "w1" {
		t.Errorf("heard the mark of %s", a.Epoch)
	}
	stop()

	logs, err := worker.Logs()
	if err != nil {
		t.Fatal(err)
	}
	if !logs.PublishLogs(&dozev1.LogChunk{Account: "1", Function: "f", Lines: lines(time.Now(), "one", "two")}) {
		t.Error("log lines were dropped")
	}
	flushLogs(t, logs)
	reader, err := control.Logs()
	if err != nil {
		t.Fatal(err)
	}
	if got := readLogs(t, reader, "1", "f", time.Time{}); strings.Join(got, ",") != "one,two" || logs.Dropped() != 0 {
		t.Errorf("logged %q, dropped %d", got, logs.Dropped())
	}

	for _, size := range []int{0, 1, objectChunk, 3*objectChunk + 7} {
		data, sha := blob(uint64(size), size)
		if err := control.Objects().Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		r, n, err := worker.Code().Get(t.Context(), sha)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || n != int64(size) || !bytes.Equal(got, data) {
			t.Errorf("%d bytes of code came as %d (said %d): %v", size, len(got), n, err)
		}
	}
	_, unknown := blob(99, 5)
	if _, _, err := worker.Code().Get(t.Context(), unknown); !errors.Is(err, ErrObjectNotFound) {
		t.Errorf("code that is not there: %v", err)
	}
}

// What a worker that was taken over tries on the durable plane.
func TestWorkerOnDurablePlaneIsHeldToItsOwn(t *testing.T) {
	c := newCertificates(t)
	control, address := securePlane(t, c)
	if err := control.Events(1).PublishEvent(t.Context(), testEvent("f", []byte("{}"))); err != nil {
		t.Fatal(err)
	}
	data, sha := blob(1, 10)
	if err := control.Objects().Put(t.Context(), sha, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	rogue := dialRaw(t, address, c.node(nodetls.Worker, "rogue").Client(nodetls.Control))
	for _, subject := range []string{
		"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.DELETE.EVENTS_0", "$JS.API.STREAM.PURGE.EVENTS_0", "$JS.API.STREAM.MSG.GET.OBJ_code",
		"$JS.API.DIRECT.GET.OBJ_code", "$JS.API.DIRECT.GET.OBJ_code." + nameSubject(sha), "$JS.API.CONSUMER.CREATE.LOGS.x", "$JS.ACK.EVENTS_0.pollers.1.1.1.1.1",
		eventSubject(0, "1", "f"), dueSubject(0, "1", "f"), chunkSubject("x"), nameSubject(sha),
		subjectUsage + ".w1.e", subjectMark + ".w1", subjectCode + ".w1", subjectApplied + ".w1.e",
	} {
		if err := rogue.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
		rogue.isRefused(t, "publish", subject)
	}
	for _, subject := range []string{">", "l.>", "e.>", "t.>", "u.>", "ua.*.*", "ua.w1.*", "$O.>", "$JS.>", "k.*", "_INBOX.>"} {
		if _, err := rogue.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		rogue.isRefused(t, "subscription", subject)
	}
	// An answer of a stream, or of a control node, goes nowhere that the worker itself could not write to.
	for _, reply := range []string{
		"$JS.API.STREAM.PURGE.EVENTS_0", "$JS.API.STREAM.DELETE.EVENTS_0", "$JS.API.STREAM.PURGE." + codeStream, eventSubject(0, "1", "f"),
	} {
		for _, subject := range []string{subjectUsage + ".rogue.e", subjectLog + ".1.f", subjectCode + ".rogue", subjectMark + ".rogue"} {
			if err := rogue.PublishRequest(subject, reply, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What is asked after them is answered after them, by stream and API alike.
	own, err := rogue.SubscribeSync(inbox("rogue") + ".x")
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{subjectUsage + ".rogue.e", subjectLog + ".1.f"} {
		if err := rogue.PublishRequest(subject, own.Subject, nil); err != nil {
			t.Fatal(err)
		}
		if m, err := own.NextMsg(5 * time.Second); err != nil || !bytes.Contains(m.Data, []byte(`"seq"`)) {
			t.Fatalf("its own message: %v, %v", m, err)
		}
	}
	if _, err := control.js.AccountInfo(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{eventStream(0): 1, codeStream: 2} {
		stream, err := control.js.Stream(t.Context(), name)
		if err != nil || stream.CachedInfo().State.Msgs != want {
			t.Errorf("%s: %+v, %v, want %d messages", name, stream, err, want)
		}
	}
}
