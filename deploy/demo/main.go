// Demo shows what Doze does, as it happens, with the real binary on this machine: a function that
// sleeps is called (cold), called again (warm), called 200 times at once, left alone until it sleeps
// again, and billed. Every step is checked; the exit code is 1 if one did not do what it says.
//
// It starts `doze dev` in a temporary folder on free ports and leaves nothing behind, however it
// ends: `make demo`, from the top of the repository.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// idleTimeout is short, so that nobody waits five minutes to see a function fall asleep.
const idleTimeout = 3 * time.Second

func main() {
	program := flag.String("doze", "bin/doze", "the binary to show")
	zips := flag.String("examples", "bin/examples", "folder with the zips of the examples")
	sandbox := flag.String("sandbox", "linux", "what doze dev isolates with: linux or process")
	calls := flag.Int("calls", 200, "calls at once")
	flag.Parse()

	// The signals stay caught to the end: what cleans up is bounded in time, and must not be cut short.
	// SIGPIPE is one of them, for a reader of our output that goes away.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	out := newPrinter(os.Stdout)
	err := run(ctx, out, options{program: *program, zips: *zips, sandbox: *sandbox, calls: *calls})
	var left *leftBehind
	switch {
	case err == nil:
		return
	case ctx.Err() != nil && !errors.As(err, &left):
		out.note("interrupted; everything that was started has been ended and removed")
		os.Exit(130)
	}
	out.failed(err)
	os.Exit(1)
}

// leftBehind is a failure to clean up.
type leftBehind struct{ err error }

func (e *leftBehind) Error() string { return e.err.Error() }
func (e *leftBehind) Unwrap() error { return e.err }

type options struct {
	program, zips, sandbox string
	calls                  int
}

// run is the demo, from a folder that is not there yet to one that is there no more.
func run(ctx context.Context, out *printer, o options) (err error) {
	dir, err := os.MkdirTemp("", "doze-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if e := os.RemoveAll(dir); e != nil {
			err = errors.Join(err, &leftBehind{e})
		}
	}()

	out.title("Doze starts: one process, its data in a new folder")
	server, err := startServer(ctx, out, o.program, dir, "--sandbox", o.sandbox, "--idle-timeout", idleTimeout.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	// If doze dev ends of itself, so does the step that waits for it.
	interrupted := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		<-server.ended
		cancel(errors.New("doze dev ended by itself"))
	}()

	s := &show{out: out, doze: &cli{program: o.program, endpoint: server.endpoint, out: out}, zips: o.zips, dir: dir, made: map[string]int64{}}
	for _, step := range []func(context.Context) error{
		s.deploy,
		s.coldAndWarm,
		func(ctx context.Context) error { return s.crowd(ctx, o.calls) },
		s.sleep,
		s.bill,
	} {
		if err := step(ctx); err != nil {
			if interrupted.Err() != nil {
				return err
			}
			return fmt.Errorf("%w\n\nThe end of the log of doze dev:\n%s", err, server.lastWords())
		}
	}
	out.title("Doze ends")
	if err := server.stop(); err != nil {
		return err
	}
	out.ok("doze dev ended in order; no process and no file of it is left")
	return nil
}
