package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// rateCallers are the connections of coldrate.go, and rateFunctions the functions that they call in
	// turn: enough that the instance of each has ended long before its next call.
	rateCallers   = 16
	rateFunctions = 64
	// rateIdle is the platform's --idle-timeout there.
	rateIdle = "20ms"
)

// measureVariants measures what needs a platform with other settings.
func (r *run) measureVariants(ctx context.Context) error {
	for _, variant := range []struct {
		name    string
		flags   []string
		rows    []string
		measure func(context.Context, *platform) error
	}{
		{"unparked", []string{"--parked=false"}, r.rowsOf("cold.unparked.", "cold.unparked.nocache."), r.measureUnparked},
		{"rate", []string{"--idle-timeout", rateIdle}, []string{"coldrate.go"}, r.measureRate},
	} {
		if err := r.variantOf(ctx, variant.name, variant.flags, variant.rows, variant.measure); err != nil {
			return err
		}
	}
	return nil
}

// rowsOf are the keys of the rows of all languages with these prefixes.
func (r *run) rowsOf(prefixes ...string) (keys []string) {
	for _, prefix := range prefixes {
		for _, l := range languages {
			keys = append(keys, prefix+l)
		}
	}
	return keys
}

func (r *run) variantOf(ctx context.Context, name string, flags, rows []string, measure func(context.Context, *platform) error) (err error) {
	wanted := false
	for _, row := range rows {
		wanted = wanted || r.want[row] && r.functions[languageOf(row)] != nil
	}
	if !wanted || r.platform == nil {
		return nil
	}
	if r.platform.child == nil {
		r.skip(errForeign, rows...)
		return nil
	}
	p, _, err := startPlatform(ctx, r.launcher, r.Program, r.dir, name, flags...)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.skip(err, rows...)
		return nil
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	return measure(ctx, p)
}

func (r *run) measureUnparked(ctx context.Context, p *platform) error {
	for _, k := range []coldKind{
		{name: "cold.unparked", platform: p, calls: r.variant},
		{name: "cold.unparked.nocache", platform: p, calls: r.variant, drop: true},
	} {
		if err := r.coldKind(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// measureRate calls functions in turn, as fast as they answer, on a platform that ends an instance as soon as
// it has had nothing to do.
func (r *run) measureRate(ctx context.Context, p *platform) error {
	const row = "coldrate.go"
	err := r.coldRate(ctx, p, r.functions["go"])
	if err != nil && ctx.Err() == nil {
		r.fail(row, err)
		r.skip(err, row)
		err = nil
	}
	return err
}

func (r *run) coldRate(ctx context.Context, p *platform, f *function) error {
	const row = "coldrate.go"
	zip, err := f.zip("")
	if err != nil {
		return err
	}
	requests := make([][]byte, rateFunctions)
	for i := range requests {
		name := r.name("rate", f.language, fmt.Sprint(i))
		if err := p.deploy(ctx, name, f, zip); err != nil {
			return err
		}
		if requests[i], err = p.invoke(ctx, name, echoPayload); err != nil {
			return err
		}
	}
	var next, cold, warm atomic.Int64
	var mu sync.Mutex
	latency := newHistogram()
	var failures []error
	begun := time.Now()
	warmUntil := begun.Add(r.plan.rate / 5)
	until := warmUntil.Add(r.plan.rate)
	var group sync.WaitGroup
	for range rateCallers {
		group.Go(func() {
			err := func() error {
				c, err := dialCaller(ctx, p.addr)
				if err != nil {
					return err
				}
				defer c.close()
				for time.Now().Before(until) {
					answer, took, err := c.call(ctx, requests[int(next.Add(1))%len(requests)])
					if err != nil {
						return err
					}
					if err := checkAnswer(answer, nil); err != nil {
						return err
					}
					switch now := time.Now(); {
					case now.Before(warmUntil) || now.After(until):
					case !answer.cold:
						warm.Add(1)
					default:
						cold.Add(1)
						mu.Lock()
						record(latency, int64(took))
						mu.Unlock()
					}
				}
				return nil
			}()
			if err != nil {
				mu.Lock()
				failures = append(failures, err)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	if latency.TotalCount() == 0 {
		return errors.New("no call was a cold one")
	}
	figures := Figures{Rate: float64(cold.Load()) / r.plan.rate.Seconds(), P50: millis(latency.ValueAtQuantile(50)), P99: millis(latency.ValueAtQuantile(99))}
	r.observe(row, 0, figures)
	r.of(row).calls = cold.Load()
	r.note(row, fmt.Sprintf("%d functions called in turn over %d connections for %v, --idle-timeout %s; only cold calls count, %d were warm", rateFunctions, rateCallers, r.plan.rate, rateIdle, warm.Load()))
	r.say("%s: %.0f cold starts a second, p50 %.1f ms", row, figures[Rate], figures[P50])
	return nil
}
