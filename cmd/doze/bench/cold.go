package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// coldKind is a way to call sleeping functions.
type coldKind struct {
	name     string // of its rows, before the language
	platform *platform
	calls    int
	fresh    bool // every function has a package that the worker has not seen
	drop     bool // the page cache is emptied before each call
	floor    bool // beside each call the same function is started as a plain process
}

// measureCold calls many sleeping functions once each. The languages take turns, and beside each
// cold call the same function is started as a plain process. Each function is removed after its
// call. Calls come one at a time, with a pause before each, over a connection that is warm.
func (r *run) measureCold(ctx context.Context) error {
	for _, k := range []coldKind{
		{name: "cold", platform: r.platform, calls: r.cold, floor: true},
		{name: "first", platform: r.platform, calls: r.first, fresh: true},
		{name: "cold.nocache", platform: r.platform, calls: r.variant, drop: true},
	} {
		if err := r.coldKind(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// wantsKind says whether a row of a kind is wanted.
func (r *run) wantsKind(k coldKind) bool {
	for _, l := range languages {
		if r.want[key(k.name, l)] || k.floor && r.want[key("floor.start", l)] {
			return true
		}
	}
	return false
}

func (r *run) coldKind(ctx context.Context, k coldKind) error {
	if !r.wantsKind(k) {
		return nil
	}
	if k.drop {
		if err := r.plan.dropCaches(); err != nil {
			for _, l := range languages {
				r.skip(err, key(k.name, l))
			}
			return nil
		}
	}
	before, err := r.startsOf(ctx, k.platform)
	if err != nil {
		return err
	}
	for i := range k.calls {
		for _, l := range languages {
			f := r.functions[l]
			if f == nil {
				continue
			}
			if err := r.coldTurn(ctx, k, f, i); err != nil {
				return err
			}
		}
	}
	after, err := r.startsOf(ctx, k.platform)
	if err != nil {
		return err
	}
	for _, l := range languages {
		row := key(k.name, l)
		s := r.of(row)
		if s.latency == nil {
			continue
		}
		hits, misses := after[l].Hits-before[l].Hits, after[l].Misses-before[l].Misses
		if hits+misses == 0 { // a platform that parks nothing counts nothing
			misses = s.calls
		}
		r.observe(row, 0, Figures{PoolHits: float64(hits), PoolMisses: float64(misses)})
		how := ""
		if k.drop {
			how = "; page cache dropped before each, which leaves what is mapped by running programs"
		}
		r.note(row, fmt.Sprintf("%d functions, each deployed, left alone for %v and called once; one at a time, connection warm%s", s.calls, r.pace, how))
		r.say("%-22s p50 %.1f ms  p99 %.1f ms  pool hits %d, misses %d", row, millis(s.latency.ValueAtQuantile(50)), millis(s.latency.ValueAtQuantile(99)), hits, misses)
	}
	return nil
}

// coldTurn is one cold call and one plain process. An error is the end of ctx.
func (r *run) coldTurn(ctx context.Context, k coldKind, f *function, i int) error {
	row, base := key(k.name, f.language), key("floor.start", f.language)
	if r.want[row] && k.platform != nil {
		took, err := r.coldCall(ctx, k, f, i)
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
	if r.want[base] && k.floor {
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
func (r *run) coldCall(ctx context.Context, k coldKind, f *function, i int) (took time.Duration, err error) {
	name := r.name(strings.ReplaceAll(k.name, ".", "-"), f.language, fmt.Sprint(i))
	salt := ""
	if k.fresh {
		salt = name
	}
	zip, err := f.zip(salt)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, k.platform.remove(context.WithoutCancel(ctx), name)) }()
	if err := k.platform.deploy(ctx, name, f, zip); err != nil {
		return 0, err
	}
	c, err := dialCaller(ctx, k.platform.addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	request, err := k.platform.invoke(ctx, name, echoPayload)
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, r.pace); err != nil {
		return 0, err
	}
	if k.drop {
		if err := r.plan.dropCaches(); err != nil {
			return 0, err
		}
	}
	if _, err := c.get(ctx, k.platform.addr, "/readyz"); err != nil {
		return 0, err
	}
	answer, took, err := c.call(ctx, request)
	if err != nil {
		return 0, err
	}
	if err := checkAnswer(answer, nil); err != nil {
		return 0, err
	}
	if i == 0 && !k.fresh {
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
