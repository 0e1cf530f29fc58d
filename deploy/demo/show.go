package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/doze-run/doze/deploy/examples"
)

// show is the story: its steps run in order, each checks what it shows.
type show struct {
	out  *printer
	doze *cli
	zips string
	dir  string
	// deployed are the examples this machine can run.
	deployed []examples.Example
	// made counts the calls of each function that were answered; the bill must have the same.
	made map[string]int64
	last time.Time
}

// barWidth is how long a bar may be.
const barWidth = 40

// instance is what the demo reads of `doze ps --json`.
type instance struct {
	Function, State string
}

// deploy deploys every example that a runtime here can run.
func (s *show) deploy(ctx context.Context) error {
	s.out.title("Three functions are deployed")
	var runtimes []struct{ Name string }
	if err := s.doze.ask(ctx, &runtimes, "runtimes"); err != nil {
		return err
	}
	for _, e := range examples.All() {
		name := ""
		for _, r := range runtimes {
			if e.Interpreter == "" && r.Name == e.Runtime || e.Interpreter != "" && strings.HasPrefix(r.Name, e.Runtime) {
				name = r.Name
			}
		}
		zip := filepath.Join(s.zips, e.Name+".zip")
		if _, err := os.Stat(zip); name == "" {
			s.out.note("%s is left out: doze found no %s on this machine", e.Name, e.Interpreter)
			continue
		} else if e.Interpreter != "" && errors.Is(err, os.ErrNotExist) {
			s.out.note("%s is left out: %s was not built (npm is needed for it)", e.Name, zip)
			continue
		}
		if err := os.WriteFile(s.event(e), e.Event(), 0o600); err != nil {
			return err
		}
		if err := s.doze.show(ctx, "deploy", e.Name, zip, "--runtime", name, "--handler", e.Handler,
			"--memory", strconv.Itoa(e.MemoryMB), "--timeout", strconv.Itoa(e.TimeoutSeconds)); err != nil {
			return err
		}
		s.deployed = append(s.deployed, e)
	}
	if len(s.deployed) == 0 || s.deployed[0].Interpreter != "" {
		return errors.New("this machine cannot even run a Go function")
	}
	return s.expectAsleep(ctx)
}

func (s *show) event(e examples.Example) string { return filepath.Join(s.dir, e.Name+".json") }

func (s *show) expectAsleep(ctx context.Context) error {
	instances, err := s.instances(ctx)
	if err != nil {
		return err
	}
	if len(instances) > 0 {
		return fmt.Errorf("there are %d instances, though nobody has called yet", len(instances))
	}
	s.out.ok("all are asleep: there is no instance of any")
	return nil
}

// coldAndWarm calls each function twice.
func (s *show) coldAndWarm(ctx context.Context) error {
	for _, e := range s.deployed {
		s.out.title(fmt.Sprintf("%s (%s): the first call is cold, the second warm", e.Name, e.What))
		cold, err := s.invoke(ctx, e, true)
		if err != nil {
			return err
		}
		warm, err := s.invoke(ctx, e, false)
		if err != nil {
			return err
		}
		s.out.ok("both answers are right; cold took %s, warm %s", readable(cold), readable(warm))
	}
	return nil
}

// invoke calls an example once and shows where the time went.
func (s *show) invoke(ctx context.Context, e examples.Example, wantCold bool) (time.Duration, error) {
	args := []string{"invoke", e.Name, "--payload", s.event(e)}
	s.out.command(s.doze.program, args...)
	var got struct {
		Cold          bool
		FunctionError string
		ElapsedMs     float64
		TimingUs      map[string]int64
		Payload       json.RawMessage
	}
	if err := s.doze.ask(ctx, &got, args...); err != nil {
		return 0, err
	}
	s.made[e.Name]++
	s.last = time.Now()
	if got.FunctionError != "" {
		return 0, fmt.Errorf("%s failed: %s", e.Name, got.Payload)
	}
	if err := e.Check(got.Payload); err != nil {
		return 0, err
	}
	if got.Cold != wantCold {
		return 0, fmt.Errorf("%s: cold is %v, want %v", e.Name, got.Cold, wantCold)
	}
	elapsed := time.Duration(got.ElapsedMs * float64(time.Millisecond))
	rest := elapsed
	for _, step := range []struct{ name, what string }{
		{"queue", "finding or making room for it"},
		{"claim", "taking a waiting sandbox, or making one"},
		{"mount", "fetching the code and putting it in"},
		{"init", "starting the instance and its runtime"},
		{"handler", "the function's own work"},
	} {
		took := time.Duration(got.TimingUs[step.name]) * time.Microsecond
		if !wantCold && step.name != "queue" && step.name != "handler" {
			continue
		}
		rest -= took
		s.out.bar(took, int(took), int(elapsed), 30, step.name+": "+step.what)
	}
	s.out.bar(max(0, rest), int(max(0, rest)), int(elapsed), 30, "the way there and back")
	if _, ok := got.TimingUs["handler"]; !ok {
		return 0, fmt.Errorf("%s: the answer does not tell where the time went", e.Name)
	}
	return elapsed, nil
}

