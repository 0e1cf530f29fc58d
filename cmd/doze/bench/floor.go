package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// floorProcess is a function as a plain process, polled by a bare loop.
type floorProcess struct {
	loop   *bareLoop
	cmd    *exec.Cmd
	exited chan struct{}
}

// startFloor starts f as a plain process. Its first event waits for loop.allow.
func startFloor(l *launcher, f *function, extraEnv ...string) (*floorProcess, error) {
	loop, err := newBareLoop(echoPayload)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(f.argv[0], f.argv[1:]...)
	cmd.Dir = f.dir
	cmd.Env = append(f.plainEnv(loop.addr()), extraEnv...)
	if err := l.start(cmd); err != nil {
		loop.close()
		return nil, fmt.Errorf("plain process of %s: %w", f.runtime, err)
	}
	p := &floorProcess{loop: loop, cmd: cmd, exited: make(chan struct{})}
	go func() { // ends with the process, which stop ends
		_ = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// stop ends the process and its loop, and waits for both.
func (p *floorProcess) stop() {
	_ = p.cmd.Process.Kill()
	<-p.exited
	p.loop.close()
}

// awaitCalls waits until the process has answered n calls in all.
func (p *floorProcess) awaitCalls(ctx context.Context, n int64) error {
	for {
		calls, err := p.loop.count()
		if err != nil || calls >= n {
			return err
		}
		select {
		case <-p.loop.news:
		case <-p.exited:
			return fmt.Errorf("plain process ended: %v", p.cmd.ProcessState)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// floor is a number of plain processes of one function.
type floor []*floorProcess

func startFloors(l *launcher, f *function, n int, extraEnv ...string) (floor, error) {
	var all floor
	for range n {
		p, err := startFloor(l, f, extraEnv...)
		if err != nil {
			all.stop()
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func (f floor) stop() {
	for _, p := range f {
		p.stop()
	}
}

// ready waits until every process has answered one call, rightly.
func (f floor) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, p := range f {
		p.loop.allow(1)
	}
	for _, p := range f {
		if err := p.awaitCalls(ctx, 1); err != nil {
			return fmt.Errorf("plain process: %w", err)
		}
		if a := p.loop.firstAnswer(); !sameJSON(a, echoPayload) {
			return fmt.Errorf("plain process answered %.100q", a)
		}
	}
	return nil
}

// window lets the processes run for a while and measures them.
func (f floor) window(ctx context.Context, warmup, window time.Duration) (Figures, int64, error) {
	for _, p := range f {
		p.loop.allow(-1)
	}
	defer func() {
		for _, p := range f {
			p.loop.allow(0)
		}
	}()
	if err := pause(ctx, warmup); err != nil {
		return nil, 0, err
	}
	rounds := newHistogram()
	for _, p := range f {
		p.loop.takeRounds(rounds)
	}
	rounds.Reset()
	calls, functions, err := f.totals()
	if err != nil {
		return nil, 0, err
	}
	own, start := selfCPU(), time.Now()
	if err := pause(ctx, window); err != nil {
		return nil, 0, err
	}
	callsAfter, functionsAfter, err := f.totals()
	elapsed, ownAfter := time.Since(start), selfCPU()
	if err != nil {
		return nil, 0, err
	}
	for _, p := range f {
		p.loop.takeRounds(rounds)
	}
	n := callsAfter - calls
	if n == 0 {
		return nil, 0, errors.New("no call was answered")
	}
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(n) }
	return Figures{
		Rate:        float64(n) / elapsed.Seconds(),
		RoundP50:    millis(rounds.ValueAtQuantile(50)),
		LoopCPU:     micros(ownAfter - own),
		FunctionCPU: micros(functionsAfter - functions),
	}, n, nil
}

// totals are the calls answered so far and the CPU time of the processes.
func (f floor) totals() (calls int64, cpu time.Duration, err error) {
	for _, p := range f {
		n, err := p.loop.count()
		if err != nil {
			return 0, 0, err
		}
		used, err := processCPU(p.cmd.Process.Pid)
		if err != nil {
			return 0, 0, err
		}
		calls += n
		cpu += used
	}
	return calls, cpu, nil
}

func (f floor) pids() []int {
	var pids []int
	for _, p := range f {
		pids = append(pids, p.cmd.Process.Pid)
	}
	return pids
}

// plainEnv is the environment AWS documents for a function, for a process without a sandbox.
func (f *function) plainEnv(runtimeAPI string) []string {
	env := []string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=en_US.UTF-8", "TZ=:UTC", "HOME=/tmp",
		"AWS_LAMBDA_RUNTIME_API=" + runtimeAPI,
		"_HANDLER=" + f.handler,
		"LAMBDA_TASK_ROOT=" + f.dir,
		"AWS_REGION=" + region, "AWS_DEFAULT_REGION=" + region,
		"AWS_LAMBDA_FUNCTION_NAME=floor", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST",
		fmt.Sprintf("AWS_LAMBDA_FUNCTION_MEMORY_SIZE=%d", memorySize),
		"AWS_LAMBDA_LOG_GROUP_NAME=/aws/lambda/floor", "AWS_LAMBDA_LOG_STREAM_NAME=floor",
		"AWS_LAMBDA_INITIALIZATION_TYPE=on-demand",
	}
	return append(env, f.env...)
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
