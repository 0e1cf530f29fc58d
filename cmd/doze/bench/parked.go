package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// starts are how many starts of a kind found a parked sandbox, and how many did not.
type starts struct{ Hits, Misses int64 }

// reported is how long a worker may take to report what it has done.
const reported = 400 * time.Millisecond

// starts asks the platform how the instances of a runtime were started. A platform that does not tell has
// none.
func (p *platform) starts(ctx context.Context, runtime string) (starts, error) {
	c, err := dialCaller(ctx, p.addr)
	if err != nil {
		return starts{}, err
	}
	defer c.close()
	answer, err := c.get(ctx, p.addr, "/doze/v1/status")
	if err != nil {
		return starts{}, err
	}
	var status struct {
		Workers []struct {
			Parked []struct {
				Kind string `json:"kind"`
				starts
			} `json:"parked"`
		} `json:"workers"`
	}
	if err := json.Unmarshal(answer.body, &status); err != nil {
		return starts{}, fmt.Errorf("status: %w", err)
	}
	var sum starts
	for _, w := range status.Workers {
		for _, s := range w.Parked {
			// "provided" stands for all native runtimes, "nodejs20.x/128" is one of a size of memory.
			kind, _, _ := strings.Cut(s.Kind, "/")
			if kind == runtime || kind == "provided" && strings.HasPrefix(runtime, kind) {
				sum.Hits += s.Hits
				sum.Misses += s.Misses
			}
		}
	}
	return sum, nil
}

// startsOf is starts of a platform for each language of the run.
func (r *run) startsOf(ctx context.Context, p *platform) (map[string]starts, error) {
	all := map[string]starts{}
	if p == nil {
		return all, nil
	}
	if err := pause(ctx, reported); err != nil {
		return nil, err
	}
	for language, f := range r.functions {
		if f == nil {
			continue
		}
		s, err := p.starts(ctx, f.runtime)
		if err != nil {
			return nil, err
		}
		all[language] = s
	}
	return all, nil
}
