package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// measurePlainCrowd starts 100 plain processes at once, and weighs them: the baseline of what follows.
func (r *run) measurePlainCrowd(ctx context.Context) error {
	for _, l := range languages {
		f := r.functions[l]
		if f == nil || !r.want[key("floor.start100", l)] && !r.want[key("floor.memory", l)] {
			continue
		}
		if err := r.plainCrowd(ctx, f); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.say("floor.start100.%s: %v", l, err)
			r.skip(err, key("floor.start100", l), key("floor.memory", l))
		}
	}
	return nil
}

// measureScale sends 100 calls at once to a function that sleeps, and weighs the instances when
// they are idle again.
func (r *run) measureScale(ctx context.Context) error {
	if r.platform == nil {
		return nil
	}
	for _, l := range languages {
		f := r.functions[l]
		if f == nil || !r.want[key("scale.0to100", l)] && !r.want[key("idle.instance.memory", l)] {
			continue
		}
		if err := r.platformCrowd(ctx, f); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.say("scale.0to100.%s: %v", l, err)
			r.fail(key("scale.0to100", l), err)
			r.skip(err, key("scale.0to100", l), key("idle.instance.memory", l))
		}
	}
	return nil
}

// crowdAnswer is what the bench functions answer to an event with sleepMs.
type crowdAnswer struct {
	Instance      string `json:"instance"`
	StartedMicros int64  `json:"startedMicros"`
}

func (r *run) platformCrowd(ctx context.Context, f *function) (err error) {
	name := r.name("scale", f.language)
	zip, err := f.zip("")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, r.platform.remove(context.WithoutCancel(ctx), name))
	}()
	if err := r.platform.deploy(ctx, name, f, zip); err != nil {
		return err
	}
	request, err := r.platform.invoke(ctx, name, sleepPayload(waitTime))
	if err != nil {
		return err
	}
	if err := pause(ctx, r.settle); err != nil {
		return err
	}
	before, memErr := r.weigh()
	row := key("scale.0to100", f.language)
	var sent, answered time.Time
	var started int64
	instances := make(map[string]int)
	load := Load{Addr: r.platform.addr, Request: request, Connections: r.plan.crowd, Calls: int64(r.plan.crowd), Window: 40 * time.Second,
		OnAnswer: func(s, a time.Time, body []byte) {
			if sent.IsZero() || s.Before(sent) {
				sent = s
			}
			if a.After(answered) {
				answered = a
			}
			var c crowdAnswer
			if json.Unmarshal(body, &c) == nil {
				instances[c.Instance]++
				started = max(started, c.StartedMicros)
			}
		}}
	s, err := load.Run(ctx)
	if err != nil {
		return err
	}
	series := r.of(row)
	series.calls += s.Calls
	series.fail(s.Errors, s.FirstError)
	if s.Calls == 0 {
		return fmt.Errorf("no call was answered: %s", s.FirstError)
	}
	figures := Figures{AllStarted: float64(started-sent.UnixMicro()) / 1e3, AllAnswered: millis(int64(answered.Sub(sent) - waitTime)), Instances: float64(len(instances))}
	r.observe(row, 0, figures)
	r.note(row, "package known to the worker; all started: the last handler began, by the machine's clock; all answered: the last answer less the 3 s the handler sleeps")
	r.say("%s: %d instances, all started after %.0f ms%s", row, len(instances), figures[AllStarted], failures(s))
	if err := pause(ctx, r.settle); err != nil {
		return err
	}
	after, err := r.weigh()
	if err = errors.Join(memErr, err); err != nil {
		r.skip(err, key("idle.instance.memory", f.language))
		return nil
	}
	r.weighed(key("idle.instance.memory", f.language), before, after, len(instances), s.Calls)
	return nil
}

// weight is the memory of the machine and of the functions on it.
type weight struct {
	available int64
	processes memoryUse
}

// weigh looks at the machine, and at the platform's function processes when it is ours.
func (r *run) weigh() (w weight, err error) {
	if w.available, err = memAvailable(); err != nil {
		return w, err
	}
	root, err := r.platform.pid()
	if err != nil {
		return w, nil // the machine's figure is still good on the same machine
	}
	pids, _, err := functionProcesses(root)
	if err != nil {
		return w, err
	}
	w.processes, err = memoryOf(pids)
	return w, err
}

// weighed makes figures of the difference that n instances made.
func (r *run) weighed(row string, before, after weight, n int, calls int64) {
	figures := Figures{AvailableMem: megabytes(before.available-after.available) / float64(n), Instances: float64(n)}
	// Totals before and after, not the new processes: an instance may live in a process that was
	// there before, parked, and whose place another one has taken.
	if more := after.processes.Processes - before.processes.Processes; more > 0 {
		figures[RSS] = megabytes(after.processes.RSS-before.processes.RSS) / float64(n)
		figures[PSS] = megabytes(after.processes.PSS-before.processes.PSS) / float64(n)
		r.note(row, fmt.Sprintf("%d more processes for %d instances, %v after their answers", more, n, r.settle))
	}
	r.observe(row, 0, figures)
	r.of(row).calls = calls
	r.say("%s: MemAvailable %.1f MB, PSS %.1f MB each", row, figures[AvailableMem], figures[PSS])
}

// plainCrowd starts 100 plain processes at once and weighs them.
func (r *run) plainCrowd(ctx context.Context, f *function) error {
	before, err := memAvailable()
	if err != nil {
		return err
	}
	start := time.Now()
	all, err := startFloors(r.launcher, f, r.plan.crowd)
	if err != nil {
		return err
	}
	defer all.stop()
	if err := all.ready(ctx); err != nil {
		return err
	}
	took, n := time.Since(start), len(all)
	row := key("floor.start100", f.language)
	r.observe(row, 0, Figures{AllAnswered: millis(int64(took)), Instances: float64(n)})
	r.of(row).calls = int64(n)
	r.say("%s: all answered after %.0f ms", row, millis(int64(took)))
	if err := pause(ctx, r.settle); err != nil {
		return err
	}
	use, err := memoryOf(all.pids())
	if err != nil {
		return err
	}
	after, err := memAvailable()
	if err != nil {
		return err
	}
	r.observe(key("floor.memory", f.language), 0, Figures{RSS: megabytes(use.RSS) / float64(n), PSS: megabytes(use.PSS) / float64(n), AvailableMem: megabytes(before-after) / float64(n)})
	return nil
}
