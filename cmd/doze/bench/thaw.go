package bench

import (
	"context"
	"fmt"
	"time"
)

// An instance is frozen 10 ms after its last call, and is preferred to others for 20: between the two nothing
// but the thaw is different from a call that comes sooner.
const (
	awakeRest  = 5 * time.Millisecond
	frozenRest = 16 * time.Millisecond
)

// measureThaw calls one function over and over, alternately while its instance still runs and when it has
// been frozen.
func (r *run) measureThaw(ctx context.Context) error {
	if r.platform == nil {
		return nil
	}
	for _, l := range languages {
		row := key("thaw", l)
		f := r.functions[l]
		if f == nil || !r.want[row] {
			continue
		}
		if err := r.thaw(ctx, row, f); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.fail(row, err)
			r.skip(err, row)
		}
	}
	return nil
}

func (r *run) thaw(ctx context.Context, row string, f *function) (err error) {
	name := r.name("thaw", f.language)
	zip, err := f.zip("")
	if err != nil {
		return err
	}
	if err := r.platform.deploy(ctx, name, f, zip); err != nil {
		return err
	}
	defer func() {
		if removed := r.platform.remove(context.WithoutCancel(ctx), name); err == nil {
			err = removed
		}
	}()
	request, err := r.platform.invoke(ctx, name, echoPayload)
	if err != nil {
		return err
	}
	c, err := dialCaller(ctx, r.platform.addr)
	if err != nil {
		return err
	}
	defer c.close()
	awake, frozen := newHistogram(), newHistogram()
	for i := range 2*r.thaws + 4 {
		rest, into := awakeRest, awake
		if i%2 == 1 {
			rest, into = frozenRest, frozen
		}
		if err := pause(ctx, rest); err != nil {
			return err
		}
		answer, took, err := c.call(ctx, request)
		if err != nil {
			return err
		}
		if err := checkAnswer(answer, nil); err != nil {
			return err
		}
		if i >= 4 { // the first ones warm up
			record(into, int64(took))
		}
	}
	a, z := millis(awake.ValueAtQuantile(50)), millis(frozen.ValueAtQuantile(50))
	r.observe(row, 0, Figures{AwakeP50: a, FrozenP50: z, ThawAdded: z - a})
	r.of(row).calls = int64(2 * r.thaws)
	r.note(row, fmt.Sprintf("%d calls each after %v and after %v of rest, in turn, one connection; medians", r.thaws, awakeRest, frozenRest))
	r.say("%s: awake %.2f ms, frozen %.2f ms", row, a, z)
	return nil
}
