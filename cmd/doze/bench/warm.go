package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// unit is one measurement of one round.
type unit struct {
	row     string
	measure func(ctx context.Context, round int) error
}

// openShare is the open loop's rate as a part of what the closed loop reached.
const openShare = 0.5

// warmth is a deployed function that has been called: its name and the answers it gives.
type warmth struct {
	name   string
	answer []byte // to echoPayload; nil for one that sleeps
}

// measureRounds measures everything that is measured in rounds: warm calls, their baselines, the floor.
func (r *run) measureRounds(ctx context.Context) error {
	units, deployed, err := r.units(ctx)
	if err != nil {
		return err
	}
	for round := range r.plan.rounds {
		for _, u := range inOrder(units, round) {
			if strings.Contains(u.row, "sleep100") && round >= r.sleepRounds {
				continue
			}
			if err := u.measure(ctx, round); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				r.say("%s: %v", u.row, err)
				r.fail(u.row, err)
			}
		}
	}
	if r.platform != nil {
		if err := r.platform.remove(ctx, deployed...); err != nil {
			r.say("%v", err)
		}
	}
	return ctx.Err()
}

// inOrder is the units forwards in even rounds and backwards in odd ones, so that what comes after
// what, and a machine that gets slower, weigh on both sides of a ratio.
func inOrder(units []unit, round int) []unit {
	if round%2 == 0 {
		return units
	}
	back := slices.Clone(units)
	slices.Reverse(back)
	return back
}

// units are the measurements of a round, each baseline next to what is held against it.
func (r *run) units(ctx context.Context) (units []unit, deployed []string, err error) {
	warm, err := r.warmUp(ctx, "warm", "cpu.platform")
	if err != nil {
		return nil, nil, err
	}
	asleep, err := r.warmUp(ctx, "sleep100", "")
	if err != nil {
		return nil, nil, err
	}
	for _, w := range []map[string]warmth{warm, asleep} {
		for _, f := range w {
			deployed = append(deployed, f.name)
		}
	}
	add := func(row string, measure func(context.Context, int) error) {
		if r.want[row] {
			units = append(units, unit{row, measure})
		}
	}
	for _, c := range []int{1, 16, 64} {
		row := key("echo", conns(c))
		add(row, r.echoUnit(row, echoPath, echoPayload, c))
		for _, l := range languages {
			if w, ok := warm[l]; ok {
				row := key("warm", l, conns(c))
				add(row, r.warmUnit(row, l, w, c))
			}
		}
	}
	for _, row := range r.rows {
		if f := r.floors[row.Key]; f != nil {
			add(row.Key, r.floorUnit(row.Key, f))
		}
	}
	add("echo.sleep100.c64", r.echoUnit("echo.sleep100.c64", sleepPath, sleepPayload(sleepTime), 64))
	for _, l := range languages {
		if w, ok := asleep[l]; ok {
			row := key("sleep100", l, "c64")
			add(row, r.sleepUnit(row, w))
		}
	}
	return units, deployed, nil
}

// warmUp deploys a function per language for the rows of kind, calls it, and lets it scale out.
func (r *run) warmUp(ctx context.Context, kind, also string) (map[string]warmth, error) {
	out := make(map[string]warmth)
	if r.platform == nil {
		return out, nil
	}
	for _, l := range languages {
		f := r.functions[l]
		if f == nil || !r.any(key(kind, l)+".") && (also == "" || !r.want[key(also, l)]) {
			continue
		}
		w, err := r.warmOne(ctx, kind, f)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			r.say("%s %s: %v", kind, l, err)
			for _, row := range r.rows {
				if strings.HasPrefix(row.Key, key(kind, l)+".") || also != "" && row.Key == key(also, l) {
					r.skip(err, row.Key)
				}
			}
			continue
		}
		out[l] = w
	}
	return out, nil
}

func (r *run) warmOne(ctx context.Context, kind string, f *function) (warmth, error) {
	w := warmth{name: r.name(kind, f.language)}
	zip, err := f.zip("")
	if err != nil {
		return w, err
	}
	if err := r.platform.deploy(ctx, w.name, f, zip); err != nil {
		return w, err
	}
	answer, err := r.platform.try(ctx, w.name, echoPayload)
	if err != nil {
		return w, err
	}
	if !sameJSON(answer, echoPayload) {
		return w, fmt.Errorf("the echo function answered %.100q", answer)
	}
	payload := echoPayload
	if kind == "sleep100" {
		payload = sleepPayload(sleepTime)
	} else {
		w.answer = answer
	}
	request, err := r.platform.invoke(ctx, w.name, payload)
	if err != nil {
		return w, err
	}
	load := Load{Addr: r.platform.addr, Request: request, Connections: 64, Warmup: r.prewarm, Drain: 10 * time.Second}
	if kind == "sleep100" {
		load.Warmup *= 2 // 64 instances must start
	}
	s, err := load.Run(ctx)
	if err != nil {
		return w, err
	}
	r.say("%s %s is warm: %d calls to scale out, %d errors", kind, f.language, s.Everything, s.Errors)
	if s.Everything == 0 {
		return w, errors.New(s.FirstError)
	}
	return w, nil
}

