//go:build linux

// Command chaos runs clusters of real doze processes, breaks them as scenarios say, and says whether they kept their
// promises: it prints the seed first, then what it does, and at last the path of the history and the verdict. It exits with
// 1 when a promise was broken.
//
//	chaos                                      random faults for three minutes
//	chaos -seed 7 -duration 10m                those of a seed
//	chaos testenv/scenarios/*.txt              named scenarios, one after another
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/doze-run/doze/testenv"
	"github.com/doze-run/doze/testenv/scenario"
)

func main() {
	if err := mainErr(); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

var errBroken = errors.New("promises were broken")

func mainErr() error {
	seed := flag.Uint64("seed", 0, "what random choices are made by (default another one each time)")
	duration := flag.Duration("duration", 3*time.Minute, "how long random faults go on for")
	out := flag.String("out", "", "folder for histories and logs (default a new one in the temporary folder)")
	flag.Parse()
	root := os.Geteuid() == 0
	if root {
		if err := enter(); err != nil {
			return fmt.Errorf("a mount namespace of its own: %w", err)
		}
	}
	if *seed == 0 {
		*seed = rand.Uint64() >> 32
	}
	fmt.Printf("seed %d\n", *seed)
	if *out == "" {
		dir, err := os.MkdirTemp("", "doze-chaos-")
		if err != nil {
			return err
		}
		*out = dir
	}
	type named struct{ name, text string }
	var all []named
	for _, path := range flag.Args() {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		all = append(all, named{strings.TrimSuffix(filepath.Base(path), ".txt"), string(text)})
	}
	if len(all) == 0 {
		all = []named{{"random", scenario.Random(*seed, *duration)}}
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		fmt.Println("stopping; once more to stop at once")
		stop()
		<-signals
		os.Exit(1) // what runs is killed with this process
	}()
	defer testenv.RemoveBinary()
	var verdicts []string
	broken := 0
	for _, n := range all {
		s, err := scenario.Parse(strings.NewReader(n.text))
		if err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		r := &run{name: n.name, seed: *seed, scenario: s, out: filepath.Join(*out, n.name), namespaces: root}
		violations, err := r.execute(ctx)
		if ctx.Err() != nil {
			return errors.New("stopped")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		verdict := "kept every promise"
		if violations > 0 {
			broken++
			verdict = fmt.Sprintf("BROKEN: %d violations", violations)
		}
		verdicts = append(verdicts, fmt.Sprintf("%-20s %s  %s", n.name, filepath.Join(r.out, historyFile), verdict))
	}
	fmt.Printf("\nseed %d, revision %s\n%s\n", *seed, revision(), strings.Join(verdicts, "\n"))
	if broken > 0 {
		return fmt.Errorf("%w in %d of %d runs", errBroken, broken, len(all))
	}
	return nil
}
