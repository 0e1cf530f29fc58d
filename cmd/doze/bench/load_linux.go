package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// generator runs one Load: one thread, one epoll set, no goroutine per connection and nothing
// allocated per call, because it shares the machine's cores with what it measures. A call costs it
// a write, a read and its part of an epoll_wait.
type generator struct {
	*Load
	sample    *Sample
	epoll     int
	timer     int // -1 in a closed loop
	ticks     [8]byte
	sockaddr  unix.Sockaddr
	family    int
	conns     []*genConn
	idle      []*genConn
	busy      int
	begin     time.Time
	windowAt  time.Duration // when the window opens, from begin
	endAt     time.Duration // and when it closes
	launched  int64
	reconnect int
}

// genConn is one connection and the call that is on it.
type genConn struct {
	fd   int
	in   []byte // received and not yet parsed
	due  time.Duration
	sent time.Duration
	busy bool
}

// Run runs the load on the calling goroutine. An error means that it could not be run; failed
// calls are in the sample.
func (l *Load) Run(ctx context.Context) (*Sample, error) {
	if len(l.Request) > maxRequest {
		return nil, fmt.Errorf("load generator: request of %d bytes, the most is %d", len(l.Request), maxRequest)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g := &generator{Load: l, epoll: -1, timer: -1,
		sample:   &Sample{Latency: newHistogram(), Window: l.Window, Intended: l.PerSecond},
		windowAt: l.Warmup, endAt: l.Warmup + l.Window}
	defer g.close()
	cpu := selfCPU()
	start := time.Now()
	if err := g.open(); err != nil {
		return nil, err
	}
	if err := g.loop(ctx); err != nil {
		return nil, err
	}
	g.sample.Elapsed = time.Since(start)
	g.sample.GeneratorCPU = selfCPU() - cpu
	return g.sample, nil
}

func (g *generator) open() error {
	addr, err := net.ResolveTCPAddr("tcp", g.Addr)
	if err != nil {
		return fmt.Errorf("load generator: %w", err)
	}
	if ip := addr.IP.To4(); ip != nil {
		g.family, g.sockaddr = unix.AF_INET, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip)}
	} else {
		g.family, g.sockaddr = unix.AF_INET6, &unix.SockaddrInet6{Port: addr.Port, Addr: [16]byte(addr.IP.To16())}
	}
	if g.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("load generator: epoll: %w", err)
	}
	for i := range g.Connections {
		c := &genConn{fd: -1, in: make([]byte, 0, 16<<10)}
		if err := g.dial(c, i); err != nil {
			return err
		}
		g.conns = append(g.conns, c)
		g.idle = append(g.idle, c)
	}
	if g.PerSecond <= 0 {
		return nil
	}
	if g.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return fmt.Errorf("load generator: timerfd: %w", err)
	}
	// More than 20,000 ticks a second would burn CPU: a faster rate sends more than one call a tick.
	every := max(time.Duration(float64(time.Second)/g.PerSecond), 50*time.Microsecond)
	tick := unix.NsecToTimespec(int64(every))
	if err := unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, g.timer, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}); err != nil {
		return fmt.Errorf("load generator: epoll: %w", err)
	}
	if err := unix.TimerfdSettime(g.timer, 0, &unix.ItimerSpec{Interval: tick, Value: tick}, nil); err != nil {
		return fmt.Errorf("load generator: timerfd: %w", err)
	}
	return nil
}

// dial connects c, blocking for at most five seconds, and puts it into the epoll set as number i.
func (g *generator) dial(c *genConn, i int) error {
	fd, err := unix.Socket(g.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("load generator: socket: %w", err)
	}
	c.fd = fd
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5})
	for {
		if err = unix.Connect(fd, g.sockaddr); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.EISCONN) {
		return fmt.Errorf("load generator: connect to %s: %w", g.Addr, err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("load generator: %w", err)
	}
	if err := unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
		return fmt.Errorf("load generator: epoll: %w", err)
	}
	return nil
}

func (g *generator) close() {
	for _, c := range g.conns {
		if c.fd >= 0 {
			_ = unix.Close(c.fd)
		}
	}
	for _, fd := range []int{g.timer, g.epoll} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

func (g *generator) loop(ctx context.Context) error {
	g.begin = time.Now()
	g.launch(0)
	events := make([]unix.EpollEvent, max(64, g.Connections))
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		now := time.Since(g.begin)
		if g.done(now) {
			break
		}
		// 100 ms is how long it takes to see that ctx has ended or the window has closed.
		n, err := unix.EpollWait(g.epoll, events, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("load generator: epoll_wait: %w", err)
		}
		for i := range max(n, 0) {
			if events[i].Fd < 0 { // a tick: reading it arms the timer again; launch below
				_, _ = unix.Read(g.timer, g.ticks[:])
				continue
			}
			if err := g.ready(int(events[i].Fd)); err != nil {
				return err
			}
		}
		g.launch(time.Since(g.begin))
	}
	for range g.busy {
		g.fail(errUnanswered)
	}
	// Calls that were due in the window and found no free connection were not answered either.
	if g.PerSecond > 0 && g.Calls == 0 {
		for range g.dueBy(g.endAt) - g.launched {
			g.fail(errUnanswered)
		}
	}
	return nil
}

