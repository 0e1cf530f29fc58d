//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/doze-run/doze/testenv"
	"github.com/doze-run/doze/testenv/clock"
	"github.com/doze-run/doze/testenv/history"
	"github.com/doze-run/doze/testenv/netns"
	"github.com/doze-run/doze/testenv/scenario"
)

// flapEvery is how long a flapping partition holds, and does not.
const flapEvery = 500 * time.Millisecond

// target finds the nodes that a word stands for.
func (r *run) target(ctx context.Context, word string) (nodes []*testenv.Member, err error) {
	c := r.cluster
	running := func(all []*testenv.Member) (some []*testenv.Member) {
		for _, n := range all {
			if n.Running() && !r.stopped[n] {
				some = append(some, n)
			}
		}
		return some
	}
	one := func(some []*testenv.Member) []*testenv.Member {
		if len(some) == 0 {
			return nil
		}
		i := r.random.IntN(len(some))
		return some[i : i+1]
	}
	switch word {
	case "leader":
		if n := r.leader(ctx); n != nil {
			nodes = append(nodes, n)
		}
	case "follower":
		leader := r.leader(ctx)
		var others []*testenv.Member
		for _, n := range running(c.Controls) {
			if n != leader {
				others = append(others, n)
			}
		}
		nodes = one(others)
	case "worker":
		nodes = one(running(c.Workers))
	case "it":
		nodes = r.it
	case "others":
	next:
		for _, n := range c.Controls {
			for _, i := range r.it {
				if i == n {
					continue next
				}
			}
			nodes = append(nodes, n)
		}
	case "controls":
		nodes = c.Controls
	case "workers":
		nodes = c.Workers
	case "all":
		nodes = c.Nodes()
	default:
		for _, n := range c.Nodes() {
			if n.Name == word {
				nodes = append(nodes, n)
			}
		}
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("no node is %q now", word)
	}
	return nodes, nil
}

// leader is the control node that the others say leads, nil when none does within some time.
func (r *run) leader(ctx context.Context) (leader *testenv.Member) {
	_ = r.await(ctx, 20*time.Second, "", func() bool {
		for _, n := range r.cluster.Controls {
			if !n.Running() || r.stopped[n] {
				continue
			}
			asked, cancel := context.WithTimeout(ctx, time.Second)
			status, err := n.AskStatus(asked)
			cancel()
			if err != nil {
				continue
			}
			for _, l := range r.cluster.Controls {
				if l.Name == status.Leader && l.Running() && !r.stopped[l] {
					leader = l
					return true
				}
			}
		}
		return false
	})
	return leader
}

// fault writes down what is done.
func (r *run) fault(n *testenv.Member, verb string) {
	e := history.Event{Kind: history.Fault, Does: verb}
	if n != nil {
		e.Node, e.Does = n.Name, verb+" "+n.Name
	}
	r.log.Add(e)
}

func names(nodes []*testenv.Member) string {
	var all []string
	for _, n := range nodes {
		all = append(all, n.Name)
	}
	return strings.Join(all, " ")
}

// do does a step.
func (r *run) do(ctx context.Context, step scenario.Step) error {
	r.groups.look()
	switch step.Verb {
	case "heal":
		r.say("heal")
		r.endFlapping()
		r.fault(nil, "heal")
		return r.healNetwork()
	case "burst", "flood":
		n, _ := strconv.Atoi(step.Args[0])
		sleep, _ := time.ParseDuration(step.Args[2])
		r.say("%s", step.Text)
		r.load.Burst(ctx, n, sleep, step.Verb == "flood")
		return nil
	case "partition", "deafen", "flap":
		return r.cut(ctx, step)
	case "lose", "limit":
		return r.impair(ctx, step)
	case "clock":
		return r.setClock(ctx, step)
	}
	nodes, err := r.target(ctx, step.Args[0])
	if err != nil {
		return err
	}
	r.it = nodes
	r.say("%s (%s)", step.Text, names(nodes))
	return r.process(ctx, step.Verb, nodes)
}