// name of a function of this run.
func (r *run) name(parts ...string) string {
	return "doze-bench-" + r.id + "-" + strings.Join(parts, "-")
}

// echoUnit measures the plain server as the platform is measured.
func (r *run) echoUnit(row, path string, payload []byte, connections int) func(context.Context, int) error {
	return func(ctx context.Context, round int) error {
		request, err := buildRequest(ctx, r.echo, path, payload, echoCredentials)
		if err != nil {
			return err
		}
		load := Load{Addr: r.echo, Request: request, Expect: payload, Connections: connections}
		if path == sleepPath {
			return r.loads(ctx, row, round, load, r.sleep, sleepOpenRate, "")
		}
		return r.loads(ctx, row, round, load, r.window, 0, "")
	}
}

func (r *run) warmUnit(row, language string, w warmth, connections int) func(context.Context, int) error {
	return func(ctx context.Context, round int) error {
		request, err := r.platform.invoke(ctx, w.name, echoPayload)
		if err != nil {
			return err
		}
		load := Load{Addr: r.platform.addr, Request: request, Expect: w.answer, Connections: connections}
		if connections == 64 {
			return r.loads(ctx, row, round, load, r.window, 0, key("cpu.platform", language))
		}
		return r.loads(ctx, row, round, load, r.window, 0, "")
	}
}

// sleepOpenRate is the arrival rate of the open loop on the 100 ms handler at 64 connections, which
// can do 640 a second at most.
const sleepOpenRate = 500

func (r *run) sleepUnit(row string, w warmth) func(context.Context, int) error {
	return func(ctx context.Context, round int) error {
		request, err := r.platform.invoke(ctx, w.name, sleepPayload(sleepTime))
		if err != nil {
			return err
		}
		load := Load{Addr: r.platform.addr, Request: request, Connections: 64}
		return r.loads(ctx, row, round, load, r.sleep, sleepOpenRate, "")
	}
}

// loads is a closed loop and after it an open one, at rate or, when that is 0, at openShare of what
// the closed loop just reached. The CPU time of the platform during the closed one goes to cpuRow.
func (r *run) loads(ctx context.Context, row string, round int, load Load, window time.Duration, rate float64, cpuRow string) error {
	load.Warmup, load.Window, load.Drain = r.warmup, window, 5*time.Second
	before, cpuErr := r.platformCPU(cpuRow)
	s, err := load.Run(ctx)
	if err != nil {
		return err
	}
	if cpuErr == nil && cpuRow != "" {
		var after cpuUse
		if after, cpuErr = r.platformCPU(cpuRow); cpuErr == nil && s.Everything > 0 {
			use := after.since(before)
			perCall := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(s.Everything) }
			r.observe(cpuRow, round, Figures{PlatformCPU: perCall(use.Platform), FunctionCPU: perCall(use.Functions)})
		}
	}
	if cpuErr != nil {
		r.skip(cpuErr, cpuRow)
	}
	r.load(row, round, s, false)
	r.say("round %d/%d %-20s %8.0f calls/s  p50 %.3f ms  p99 %.3f ms%s", round+1, r.plan.rounds, row, s.Rate(),
		millis(s.Latency.ValueAtQuantile(50)), millis(s.Latency.ValueAtQuantile(99)), failures(s))
	if rate == 0 {
		rate = s.Rate() * openShare
	}
	if rate < 1 {
		return nil
	}
	load.Window, load.PerSecond = r.plan.open, rate
	if s, err = load.Run(ctx); err != nil {
		return err
	}
	r.load(row, round, s, true)
	return nil
}

func failures(s *Sample) string {
	if s.Errors == 0 {
		return ""
	}
	return fmt.Sprintf("  %d errors, the first: %s", s.Errors, s.FirstError)
}

// platformCPU reads the platform's CPU clocks when a wanted row asks for them.
func (r *run) platformCPU(row string) (cpuUse, error) {
	if row == "" || !r.want[row] {
		return cpuUse{}, nil
	}
	pid, err := r.platform.pid()
	if err != nil {
		return cpuUse{}, err
	}
	return treeCPU(pid)
}

func (r *run) floorUnit(row string, f floor) func(context.Context, int) error {
	return func(ctx context.Context, round int) error {
		figures, calls, err := f.window(ctx, r.warmup, r.plan.floor)
		if err != nil {
			return err
		}
		r.observe(row, round, figures)
		r.of(row).calls += calls
		r.say("round %d/%d %-20s %8.0f calls/s  loop %.0f µs, functions %.0f µs CPU a call", round+1, r.plan.rounds, row, figures[Rate], figures[LoopCPU], figures[FunctionCPU])
		return nil
	}
}
