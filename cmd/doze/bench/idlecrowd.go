package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// idleCrowd is how many idle instances idle1000 has at once.
const idleCrowd = 1000

// idleCrowds are the languages whose instances are weighed by the thousand: how many MB each may take, how many
// calls a second are sent to bring them up, and how long after the last call all must be up.
var idleCrowds = []struct {
	language  string
	megabytes float64
	perSecond int
	grace     time.Duration
}{
	{"go", 8, 150, 3 * time.Second},
	{"python", 12, 50, 6 * time.Second},
}

const (
	// endWithin is how long the instances of a deleted function may take to end.
	endWithin = 30 * time.Second
	endPoll   = 100 * time.Millisecond
)

// measureIdleCrowd brings up a thousand instances of a function, weighs them when they are idle, and looks
// whether their end gives everything back.
func (r *run) measureIdleCrowd(ctx context.Context) error {
	if r.platform == nil {
		return nil
	}
	for _, c := range idleCrowds {
		row := key("idle1000", c.language)
		f := r.functions[c.language]
		if f == nil || !r.want[row] {
			continue
		}
		if err := r.idleCrowdOf(ctx, row, f, c.perSecond, c.grace); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.say("%s: %v", row, err)
			r.fail(row, err)
			r.skip(err, row)
		}
	}
	return nil
}

func (r *run) idleCrowdOf(ctx context.Context, row string, f *function, perSecond int, grace time.Duration) (err error) {
	name := r.name("crowd", f.language)
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
	if err := pause(ctx, r.settle); err != nil {
		return err
	}
	before, err := memAvailable()
	if err != nil {
		return err
	}
	up, took, err := r.bringUp(ctx, name, perSecond, grace)
	if err != nil {
		return err
	}
	if up < r.plan.idleCrowd {
		r.fail(row, fmt.Errorf("%d instances answered %d calls: not all were up at once", up, r.plan.idleCrowd))
	}
	if err := pause(ctx, r.settle); err != nil {
		return err
	}
	during, err := memAvailable()
	if err != nil {
		return err
	}
	if err := r.platform.remove(ctx, name); err != nil {
		return err
	}
	ended, err := r.allEnded(ctx)
	if err != nil {
		return err
	}
	if err := pause(ctx, r.settle); err != nil {
		return err
	}
	after, err := memAvailable()
	if err != nil {
		return err
	}
	figures := Figures{Instances: float64(up), AllStarted: millis(int64(took)), AvailableMem: megabytes(before-during) / float64(up),
		FreedMem: float64(after-during) / float64(before-during)}
	r.observe(row, 0, figures)
	r.of(row).calls = int64(r.plan.idleCrowd)
	r.note(row, fmt.Sprintf("%d calls, %d a second, each of a handler that sleeps until all are up; weighed %v after their answers, and again %v after the last had ended, %v after the function was deleted",
		r.plan.idleCrowd, perSecond, r.settle, r.settle, ended.Round(endPoll)))
	r.say("%s: %d instances, MemAvailable %.1f MB each, %.0f %% of it freed", row, up, figures[AvailableMem], 100*figures[FreedMem])
	return nil
}

// bringUp sends calls at a steady rate, each on a connection of its own, whose handlers all sleep until the
// same moment. It returns how many instances there were, and the time until the last handler began.
func (r *run) bringUp(ctx context.Context, name string, perSecond int, grace time.Duration) (up int, took time.Duration, err error) {
	n := r.plan.idleCrowd
	begun := time.Now()
	until := begun.Add(time.Duration(n)*time.Second/time.Duration(perSecond) + grace)
	var mu sync.Mutex
	instances := map[string]struct{}{}
	var last int64
	var failures []error
	var group sync.WaitGroup
	for i := range n {
		if err := pause(ctx, time.Until(begun.Add(time.Duration(i)*time.Second/time.Duration(perSecond)))); err != nil {
			break // the calls end with ctx
		}
		group.Go(func() {
			c, err := r.callFor(ctx, name, time.Until(until))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures = append(failures, err)
				return
			}
			instances[c.Instance] = struct{}{}
			last = max(last, c.StartedMicros)
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return 0, 0, ctx.Err()
	}
	if len(failures) > 0 {
		return 0, 0, fmt.Errorf("%d of %d calls failed, one of them: %w", len(failures), n, failures[0])
	}
	return len(instances), time.UnixMicro(last).Sub(begun), nil
}

// callFor calls a function that sleeps.
func (r *run) callFor(ctx context.Context, name string, sleep time.Duration) (a crowdAnswer, err error) {
	c, err := dialCaller(ctx, r.platform.addr)
	if err != nil {
		return a, err
	}
	defer c.close()
	request, err := r.platform.invoke(ctx, name, sleepPayload(sleep))
	if err != nil {
		return a, err
	}
	answer, _, err := c.call(ctx, request)
	if err != nil {
		return a, err
	}
	if err := checkAnswer(answer, nil); err != nil {
		return a, err
	}
	return a, json.Unmarshal(answer.body, &a)
}

// allEnded waits until the platform has no instances, and says how long that took.
func (r *run) allEnded(ctx context.Context) (time.Duration, error) {
	c, err := dialCaller(ctx, r.platform.addr)
	if err != nil {
		return 0, err
	}
	defer c.close()
	for begun := time.Now(); ; {
		answer, err := c.get(ctx, r.platform.addr, "/doze/v1/status")
		if err != nil {
			return 0, err
		}
		var status struct {
			Instances int64 `json:"instances"`
		}
		if err := json.Unmarshal(answer.body, &status); err != nil {
			return 0, fmt.Errorf("status: %w", err)
		}
		if status.Instances == 0 {
			return time.Since(begun), nil
		}
		if time.Since(begun) > endWithin {
			return 0, errors.New("the instances of a deleted function do not end")
		}
		if err := pause(ctx, endPoll); err != nil {
			return 0, err
		}
	}
}
