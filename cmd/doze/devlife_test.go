package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/doze-run/doze/control/datadir"
)

// fakePlatform ends when it is told that it may.
type fakePlatform struct {
	failed chan error
	// closing is closed when Close is called; Close returns what mayClose brings, or when ctx ends.
	closing  chan struct{}
	mayClose chan error
}

func newFakePlatform() *fakePlatform {
	return &fakePlatform{failed: make(chan error, 1), closing: make(chan struct{}), mayClose: make(chan error, 1)}
}

func (p *fakePlatform) Failed() <-chan error { return p.failed }

func (p *fakePlatform) Close(ctx context.Context) error {
	close(p.closing)
	select {
	case err := <-p.mayClose:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lived is a life that runs beside the test.
type lived struct {
	*life
	platform *fakePlatform
	signals  chan os.Signal
	stdout   *bufio.Reader
	result   chan error
}

// live starts a life in a folder of its own; change may alter it before.
func live(t *testing.T, change func(*life)) *lived {
	t.Helper()
	r, w := io.Pipe()
	l := &lived{platform: newFakePlatform(), signals: make(chan os.Signal, 2), stdout: bufio.NewReader(r), result: make(chan error, 1)}
	l.life = &life{
		settings: &devSettings{
			Listen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0", DataDir: filepath.Join(t.TempDir(), "data"), ShutdownTimeout: time.Minute,
		},
		open:    func(context.Context, parts) (platform, error) { return l.platform, nil },
		signals: l.signals, stdout: w, log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(l.life)
	}
	go func() {
		err := l.run(context.Background())
		w.Close()
		l.result <- err
	}()
	return l
}

func (l *lived) ready(t *testing.T) (http, grpc string) {
	t.Helper()
	line, err := l.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("no ready line: %v; it ended with %v", err, <-l.result)
	}
	if _, err := fmt.Sscanf(line, "doze ready http=%s grpc=%s\n", &http, &grpc); err != nil {
		t.Fatalf("ready line %q: %v", line, err)
	}
	return http, grpc
}

func TestLifeEndsInOrder(t *testing.T) {
	defer goleak.VerifyNone(t)
	l := live(t, nil)
	for _, address := range []string{first(l.ready(t))} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatalf("the ready line's address does not answer: %v", err)
		}
		conn.Close()
	}
	l.signals <- syscall.SIGTERM
	<-l.platform.closing
	select {
	case err := <-l.result:
		t.Fatalf("ended before the platform did: %v", err)
	default:
	}
	l.platform.mayClose <- nil
	if err := <-l.result; err != nil {
		t.Fatal(err)
	}
	dir, err := datadir.Open(l.settings.DataDir)
	if err != nil {
		t.Fatalf("the folder is not free: %v", err)
	}
	dir.Close()
}

func first(a, _ string) string { return a }

func TestSecondSignalStopsAtOnce(t *testing.T) {
	l := live(t, nil)
	l.ready(t)
	l.signals <- syscall.SIGINT
	<-l.platform.closing
	time.Sleep(signalEcho)
	l.signals <- syscall.SIGINT
	if err := <-l.result; !errors.Is(err, errAtOnce) {
		t.Fatalf("error %v", err)
	}
}

// TestSignalSentTwiceIsOne: timeout(1) signals its child and then its group, the child with it.
func TestSignalSentTwiceIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals, p := make(chan os.Signal, 2), newFakePlatform()
		l := &life{settings: &devSettings{ShutdownTimeout: time.Minute}, signals: signals, log: slog.New(slog.DiscardHandler)}
		signals <- syscall.SIGTERM
		result := make(chan error, 1)
		go func() { result <- l.stop(t.Context(), p) }()
		synctest.Wait()
		select {
		case err := <-result:
			t.Fatalf("the echo of a signal stopped it: %v", err)
		default:
		}
		time.Sleep(signalEcho)
		signals <- syscall.SIGTERM
		if err := <-result; !errors.Is(err, errAtOnce) {
			t.Errorf("a second signal: %v", err)
		}
		p.mayClose <- nil
	})
}

func TestShutdownIsBounded(t *testing.T) {
	l := live(t, func(l *life) { l.settings.ShutdownTimeout = time.Millisecond })
	l.ready(t)
	l.signals <- syscall.SIGTERM
	if err := <-l.result; err == nil || !strings.Contains(err.Error(), "running calls were cut off after 1ms") {
		t.Fatalf("error %v", err)
	}
}

func TestPlatformFails(t *testing.T) {
	l := live(t, nil)
	l.ready(t)
	l.platform.mayClose <- nil
	l.platform.failed <- errors.New("disk is gone")
	if err := <-l.result; err == nil || !strings.Contains(err.Error(), "doze cannot go on: disk is gone") {
		t.Fatalf("error %v", err)
	}
}

func TestSignalWhileOpening(t *testing.T) {
	opening := make(chan struct{})
	l := live(t, func(l *life) {
		l.open = func(ctx context.Context, _ parts) (platform, error) {
			close(opening)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	<-opening
	l.signals <- syscall.SIGTERM
	if err := <-l.result; err != nil {
		t.Fatalf("error %v", err)
	}
}

func TestSignalWhileOpeningEndsWhatOpened(t *testing.T) {
	opening := make(chan struct{})
	built := newFakePlatform()
	l := live(t, func(l *life) {
		l.open = func(ctx context.Context, _ parts) (platform, error) {
			close(opening)
			<-ctx.Done()
			return built, nil // it was just done
		}
	})
	<-opening
	built.mayClose <- nil
	l.signals <- syscall.SIGTERM
	if err := <-l.result; err != nil {
		t.Fatalf("error %v", err)
	}
	<-built.closing
}

func TestOpenFails(t *testing.T) {
	l := live(t, func(l *life) {
		l.open = func(context.Context, parts) (platform, error) { return nil, errors.New("no cgroups") }
	})
	if err := <-l.result; err == nil || err.Error() != "no cgroups" {
		t.Fatalf("error %v", err)
	}
}

func TestPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	for flag, change := range map[string]func(*life){
		"--listen":       func(l *life) { l.settings.Listen = address },
		"--grpc-listen":  func(l *life) { l.settings.GRPCListen = address },
		"--pprof-listen": func(l *life) { l.settings.PprofListen = address },
	} {
		err := <-live(t, change).result
		if err == nil || !strings.HasPrefix(err.Error(), flag+" "+address+" is in use by another process") {
			t.Errorf("%s: error %v", flag, err)
		}
	}
	if err := <-live(t, func(l *life) { l.settings.Listen = "192.0.2.1:0" }).result; err == nil || !strings.Contains(err.Error(), "is not an address of this machine") {
		t.Errorf("error %v", err)
	}
}

func TestTwoOnOneFolder(t *testing.T) {
	l := live(t, nil)
	l.ready(t)
	err := <-live(t, func(other *life) { other.settings.DataDir = l.settings.DataDir }).result
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("is in use by process %d", os.Getpid())) {
		t.Errorf("error %v", err)
	}
	l.platform.mayClose <- nil
	l.signals <- syscall.SIGTERM
	if err := <-l.result; err != nil {
		t.Fatal(err)
	}
}

func TestProfiles(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0") // to know a free port
	if err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	taken.Close()
	l := live(t, func(l *life) { l.settings.PprofListen = address })
	l.ready(t)
	resp, err := http.Get("http://" + address + "/debug/pprof/cmdline")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, error %v", resp, err)
	}
	resp.Body.Close()
	l.platform.mayClose <- nil
	l.signals <- syscall.SIGTERM
	if err := <-l.result; err != nil {
		t.Fatal(err)
	}
}