// crowd calls the first function many times at once and watches its instances.
func (s *show) crowd(ctx context.Context, calls int) error {
	e := s.deployed[0]
	s.out.title(fmt.Sprintf("%s: %d calls at once", e.Name, calls))
	before, err := s.count(ctx, e.Name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	results := make(chan error, calls)
	var callers sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: calls}}
	defer client.CloseIdleConnections()
	for range calls {
		callers.Go(func() { results <- s.call(ctx, client, e) })
	}
	// However this ends, nobody of the crowd stays.
	defer callers.Wait()
	defer cancel()

	answered, peak, shown, shownAt := 0, before, -1, time.Time{}
	watch := time.NewTicker(20 * time.Millisecond)
	defer watch.Stop()
	for answered < calls {
		select {
		case err := <-results:
			if err != nil {
				return err
			}
			answered++
		case <-watch.C:
			n, err := s.count(ctx, e.Name)
			if err != nil {
				return err
			}
			if peak = max(peak, n); n != shown && time.Since(shownAt) > 150*time.Millisecond {
				s.out.bar(time.Since(began), n, calls, barWidth, fmt.Sprintf("%d instances, %d answered", n, answered))
				shown, shownAt = n, time.Now()
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	took := time.Since(began)
	s.made[e.Name] += int64(calls)
	s.last = time.Now()
	if n, err := s.count(ctx, e.Name); err != nil {
		return err
	} else if peak = max(peak, n); peak <= before || peak < 3 {
		return fmt.Errorf("instances did not rise: %d before, at most %d under %d calls", before, peak, calls)
	}
	s.out.ok("%d right answers in %s; instances rose from %d to %d", calls, readable(took), before, peak)
	return nil
}

// attempts is how often a call that is throttled is made in all: AWS's SDKs make three. On a machine of few cores
// the last of a crowd would wait for longer than a call may.
const attempts = 3

// call makes one call over plain HTTP, as any AWS SDK would: throttled, it waits and tries again.
func (s *show) call(ctx context.Context, client *http.Client, e examples.Example) error {
	for n := 1; ; n++ {
		throttled, err := s.try(ctx, client, e)
		if !throttled || n == attempts {
			return err
		}
		select {
		case <-time.After(time.Second): // what Retry-After says
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// try makes a call once.
func (s *show) try(ctx context.Context, client *http.Client, e examples.Example) (throttled bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		s.doze.endpoint+"/2015-03-31/functions/"+e.Name+"/invocations", bytes.NewReader(e.Event()))
	if err != nil {
		return false, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Amz-Function-Error") != "" {
		return resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("%s: status %d: %.300s", e.Name, resp.StatusCode, answer)
	}
	return false, e.Check(answer)
}

// instances is `doze ps`, without starting a process for it.
func (s *show) instances(ctx context.Context) ([]instance, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.doze.endpoint+"/doze/v1/instances", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list []instance
	if err := json.NewDecoder(io.LimitReader(resp.Body, 8<<20)).Decode(&list); err != nil {
		return nil, fmt.Errorf("instances: %w", err)
	}
	return list, nil
}

func (s *show) count(ctx context.Context, function string) (int, error) {
	list, err := s.instances(ctx)
	return len(slices.DeleteFunc(list, func(i instance) bool { return i.Function != function })), err
}

// sleep waits until nothing is awake any more, and then wakes the first function once more.
func (s *show) sleep(ctx context.Context) error {
	s.out.title(fmt.Sprintf("Nobody calls for %s: instances end until every function sleeps", idleTimeout))
	if err := s.doze.show(ctx, "ps"); err != nil {
		return err
	}
	began, shown, most := time.Now(), -1, 0
	limit, cancel := context.WithTimeoutCause(ctx, idleTimeout+15*time.Second, errors.New("the functions did not fall asleep"))
	defer cancel()
	watch := time.NewTicker(50 * time.Millisecond)
	defer watch.Stop()
	for shown != 0 {
		list, err := s.instances(limit)
		if err != nil {
			return err
		}
		if n := len(list); n != shown {
			most = max(most, n)
			s.out.bar(time.Since(began), n, most, barWidth, fmt.Sprintf("%d instances", n))
			shown = n
		}
		select {
		case <-watch.C:
		case <-limit.Done():
			return context.Cause(limit)
		}
	}
	s.out.ok("asleep: no instance is left")
	e := s.deployed[0]
	took, err := s.invoke(ctx, e, true)
	if err != nil {
		return err
	}
	s.out.ok("and the next call wakes %s again: cold, %s", e.Name, readable(took))
	return nil
}

// bill shows what it cost, and compares it with the calls that were made.
func (s *show) bill(ctx context.Context) error {
	s.out.title("The bill of all this")
	// A bill has every call that was answered two seconds ago.
	select {
	case <-time.After(time.Until(s.last.Add(2 * time.Second))):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := s.doze.show(ctx, "bill"); err != nil {
		return err
	}
	var b struct {
		Functions []struct {
			Function                                    string
			Requests, MbMs, FreeRequests, AmountNanoUSD int64
		}
		TotalNanoUSD, AlwaysOnNanoUSD int64
	}
	if err := s.doze.ask(ctx, &b, "bill"); err != nil {
		return err
	}
	var total, requests int64
	billed := map[string]int64{}
	for _, f := range b.Functions {
		billed[f.Function] = f.Requests
		total += f.AmountNanoUSD
		requests += f.Requests
		if f.MbMs <= 0 {
			return fmt.Errorf("%s is billed for %d requests and no time", f.Function, f.Requests)
		}
	}
	for name, made := range s.made {
		if billed[name] != made {
			return fmt.Errorf("%s was called %d times and is billed for %d", name, made, billed[name])
		}
	}
	if total != b.TotalNanoUSD || len(billed) != len(s.made) {
		return fmt.Errorf("the bill does not add up: %+v", b)
	}
	s.out.ok("it has each of the %d calls exactly once", requests)
	return nil
}
