package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// measureCold calls many sleeping functions once each. The languages take turns, and beside each
// cold call the same function is started as a plain process. Each function is removed after its
// call. Calls come one at a time, with a pause before each, over a connection that is warm.
func (r *run) measureCold(ctx context.Context) error {
	for _, set := range []struct {
		kind  string
		calls int
		fresh bool // every function has a package that the worker has not seen
	}{{"cold", r.cold, false}, {"first", r.first, true}} {
		if !r.any(set.kind+".") && !(set.kind == "cold" && r.any("floor.start.")) {
			continue
		}
		before, err := r.startsOf(ctx)
		if err != nil {
			return err
		}
		for i := range set.calls {
			for _, l := range languages {
				f := r.functions[l]
				if f == nil {
					continue
				}
				if err := r.coldTurn(ctx, set.kind, f, i, set.fresh); err != nil {
					return err
				}
			}
		}
		after, err := r.startsOf(ctx)
		if err != nil {
			return err
		}
		for _, l := range languages {
			row := key(set.kind, l)
			if s := r.of(row); s.latency != nil {
				r.note(row, fmt.Sprintf("%d functions, each deployed, left alone for %v and called once; one at a time, connection warm; %d of all starts found a parked sandbox, %d did not",
					s.calls, r.pace, after[l].Hits-before[l].Hits, after[l].Misses-before[l].Misses))
				r.say("%-12s p50 %.1f ms  p99 %.1f ms", row, millis(s.latency.ValueAtQuantile(50)), millis(s.latency.ValueAtQuantile(99)))
			}
		}
	}
	return nil
}

// coldTurn is one cold call and one plain process. An error is the end of ctx.
func (r *run) coldTurn(ctx context.Context, kind string, f *function, i int, fresh bool) error {
	row, base := key(kind, f.language), key("floor.start", f.language)
	if r.want[row] && r.platform != nil {
		took, err := r.coldCall(ctx, kind, f, i, fresh)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			r.fail(row, err)
			r.skip(err, row)
		case took > 0:
			r.timing(row, int64(took))
			r.observe(row, i, Figures{P50: millis(int64(took))})
		}
	}
	if r.want[base] && !fresh {
		took, err := r.plainStart(ctx, f)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			r.fail(base, err)
		default:
			r.timing(base, int64(took))
			r.observe(base, i, Figures{P50: millis(int64(took))})
		}
	}
	return ctx.Err()
}

// coldCall deploys a function, calls it once, and removes it. With a package that is not fresh,
// the very first function of the kind only brings the package to the worker: 0 is its time.
func (r *run) coldCall(ctx context.Context, kind string, f *function, i int, fresh bool) (took time.Duration, err error) {
	name := r.name(kind, f.language, fmt.Sprint(i))
	salt := ""
	if fresh {
		salt = name
	}
	zip, err := f.zip(salt)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.platform.remove(context.WithoutCancel(ctx), name)) }()
	if err := r.platform.deploy(ctx, name, f, zip); err != nil {
		return 0, err
	}
	c, err := dialCaller(ctx, r.platform.addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	request, err := r.platform.invoke(ctx, name, echoPayload)
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, r.pace); err != nil {
		return 0, err
	}
	if _, err := c.get(ctx, r.platform.addr, "/readyz"); err != nil {
		return 0, err
	}
	answer, took, err := c.call(ctx, request)
	if err != nil {
		return 0, err
	}
	if err := checkAnswer(answer, nil); err != nil {
		return 0, err
	}
	if i == 0 && !fresh {
		return 0, nil
	}
	return took, nil
}

// plainStart is how long the same function takes as a plain process, from spawn to its answer.
func (r *run) plainStart(ctx context.Context, f *function) (time.Duration, error) {
	if err := pause(ctx, r.pace); err != nil {
		return 0, err
	}
	start := time.Now()
	p, err := startFloor(r.launcher, f)
	if err != nil {
		return 0, err
	}
	defer p.stop()
	p.loop.allow(1)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := p.awaitCalls(ctx, 1); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}
