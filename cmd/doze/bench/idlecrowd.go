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

// idleCrowds are the languages whose instances are weighed by the thousand: how many MB each may take, and how
// long the calls sleep that bring them up, about what a wave of them takes to start.
var idleCrowds = []struct {
	language  string
	megabytes float64
	sleep     time.Duration
}{
	{"go", 8, time.Second},
	{"python", 12, 2 * time.Second},
}

const (
	// waveStep is how many new instances a wave of calls asks for, and maxWaves when to give up.
	waveStep = 100
	maxWaves = 40
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
		if err := r.idleCrowdOf(ctx, row, f, c.sleep); err != nil {
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

func (r *run) idleCrowdOf(ctx context.Context, row string, f *function, sleep time.Duration) (err error) {
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
	begun := time.Now()
	up, refused, err := r.bringUp(ctx, name, sleep)
	if err != nil {
		return err
	}
	took := time.Since(begun)
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
	figures := Figures{Instances: float64(up), AvailableMem: megabytes(before-during) / float64(up),
		FreedMem: float64(after-during) / float64(before-during)}
	r.observe(row, 0, figures)
	r.of(row).calls = int64(r.plan.idleCrowd)
	r.note(row, fmt.Sprintf("brought up in %v by waves of calls that sleep %v, %d of them refused on the way; weighed %v after the last answer, and again %v after the last instance had ended, %v after the function was deleted",
		took.Round(endPoll), sleep, refused, r.settle, r.settle, ended.Round(endPoll)))
	r.say("%s: %d instances, MemAvailable %.1f MB each, %.0f %% of it freed", row, up, figures[AvailableMem], 100*figures[FreedMem])
	return nil
}

// bringUp sends waves of calls that sleep: each has as many as instances are up already, which serve them
// again, and a few more, which need instances of their own. So the machine sets the pace. It returns how many
// instances there are, and the calls that were refused for lack of capacity on the way.
func (r *run) bringUp(ctx context.Context, name string, sleep time.Duration) (up, refused int, err error) {
	instances := map[string]struct{}{}
	for wave := 0; len(instances) < r.plan.idleCrowd; wave++ {
		if wave == maxWaves {
			return 0, 0, fmt.Errorf("%d instances after %d waves of calls", len(instances), wave)
		}
		n := min(r.plan.idleCrowd, len(instances)+waveStep)
		var mu sync.Mutex
		var failure error
		var group sync.WaitGroup
		for range n {
			group.Go(func() {
				c, err := r.callFor(ctx, name, sleep)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, errRefused):
					refused++
				case err != nil:
					failure = err
				default:
					instances[c.Instance] = struct{}{}
				}
			})
		}
		group.Wait()
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		if failure != nil {
			return 0, 0, failure
		}
	}
	return len(instances), refused, nil
}

// errRefused is a 429.
var errRefused = errors.New("refused for lack of capacity")

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
	if answer.status == 429 {
		return a, errRefused
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
