package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fake makes the test binary play doze dev, in the way that it names.
const fake = "DOZE_DEMO_TEST_FAKE"

func TestMain(m *testing.M) {
	how := os.Getenv(fake)
	if how == "" {
		os.Exit(m.Run())
	}
	if os.Args[1] != "dev" {
		os.Exit(1) // a client command; nobody is there to answer it
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	switch how {
	case "dies":
		fmt.Fprintln(os.Stderr, "no room in the data folder")
		os.Exit(1)
	case "silent":
		<-signals
		os.Exit(0)
	case "litters":
		child := exec.Command("sleep", "1000")
		if err := child.Start(); err != nil {
			panic(err)
		}
	}
	fmt.Println("doze ready http=127.0.0.1:1 grpc=127.0.0.1:2")
	<-signals
	if how == "sulks" {
		fmt.Fprintln(os.Stderr, "usage could not be shipped")
		os.Exit(3)
	}
}

// start starts a fake server whose files are in a folder of the test.
func start(t *testing.T, ctx context.Context, how string) (*server, error) {
	t.Helper()
	t.Setenv(fake, how)
	return startServer(ctx, &printer{w: &bytes.Buffer{}}, os.Args[0], t.TempDir())
}

func TestServerEndsInOrder(t *testing.T) {
	s, err := start(t, t.Context(), "good")
	if err != nil {
		t.Fatal(err)
	}
	if s.endpoint != "http://127.0.0.1:1" {
		t.Errorf("endpoint %s", s.endpoint)
	}
	if err := errors.Join(s.stop(), s.stop()); err != nil {
		t.Error(err)
	}
	if groupRuns(s.cmd.Process.Pid) {
		t.Error("it still runs")
	}
}

func TestServerFaults(t *testing.T) {
	for how, want := range map[string]string{
		"litters": "left processes behind",
		"sulks":   "usage could not be shipped",
	} {
		t.Run(how, func(t *testing.T) {
			s, err := start(t, t.Context(), how)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.stop(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one with %q", err, want)
			}
			if err := s.groupIsGone(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestServerDoesNotStart(t *testing.T) {
	if _, err := start(t, t.Context(), "dies"); err == nil || !strings.Contains(err.Error(), "no room in the data folder") {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := start(t, ctx, "silent"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// TestRunLeavesNothing: a demo that fails at its first step has ended its server and removed its folder.
func TestRunLeavesNothing(t *testing.T) {
	for _, how := range []string{"good", "dies"} {
		dir := t.TempDir()
		t.Setenv("TMPDIR", dir)
		t.Setenv(fake, how)
		var out bytes.Buffer
		err := run(t.Context(), &printer{w: &out}, options{program: os.Args[0], zips: dir, sandbox: "linux", calls: 2})
		if err == nil {
			t.Fatalf("%s: it did not fail:\n%s", how, out.String())
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("%s: left %v", how, entries)
		}
	}
}

func TestPrinter(t *testing.T) {
	var out bytes.Buffer
	p := &printer{w: &out}
	p.title("Title")
	p.command("doze", "invoke", "f", "--payload", `{"a": 1}`)
	p.quote("one\ntwo\n")
	p.quote(strings.Repeat("line\n", 15))
	p.bar(1500*time.Microsecond, 1, 3, 6, "queue")
	p.bar(2*time.Second, 9, 3, 6, "over")
	p.ok("%d right", 2)
	p.failed(errors.New("no"))
	want := "\nTitle\n  $ doze invoke f --payload '{\"a\": 1}'\n    one\n    two\n" +
		strings.Repeat("    line\n", 12) + "    ... and 3 more\n" +
		"    1.50 ms  ##      queue\n      2.0 s  ######  over\n  ok 2 right\n\nFAILED no\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
