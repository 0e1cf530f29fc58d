//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/doze-run/doze/testenv"
	"github.com/doze-run/doze/testenv/check"
	"github.com/doze-run/doze/testenv/clock"
	"github.com/doze-run/doze/testenv/history"
	"github.com/doze-run/doze/testenv/load"
	"github.com/doze-run/doze/testenv/netns"
	"github.com/doze-run/doze/testenv/scenario"
)

const (
	historyFile = "history.jsonl"
	// diskBytes is the size of the disk of a node that is to be filled.
	diskBytes = 512 << 20
	// egressRange is where functions have their addresses; the nodes have theirs in netns.Range.
	egressRange = "198.19.128.0/17"
	// recovery is how long a cluster of which nothing is broken any more may take until it is whole.
	recovery = 60 * time.Second
	// eventsEnd is how long accepted events may take to end after that, usageEnd the usage to be billed.
	eventsEnd, usageEnd = 90 * time.Second, 60 * time.Second
	// statusEvery is how often the run says how it goes.
	statusEvery = 5 * time.Second
)

// run is one scenario on one cluster.
type run struct {
	name       string
	seed       uint64
	scenario   *scenario.Scenario
	out        string
	namespaces bool

	random   *rand.Rand
	log      *history.Log
	network  *netns.Network
	hosts    map[string]*netns.Host
	cluster  *testenv.Cluster
	recorder *load.Recorder
	load     *load.Load
	it       []*testenv.Member
	stopped  map[*testenv.Member]bool
	filled   map[string]bool
	disks    []string
	clocks   string // folder of the files with the clocks' offsets
	groups   groups
	flapping context.CancelFunc
	flaps    sync.WaitGroup
	begun    time.Time // of the load; zero before
	sayMu    sync.Mutex
	failures atomic.Int64
}

// say prints a line with the time since the load began.
func (r *run) say(format string, args ...any) {
	r.sayMu.Lock()
	defer r.sayMu.Unlock()
	at := "      "
	if !r.begun.IsZero() {
		at = fmt.Sprintf("%5.1fs", time.Since(r.begun).Seconds())
	}
	fmt.Printf("%s  %s\n", at, fmt.Sprintf(format, args...))
}

// execute runs the scenario, and answers how many violations there were.
func (r *run) execute(ctx context.Context) (violations int, err error) {
	fmt.Printf("\n%s: %s\n", r.name, r.scenario.About)
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return 0, err
	}
	before, err := mounts()
	if err != nil {
		return 0, err
	}
	data, err := os.MkdirTemp("", "doze-chaos-data-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.remove(data)) }()
	if r.log, err = history.Create(filepath.Join(r.out, historyFile)); err != nil {
		return 0, err
	}
	r.random = rand.New(rand.NewPCG(r.seed, 0xfa))
	r.hosts, r.stopped, r.filled, r.groups = map[string]*netns.Host{}, map[*testenv.Member]bool{}, map[string]bool{}, groups{}
	r.log.Add(history.Event{Kind: history.Note, Does: fmt.Sprintf("scenario %s, seed %d, revision %s", r.name, r.seed, revision())})
	s := &stand{ctx: ctx, dir: data, say: r.say}
	s.run(func() { r.story(ctx, s) })
	if r.network != nil {
		r.network.Close()
	}
	broken := 0
	if ctx.Err() == nil { // a story without its end says nothing
		broken = r.judge()
	}
	left, err := leftovers(before, r.groups, r.disks)
	if err != nil {
		return 0, err
	}
	for _, l := range left {
		r.say("BROKEN  leftovers: %s", l)
	}
	if err := r.log.Close(); err != nil {
		return 0, err
	}
	violations = broken + len(left) + int(r.failures.Load())
	if s.Failed() {
		violations++
	}
	r.begun = time.Time{}
	fmt.Printf("history %s\n", filepath.Join(r.out, historyFile))
	if ctx.Err() != nil {
		fmt.Printf("verdict %s: none, it was stopped; what it had started has ended\n", r.name)
	} else if violations == 0 {
		fmt.Printf("verdict %s: every promise was kept\n", r.name)
	} else {
		fmt.Printf("verdict %s: BROKEN, %d violations\n", r.name, violations)
	}
	return violations, nil
}

