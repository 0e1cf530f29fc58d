//go:build linux

package egress

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// resolverAddr is where an instance finds its resolver: on its own loopback, so that nothing else reaches it, and
	// it works whatever the host's own resolver is and wherever that listens.
	resolverAddr = "127.0.0.1:53"
	// maxQueries bounds what one instance asks at once, and maxStreams its TCP connections.
	maxQueries, maxStreams = 64, 8
	// maxQuery and maxAnswer bound a message over UDP, in bytes.
	maxQuery, maxAnswer = 1232, 8192
	// answerWithin is how long one server of the host may take.
	answerWithin = 2 * time.Second
	// streamIdle is how long a TCP connection may wait for its next query.
	streamIdle = 5 * time.Second
	// maxAsking bounds what the host asks for all instances at once; what is more gets an error.
	maxAsking = 512
	// maxServers of a resolv.conf are asked, as the C library does.
	maxServers = 3
)

// names answers the queries of one line by asking the host's own servers, from the host.
type names struct {
	up      *upstream
	packets net.PacketConn
	streams net.Listener
	ctx     context.Context
	stop    context.CancelFunc
	serving sync.WaitGroup
}

// serveNames makes the line's resolver. The calling thread is in the line's namespace.
func (l *Line) serveNames() (err error) {
	s := &names{up: l.n.upstream}
	if s.packets, err = net.ListenPacket("udp4", resolverAddr); err != nil {
		return err
	}
	if s.streams, err = net.Listen("tcp4", resolverAddr); err != nil {
		s.packets.Close()
		return err
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.serving.Go(s.servePackets)
	s.serving.Go(s.serveStreams)
	l.names = s
	return nil
}

// close ends what is under way and waits for it.
func (s *names) close() {
	if s == nil {
		return
	}
	s.stop()
	s.packets.Close()
	s.streams.Close()
	s.serving.Wait()
}

func (s *names) servePackets() {
	buf := make([]byte, maxQuery)
	free := make(chan struct{}, maxQueries)
	for {
		n, from, err := s.packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || !allowed(buf[:n]) {
			continue
		}
		select {
		case free <- struct{}{}:
		default:
			continue // it asks again
		}
		query := bytes.Clone(buf[:n])
		s.serving.Go(func() {
			defer func() { <-free }()
			s.packets.WriteTo(s.up.ask(s.ctx, "udp", query), from)
		})
	}
}

func (s *names) serveStreams() {
	free := make(chan struct{}, maxStreams)
	for {
		conn, err := s.streams.Accept()
		if err != nil {
			return
		}
		select {
		case free <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		s.serving.Go(func() {
			defer func() { <-free }()
			defer conn.Close()
			defer context.AfterFunc(s.ctx, func() { conn.Close() })()
			s.serveStream(conn)
		})
	}
}

func (s *names) serveStream(conn net.Conn) {
	for {
		conn.SetDeadline(time.Now().Add(streamIdle))
		query, err := readFrame(conn)
		if err != nil || !allowed(query) {
			return
		}
		answer := s.up.ask(s.ctx, "tcp", query)
		conn.SetDeadline(time.Now().Add(streamIdle))
		if writeFrame(conn, answer) != nil {
			return
		}
	}
}

// allowed tells whether a message is one plain question. The host may do more at its servers than a function should:
// change zones, or fetch them whole.
func allowed(query []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response || h.OpCode != 0 {
		return false
	}
	q, err := p.AllQuestions()
	const ixfr = 251
	return err == nil && len(q) == 1 && q[0].Type != dnsmessage.TypeAXFR && q[0].Type != ixfr
}

// refused answers a query that nobody else answers.
func refused(query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	questions, err := p.AllQuestions()
	if err != nil {
		return nil
	}
	h.Response, h.RecursionAvailable, h.RCode = true, true, dnsmessage.RCodeServerFailure
	m := dnsmessage.Message{Header: h, Questions: questions}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// upstream are the host's own servers, as its resolv.conf has them now.
type upstream struct {
	path   string
	asking chan struct{}

	mu      sync.Mutex
	looked  time.Time
	servers []string
}

func newUpstream(path string) *upstream {
	return &upstream{path: path, asking: make(chan struct{}, maxAsking)}
}

// list reads the file again when it may have changed.
func (u *upstream) list() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.looked) < 5*time.Second {
		return u.servers
	}
	u.looked = time.Now()
	f, err := os.Open(u.path)
	if err != nil {
		u.servers = nil
		return nil
	}
	defer f.Close()
	u.servers = parseServers(io.LimitReader(f, 64<<10))
	return u.servers
}

// parseServers finds the name servers of a resolv.conf.
func parseServers(r io.Reader) (servers []string) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" || len(servers) == maxServers {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, 53).String())
		}
	}
	if len(servers) == 0 && lines.Err() == nil {
		servers = []string{"127.0.0.1:53"} // as resolv.conf(5) says
	}
	return servers
}

// ask answers a query: what the first of the servers that answers says, or that none does.
func (u *upstream) ask(ctx context.Context, network string, query []byte) []byte {
	select {
	case u.asking <- struct{}{}:
		defer func() { <-u.asking }()
	default:
		return refused(query)
	}
	for _, server := range u.list() {
		if answer, err := exchange(ctx, network, server, query); err == nil {
			return answer
		}
		if ctx.Err() != nil {
			break
		}
	}
	return refused(query)
}

// exchange asks one server. Over UDP the socket's random port and the connection keep out what others send.
func exchange(ctx context.Context, network, server string, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if network == "tcp" {
		if err := writeFrame(conn, query); err != nil {
			return nil, err
		}
		return readFrame(conn)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	answer := make([]byte, maxAnswer)
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if n >= 12 && bytes.Equal(answer[:2], query[:2]) && answer[2]&0x80 != 0 {
			return answer[:n], nil
		}
	}
}

// readFrame and writeFrame carry a message over TCP: its length in two bytes comes first.
func readFrame(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeFrame(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}
