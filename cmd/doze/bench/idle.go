package bench

import (
	"context"
	"fmt"
	"time"
)

// startEcho starts baseline (a) when a row needs it.
func (r *run) startEcho(ctx context.Context) (stop func(), err error) {
	if !r.any("echo.") {
		return func() {}, nil
	}
	c, addr, err := r.launcher.startServer(ctx, "echo", r.dir, echoReady, 10*time.Second, r.Program, "bench", EchoCommand)
	if err != nil {
		return nil, fmt.Errorf("the baseline cannot be measured: %w", err)
	}
	r.echo = addr
	return func() { _ = c.stop(2 * time.Second) }, nil
}

// EchoCommand is the hidden subcommand of `doze bench` that runs ServeEcho.
const EchoCommand = "echo-server"

// platformRows are the prefixes of the rows for which a platform is needed.
var platformRows = []string{"ready.", "idle.", "warm.", "cpu.", "sleep100.", "cold.", "coldrate.", "first.", "thaw.", "scale.", "idle1000."}

// needsPlatform says whether a wanted row needs one.
func (r *run) needsPlatform() bool {
	for _, prefix := range platformRows {
		if r.any(prefix) {
			return true
		}
	}
	return false
}

// skipPlatform records why the rows that need a platform are not measured.
func (r *run) skipPlatform(reason error) {
	r.say("no platform: %v", reason)
	for _, row := range r.rows {
		for _, prefix := range platformRows {
			if len(row.Key) >= len(prefix) && row.Key[:len(prefix)] == prefix {
				r.skip(reason, row.Key)
			}
		}
	}
}

// startPlatforms starts the platform a few times and keeps the last one.
func (r *run) startPlatforms(ctx context.Context) error {
	if !r.needsPlatform() {
		return nil
	}
	if r.Endpoint != "" {
		r.skip(errForeign, "ready.time", "idle.platform.rss")
		p, err := connectPlatform(r.Endpoint)
		if err != nil {
			return err
		}
		r.platform = p
		return nil
	}
	starts := r.starts
	if !r.want["ready.time"] {
		starts = 1
	}
	for i := range starts {
		p, took, err := startPlatform(ctx, r.launcher, r.Program, r.dir, fmt.Sprintf("platform%d", i))
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.skipPlatform(err)
			return nil
		}
		r.timing("ready.time", int64(took))
		r.observe("ready.time", i, Figures{P50: millis(int64(took))})
		r.say("doze dev ready in %.0f ms", millis(int64(took)))
		if i < starts-1 {
			if err := p.close(ctx); err != nil {
				r.say("%v", err)
			}
			continue
		}
		r.platform = p
	}
	return nil
}

// prepare builds the functions, while the platform has nothing to do.
func (r *run) prepare(ctx context.Context) error {
	for _, l := range languages {
		needed := false
		for k := range r.want {
			needed = needed || languageOf(k) == l
		}
		if !needed {
			continue
		}
		f, err := prepare(ctx, l, r.dir, r.Options)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.say("%s is not measured: %v", l, err)
			for _, row := range r.rows {
				if languageOf(row.Key) == l {
					r.skip(err, row.Key)
				}
			}
			continue
		}
		r.functions[l] = f
		for _, row := range r.rows {
			if languageOf(row.Key) == l {
				r.of(row.Key).runtime = f.runtime
			}
		}
	}
	return r.startFloors(ctx)
}

// startFloors starts the plain processes of the floor rows; they wait for their windows.
func (r *run) startFloors(ctx context.Context) error {
	for _, l := range languages {
		f := r.functions[l]
		if f == nil {
			continue
		}
		for _, kind := range []struct {
			key string
			n   int
			env []string
		}{
			{key("floor", l, "p1"), 1, nil},
			{key("floor", l, "p8"), floorProcesses, nil},
			{key("floor", l, "p8.maxprocs1"), floorProcesses, []string{"GOMAXPROCS=1"}},
		} {
			if !r.want[kind.key] {
				continue
			}
			processes, err := startFloors(r.launcher, f, kind.n, kind.env...)
			if err == nil {
				r.floors[kind.key] = processes
				err = processes.ready(ctx)
			}
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				r.say("%s: %v", kind.key, err)
				r.skip(err, kind.key)
			}
		}
	}
	return nil
}

// idlePlatform weighs the platform some seconds after it was ready, before it has any function.
func (r *run) idlePlatform(ctx context.Context) error {
	const row = "idle.platform.rss"
	if r.platform == nil || r.platform.child == nil || !r.want[row] {
		return nil
	}
	if err := pause(ctx, time.Until(r.platform.readyAt.Add(r.idle))); err != nil {
		return err
	}
	own, helpers, err := r.platform.memory()
	if err != nil {
		r.skip(err, row)
		return nil
	}
	r.observe(row, 0, Figures{RSS: megabytes(own.RSS), PSS: megabytes(own.PSS + helpers.PSS)})
	r.note(row, fmt.Sprintf("RSS is of the %d processes of doze itself; PSS counts all processes it had, %d others among them", own.Processes, helpers.Processes))
	r.say("platform with no functions: %.0f MB", megabytes(own.RSS))
	return nil
}

// memory of the platform's own processes, and of all others that it started.
func (p *platform) memory() (own, others memoryUse, err error) {
	root, err := p.pid()
	if err != nil {
		return own, others, err
	}
	functions, helpers, err := functionProcesses(root)
	if err != nil {
		return own, others, err
	}
	if own, err = memoryOf(append(helpers, root)); err != nil {
		return own, others, err
	}
	others, err = memoryOf(functions)
	return own, others, err
}

func megabytes(bytes int64) float64 { return float64(bytes) / 1e6 }