// process does something to the processes of nodes, or to their disks.
func (r *run) process(ctx context.Context, verb string, nodes []*testenv.Member) error {
	switch verb {
	case "kill":
		for _, n := range nodes {
			if n.Running() {
				r.fault(n, verb)
				n.Kill()
				delete(r.stopped, n)
			}
		}
	case "stop", "cont":
		for _, n := range nodes {
			if !n.Running() {
				continue
			}
			sig := syscall.SIGSTOP
			if verb == "cont" {
				sig = syscall.SIGCONT
			}
			r.fault(n, verb)
			if err := n.Signal(sig); err != nil {
				return err
			}
			r.stopped[n] = verb == "stop"
		}
	case "term":
		for _, n := range nodes {
			if n.Running() {
				r.fault(n, verb)
				begun := time.Now()
				if err := n.Stop(); err != nil {
					return fmt.Errorf("%s: %w", n.Name, err)
				}
				r.say("%s ended after %v", n.Name, time.Since(begun).Round(time.Millisecond))
			}
		}
	case "start", "wipe":
		var start []*testenv.Member
		for _, n := range nodes {
			if n.Running() {
				continue
			}
			if verb == "wipe" {
				if err := n.Wipe(); err != nil {
					return err
				}
			}
			r.fault(n, verb)
			start = append(start, n)
		}
		begun := time.Now()
		r.cluster.StartAll(start...)
		r.say("%s up, the cluster whole after %v", names(start), time.Since(begun).Round(time.Millisecond))
	case "roll", "crash":
		end := "term"
		if verb == "crash" {
			end = "kill"
		}
		for _, n := range nodes {
			one := []*testenv.Member{n}
			if err := errors.Join(r.process(ctx, end, one), r.process(ctx, "start", one)); err != nil {
				return err
			}
		}
	case "fill", "free":
		for _, n := range nodes {
			r.fault(n, verb)
			does := fill
			if verb == "free" {
				does = free
			}
			if err := does(n.DataDir); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("nobody knows how to %s", verb)
	}
	return nil
}

var errNoNetwork = errors.New("it needs a network of its own, which needs root")

// cut keeps nodes from hearing one another.
func (r *run) cut(ctx context.Context, step scenario.Step) error {
	if r.network == nil {
		return errNoNetwork
	}
	nodes, err := r.target(ctx, step.Args[0])
	if err != nil {
		return err
	}
	r.it = nodes
	others, err := r.target(ctx, step.Args[2])
	if err != nil {
		return err
	}
	r.say("%s (%s | %s)", step.Text, names(nodes), names(others))
	// The greater part goes on, and is not cut off.
	parts, controls := nodes, 0
	for _, n := range others {
		if slices.Contains(r.cluster.Controls, n) {
			controls++
		}
	}
	if controls > 0 && controls <= len(r.cluster.Controls)/2 {
		parts = slices.Concat(nodes, others)
	}
	for _, n := range parts {
		r.fault(n, step.Verb)
	}
	var from, to []*netns.Host
	for _, n := range nodes {
		from = append(from, r.hosts[n.Name])
	}
	for _, n := range others {
		to = append(to, r.hosts[n.Name])
	}
	both := func(act func(h *netns.Host, others ...*netns.Host) error) (err error) {
		for _, h := range from {
			err = errors.Join(err, act(h, to...))
		}
		if step.Verb != "deafen" {
			for _, h := range to {
				err = errors.Join(err, act(h, from...))
			}
		}
		return err
	}
	if err := both((*netns.Host).Refuse); err != nil || step.Verb != "flap" {
		return err
	}
	r.endFlapping()
	flapping, stop := context.WithCancel(ctx)
	r.flapping = stop
	r.flaps.Go(func() {
		for acts, i := []func(*netns.Host, ...*netns.Host) error{(*netns.Host).Accept, (*netns.Host).Refuse}, 0; ; i++ {
			select {
			case <-flapping.Done():
				return
			case <-time.After(flapEvery):
			}
			if err := both(acts[i%2]); err != nil {
				r.failures.Add(1)
				r.say("FAILED: flap: %v", err)
				return
			}
		}
	})
	return nil
}

func (r *run) endFlapping() {
	if r.flapping != nil {
		r.flapping()
		r.flaps.Wait()
		r.flapping = nil
	}
}

// impair makes lines bad.
func (r *run) impair(ctx context.Context, step scenario.Step) error {
	if r.network == nil {
		return errNoNetwork
	}
	nodes, err := r.target(ctx, step.Args[2])
	if err != nil {
		return err
	}
	r.it = nodes
	r.say("%s (%s)", step.Text, names(nodes))
	n, err := strconv.Atoi(strings.TrimSuffix(step.Args[0], "%"))
	if err != nil {
		return err
	}
	for _, node := range nodes {
		r.fault(node, step.Verb)
		h := r.hosts[node.Name]
		if step.Verb == "lose" {
			err = errors.Join(err, h.Lose(10*n))
		} else {
			err = errors.Join(err, h.Limit(uint64(n)<<10))
		}
	}
	return err
}

// setClock makes nodes take it to be another time of day.
func (r *run) setClock(ctx context.Context, step scenario.Step) error {
	nodes, err := r.target(ctx, step.Args[2])
	if err != nil {
		return err
	}
	r.it = nodes
	offset, err := time.ParseDuration(step.Args[0])
	if err != nil {
		return err
	}
	r.say("%s (%s)", step.Text, names(nodes))
	for _, n := range nodes {
		r.fault(n, step.Verb)
		err = errors.Join(err, clock.Set(r.clockFile(n.Name), offset))
	}
	return err
}

func (r *run) healNetwork() (err error) {
	for _, h := range r.hosts {
		err = errors.Join(err, h.Heal())
	}
	return err
}

// mendAll takes back all that was done to what runs.
func (r *run) mendAll() {
	if err := r.healNetwork(); err != nil {
		r.failures.Add(1)
		r.say("FAILED: heal: %v", err)
	}
	r.fault(nil, "heal")
	for n, stopped := range r.stopped {
		if stopped && n.Running() {
			r.fault(n, "cont")
			_ = n.Signal(syscall.SIGCONT)
		}
		delete(r.stopped, n)
	}
	for _, n := range r.cluster.Nodes() {
		_ = free(n.DataDir)
	}
}