// done says whether all that will be launched has been launched and answered, or took too long.
func (g *generator) done(now time.Duration) bool {
	if now >= g.endAt+g.Drain {
		return true
	}
	if g.Calls > 0 && g.launched >= g.Calls {
		return g.busy == 0
	}
	return now >= g.endAt && g.busy == 0 && (g.PerSecond <= 0 || g.launched >= g.dueBy(g.endAt))
}

// dueBy is how many calls of an open loop are due before t.
func (g *generator) dueBy(t time.Duration) int64 {
	return int64(min(t, g.endAt).Seconds()*g.PerSecond) + 1
}

// launch sends what may be sent now.
func (g *generator) launch(now time.Duration) {
	limit := g.Calls
	if limit <= 0 {
		limit = 1 << 62
	}
	if g.PerSecond > 0 {
		limit = min(limit, g.dueBy(now))
	} else if now >= g.endAt {
		return
	}
	for g.launched < limit && len(g.idle) > 0 {
		c := g.idle[len(g.idle)-1]
		g.idle = g.idle[:len(g.idle)-1]
		c.sent = time.Since(g.begin)
		c.due = c.sent
		if g.PerSecond > 0 {
			c.due = time.Duration(float64(g.launched) / g.PerSecond * 1e9)
		}
		g.launched++
		c.busy = true
		g.busy++
		g.write(c)
	}
}

// write sends the request. An idle connection's buffer has room for maxRequest, so a short write
// means that the connection is broken: it is shut down, and the next read tells.
func (g *generator) write(c *genConn) {
	n, err := unix.Write(c.fd, g.Request)
	if err != nil || n < len(g.Request) {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
}

// ready reads what came on connection i, and takes the answer when it is whole.
func (g *generator) ready(i int) error {
	c := g.conns[i]
	if len(c.in) == cap(c.in) {
		c.in = append(c.in, make([]byte, cap(c.in))...)[:len(c.in)]
	}
	n, err := unix.Read(c.fd, c.in[len(c.in):cap(c.in)])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err == nil && n == 0 {
		err = errors.New("connection closed by the server")
	}
	if err != nil {
		return g.renew(c, i, err)
	}
	c.in = c.in[:len(c.in)+n]
	r, used, err := parseResponse(c.in)
	if err != nil {
		return g.renew(c, i, err)
	}
	if used == 0 {
		return nil
	}
	if !c.busy {
		return g.renew(c, i, errors.New("an answer without a call"))
	}
	g.answer(c, r)
	c.in = c.in[:copy(c.in, c.in[used:])]
	if r.close {
		return g.renew(c, i, nil)
	}
	g.free(c)
	return nil
}

// answer takes a whole response into the sample.
func (g *generator) answer(c *genConn, r response) {
	now := time.Since(g.begin)
	if err := checkAnswer(r, g.Expect); err != nil {
		g.fail(err)
		return
	}
	g.sample.Everything++
	if c.due >= g.windowAt {
		g.sample.Calls++
		record(g.sample.Latency, int64(now-c.due))
	}
	if now >= g.windowAt && now < g.endAt {
		g.sample.InWindow++
	}
	if g.OnAnswer != nil {
		g.OnAnswer(g.begin.Add(c.sent), g.begin.Add(now), r.body)
	}
}

func (g *generator) free(c *genConn) {
	if c.busy {
		c.busy = false
		g.busy--
	}
	g.idle = append(g.idle, c)
}

// renew replaces a connection that ended; cause is nil when the server announced it.
func (g *generator) renew(c *genConn, i int, cause error) error {
	if cause != nil && c.busy {
		g.fail(cause)
	}
	if cause == nil {
		cause = errors.New("closed after an answer")
	}
	if g.reconnect++; g.reconnect > maxReconnects {
		return fmt.Errorf("load generator: %d connections lost, the last one: %w", g.reconnect, cause)
	}
	_ = unix.Close(c.fd)
	c.fd, c.in = -1, c.in[:0]
	if err := g.dial(c, i); err != nil {
		return err
	}
	if c.busy {
		g.free(c)
	}
	return nil
}

func (g *generator) fail(err error) {
	g.sample.Errors++
	if g.sample.FirstError == "" {
		g.sample.FirstError = err.Error()
	}
}