// story is from the first node's start to the last one's end.
func (r *run) story(ctx context.Context, s *stand) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	layout := testenv.Layout{
		Controls: r.scenario.Controls, Workers: r.scenario.Workers,
		ControlFlags: []string{"--async-retry-waits", "500ms,1s"},
		WorkerFlags:  []string{"--idle-timeout", "30s"},
		Dir:          func(name string) (string, error) { return r.folder(s, name) },
		Log:          func(name string) (io.Writer, error) { return r.nodeLog(s, name) },
	}
	var listener net.Listener
	var err error
	if r.has("clock") {
		r.say("building doze with clocks that can be set")
		r.clocks = s.dir
		layout.Binary = filepath.Join(s.dir, "doze")
		if err := clock.Build(ctx, testenv.Root(), "./cmd/doze", layout.Binary); err != nil {
			s.Fatal(err)
		}
		layout.Env = func(name string) []string {
			if err := clock.Set(r.clockFile(name), 0); err != nil {
				s.Fatal(err)
			}
			return []string{clock.Variable + "=" + r.clockFile(name)}
		}
	}
	if r.namespaces {
		r.network, err = netns.New()
		if err != nil {
			s.Fatalf("a network of its own: %v", err)
		}
		layout.Place = r.place
		layout.ControlFlags = append(layout.ControlFlags, "--network", "egress")
		layout.WorkerFlags = append(layout.WorkerFlags, "--egress-range", egressRange)
		listener, err = r.network.Switch.Listen()
	} else {
		r.say("WITHOUT ROOT: nodes share the loopback, functions run as plain processes, and nothing can be done to the network, disks or mounts;")
		r.say("what a scenario wants of that is a failure. Run it as root for the real thing.")
		layout.WorkerFlags = append(layout.WorkerFlags, "--sandbox", "process")
		listener, err = net.Listen("tcp4", "127.0.0.1:0")
	}
	if err != nil {
		s.Fatalf("the recorder: %v", err)
	}
	r.recorder = load.Record(listener, r.log)
	s.Cleanup(r.recorder.Close)

	r.say("starting %d control nodes and %d workers", layout.Controls, layout.Workers)
	r.cluster = testenv.StartLayout(s, layout)
	s.Cleanup(func() { r.endFlapping(); r.mendAll() }) // so that what ends can end in order
	config := load.Config{
		Seed: r.seed, Log: r.log, Recorder: r.recorder.Addr(), Runtime: string(r.cluster.Controls[0].Runtime(ctx, "python")),
		Functions: r.scenario.Load["functions"], Callers: r.scenario.Load["callers"], Senders: r.scenario.Load["senders"],
		Operators: r.scenario.Load["operators"], Deployers: r.scenario.Load["deployers"], Reserved: r.scenario.Load["reserved"],
		Timeout: time.Duration(r.scenario.Load["timeout"]) * time.Second,
	}
	for _, c := range r.cluster.Controls {
		config.Nodes = append(config.Nodes, load.Node{Name: c.Name, Client: c.Client()})
	}
	if r.load, err = load.Deploy(ctx, config); err != nil {
		s.Fatal(err)
	}
	defer func() { cancel(); r.load.Stop() }()
	r.begun = time.Now()
	r.log.Add(history.Event{Kind: history.Note, Does: "load begins"})
	r.load.Start(ctx)
	stopStatus := r.status(ctx)
	defer stopStatus()
	if err := r.steps(ctx); err != nil && ctx.Err() == nil {
		s.Error(err) // what can be said of the rest is said all the same
	}
	err = r.recover(ctx)
	r.load.Stop()
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		s.Fatal(err)
	}
	r.settle(ctx)
	r.groups.look()
	r.finals(ctx, s)
}

// has tells whether the scenario has a step of that kind.
func (r *run) has(verb string) bool {
	return slices.ContainsFunc(r.scenario.Steps, func(s scenario.Step) bool { return s.Verb == verb })
}

// folder is a node's; its disk is a small one if the scenario fills disks.
func (r *run) folder(s *stand, name string) (string, error) {
	dir := filepath.Join(s.dir, name)
	if !r.has("fill") {
		return dir, os.MkdirAll(dir, 0o755)
	}
	if !r.namespaces {
		return "", errors.New("a disk to fill needs root")
	}
	r.disks = append(r.disks, dir)
	return dir, disk(dir, diskBytes)
}

// clockFile has the offset of a node's clock.
func (r *run) clockFile(name string) string { return filepath.Join(r.clocks, name+".clock") }

func (r *run) nodeLog(s *stand, name string) (io.Writer, error) {
	f, err := os.Create(filepath.Join(r.out, name+".log"))
	if err != nil {
		return nil, err
	}
	s.Cleanup(func() { _ = f.Close() })
	return f, nil
}

func (r *run) place(name string) (*testenv.Place, error) {
	h, err := r.network.Add(name)
	if err != nil {
		return nil, err
	}
	r.hosts[name] = h
	return &testenv.Place{Addr: h.Addr.String(), Start: h.Start, Dial: r.network.Switch.Dial}, nil
}

// steps does what the scenario says.
func (r *run) steps(ctx context.Context) error {
	last := r.begun
	for _, step := range r.scenario.Steps {
		if step.Running > 0 {
			if err := r.await(ctx, step.At, fmt.Sprintf("%d handlers run", step.Running), func() bool { return r.recorder.Running() >= step.Running }); err != nil {
				return err
			}
		} else {
			due := r.begun.Add(step.At)
			if step.Then {
				due = last.Add(step.At)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Until(due)):
			}
		}
		if step.Verb == "end" {
			return nil
		}
		if err := r.do(ctx, step); err != nil {
			return fmt.Errorf("%s: %w", step.Text, err)
		}
		last = time.Now()
	}
	return nil
}

// await asks until something holds.
func (r *run) await(ctx context.Context, limit time.Duration, what string, holds func() bool) error {
	for until := time.Now().Add(limit); !holds(); {
		if time.Now().After(until) {
			return fmt.Errorf("not within %v: %s", limit, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// recover takes back all that is broken, and waits until the cluster says of itself that it is whole.
func (r *run) recover(ctx context.Context) error {
	r.endFlapping()
	r.mendAll()
	for _, n := range r.cluster.Nodes() {
		if !n.Running() {
			r.fault(n, "start")
			n.Start()
		}
	}
	begun := time.Now()
	if err := r.await(ctx, recovery, "the cluster is whole after all faults ended", r.cluster.Whole); err != nil {
		return err
	}
	r.log.Add(history.Event{Kind: history.Mended, Does: "whole"})
	r.say("nothing is broken any more; whole after %v", time.Since(begun).Round(time.Millisecond))
	return nil
}

// settle waits until what was accepted has ended and is billed; what does not, the checkers find.
func (r *run) settle(ctx context.Context) {
	const rest = 250 * time.Millisecond // between two looks, which are work
	begun := time.Now()
	_ = r.await(ctx, eventsEnd, "", func() bool {
		time.Sleep(rest)
		return len(broken(r.log.Events(), "events")) == 0
	})
	events := time.Since(begun)
	_ = r.await(ctx, usageEnd, "", func() bool {
		time.Sleep(rest)
		h := r.log.Events()
		finals := r.ask(ctx)
		return len(finals) == len(r.cluster.Controls) && len(broken(append(h, finals...), "ledger", "replicas")) == 0
	})
	r.say("accepted events ended after %v, the bill was complete after %v", events.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
}

// broken are the violations that some checkers find.
func broken(h []history.Event, names ...string) (found []check.Violation) {
	for _, c := range check.Checkers(nil) {
		for _, name := range names {
			if c.Name == name {
				found = append(found, c.Check(h)...)
			}
		}
	}
	return found
}

// ask asks the control nodes for their state and bill.
func (r *run) ask(ctx context.Context) (finals []history.Event) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, n := range r.cluster.Controls {
		status, err := n.AskStatus(ctx)
		if err != nil {
			continue
		}
		var bill testenv.Bill
		if err := n.Ask(ctx, "/doze/v1/bill", &bill); err != nil {
			continue
		}
		e := history.Event{Kind: history.Final, Node: n.Name, Index: status.StateIndex, Hash: status.StateHash, Billed: map[string]int64{}}
		for _, f := range bill.Functions {
			e.Billed[f.Function] = f.Requests
		}
		finals = append(finals, e)
	}
	return finals
}

func (r *run) finals(ctx context.Context, s *stand) {
	finals := r.ask(ctx)
	if len(finals) < len(r.cluster.Controls) {
		s.Errorf("only %d of %d control nodes say what their state is", len(finals), len(r.cluster.Controls))
	}
	for _, f := range finals {
		r.log.Add(f)
	}
}

// status says every few seconds how it goes, until the function that it answers is called.
func (r *run) status(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		ticks := time.NewTicker(statusEvery)
		defer ticks.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
				r.say("%s", tally(r.log.Events()))
			}
		}
	})
	return func() { cancel(); group.Wait() }
}

// judge prints what the checkers find and the times that were measured.
func (r *run) judge() (violations int) {
	h := r.log.Events()
	for _, line := range measured(h) {
		r.say("%s", line)
	}
	r.say("%s", tally(h))
	var caps map[string]int
	if n := r.scenario.Load["reserved"]; n > 0 {
		caps = load.Config{Reserved: n}.Caps()
	}
	for _, c := range check.Checkers(caps) {
		found := c.Check(h)
		violations += len(found)
		mark := "kept  "
		if len(found) > 0 {
			mark = "BROKEN"
		}
		r.say("%s  %s", mark, c.Promise)
		for i, v := range found {
			if i == 5 {
				r.say("          and %d more", len(found)-i)
				break
			}
			r.say("          %s", v)
		}
	}
	return violations
}

// remove removes the nodes' folders.
func (r *run) remove(data string) error {
	for _, d := range r.disks {
		if err := unmount(d); err != nil {
			return err
		}
	}
	if !strings.Contains(filepath.Base(data), "doze-chaos-data-") {
		return fmt.Errorf("%s is not a folder of a run", data)
	}
	return os.RemoveAll(data)
}
