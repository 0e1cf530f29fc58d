package delivery

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/doze-run/doze/control/invoke"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// inBubble runs a test on a clock of its own, and stops the poller at its end.
func inBubble(t *testing.T, change func(*rig, *Config), test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, change)
		test(t, r)
		if err := r.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
		if s := r.Stats(); s.Held != 0 || s.Running != 0 || r.store.out != 0 {
			t.Errorf("after stop: %+v, %d not settled", s, r.store.out)
		}
	})
}

// sleep lets the time pass and then everything come to rest.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestAttemptsOfAnEvent(t *testing.T) {
	after := func(n int, first, then func(context.Context, *invoke.Call) (*invoke.Answer, error)) func(context.Context, *invoke.Call) (*invoke.Answer, error) {
		return func(ctx context.Context, call *invoke.Call) (*invoke.Answer, error) {
			if n--; n >= 0 {
				return first(ctx, call)
			}
			return then(ctx, call)
		}
	}
	refuses := func(err error) func(context.Context, *invoke.Call) (*invoke.Answer, error) {
		return func(context.Context, *invoke.Call) (*invoke.Answer, error) { return nil, err }
	}
	for _, test := range []struct {
		name     string
		handler  func(context.Context, *invoke.Call) (*invoke.Answer, error)
		policy   Policy
		waits    []time.Duration
		reserved int // -1: none
		gone     bool
		calls    string // when, after acceptance
		ends     Condition
		attempts int
	}{
		{name: "success", handler: succeeds, reserved: -1, calls: "[0s]", ends: Success, attempts: 1},
		{name: "failure, then success", handler: after(1, fails, succeeds), reserved: -1, calls: "[0s 1m0s]", ends: Success, attempts: 2},
		{name: "failure", handler: fails, reserved: -1, calls: "[0s 1m0s 3m0s]", ends: RetriesExhausted, attempts: 3},
		{name: "other waits", handler: fails, reserved: -1, waits: []time.Duration{time.Second}, calls: "[0s 1s 2s]", ends: RetriesExhausted, attempts: 3},
		{name: "no retries", handler: fails, reserved: -1, policy: Policy{MaximumRetryAttempts: 0, MaximumEventAge: time.Hour}, calls: "[0s]", ends: RetriesExhausted, attempts: 1},
		{name: "one retry", handler: fails, reserved: -1, policy: Policy{MaximumRetryAttempts: 1, MaximumEventAge: time.Hour}, calls: "[0s 1m0s]", ends: RetriesExhausted, attempts: 2},
		{name: "too old for the retry", handler: fails, reserved: -1, policy: Policy{MaximumRetryAttempts: 2, MaximumEventAge: time.Minute}, calls: "[0s 59s]", ends: EventAgeExceeded, attempts: 2},
		{name: "throttled twice", handler: after(2, throttled, succeeds), reserved: -1, calls: "[0s 1.5s 4s]", ends: Success, attempts: 1},
		{name: "throttles do not count", handler: after(2, throttled, fails), reserved: -1, calls: "[0s 1.5s 4s 1m4s 3m4s]", ends: RetriesExhausted, attempts: 3},
		{name: "throttled for good", handler: throttled, reserved: -1, policy: Policy{MaximumRetryAttempts: 2, MaximumEventAge: time.Minute}, calls: "[0s 1.5s 4s 8.5s 17s 33.5s 59s]", ends: EventAgeExceeded},
		{name: "a hint to wait", handler: after(1, refuses(&invoke.Throttled{RetryAfter: 10 * time.Second}), succeeds), reserved: -1, calls: "[0s 10s]", ends: Success, attempts: 1},
		{name: "platform's fault", handler: after(1, refuses(&invoke.Unavailable{Ran: true, Err: errors.New("lost")}), succeeds), reserved: -1, calls: "[0s 1.5s]", ends: Success, attempts: 1},
		{name: "no runtime yet", handler: after(1, refuses(&invoke.InvalidRuntime{}), succeeds), reserved: -1, calls: "[0s 1.5s]", ends: Success, attempts: 1},
		{name: "reserved for nobody", handler: succeeds, reserved: 0, calls: "[]", ends: ZeroReservedConcurrency},
		{name: "deleted", gone: true, reserved: -1, calls: "[]", ends: FunctionGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(r *rig, c *Config) {
				if !test.gone {
					r.funcs.handlers["f"] = test.handler
				}
				if test.reserved >= 0 {
					r.funcs.reserved = map[string]int{"f": test.reserved}
				}
				r.funcs.policy, c.RetryWaits = test.policy, test.waits
			}, func(t *testing.T, r *rig) {
				begun := time.Now()
				e := event("f")
				r.store.put(e)
				sleep(7 * time.Hour)
				var calls []time.Duration
				for _, call := range r.funcs.called("f") {
					calls = append(calls, call.at.Sub(begun))
					if string(call.id[:]) != string(e.Id) {
						t.Errorf("request id changed to %x", call.id)
					}
				}
				if fmt.Sprint(calls) != test.calls {
					t.Errorf("called at %v, want %v", calls, test.calls)
				}
				ends := r.ends.of("f")
				if len(ends) != 1 || ends[0].condition != test.ends || ends[0].attempts != test.attempts || ends[0].id != string(e.Id) {
					t.Errorf("ended %+v, want one %v after %d attempts", ends, test.ends, test.attempts)
				}
				if s := r.Stats(); s.Ended[test.ends] != 1 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestMalformedEventIsRecorded(t *testing.T) {
	inBubble(t, func(r *rig, _ *Config) { r.funcs.handlers["f"] = succeeds }, func(t *testing.T, r *rig) {
		r.store.put(&dozev1.Event{Id: []byte("short"), Function: "f"}, &dozev1.Event{Id: make([]byte, 17), Function: "f"})
		sleep(time.Second)
		for _, e := range r.ends.of("f") {
			if e.condition != Malformed {
				t.Errorf("%+v", e)
			}
		}
		if len(r.ends.of("f")) != 2 || len(r.funcs.called("f")) != 0 {
			t.Errorf("%v, %v", r.ends.of("f"), r.funcs.called("f"))
		}
	})
}

// A registry that cannot be asked at the moment costs a wait, not the event.
func TestUnresolvedEventWaits(t *testing.T) {
	away := 3
	inBubble(t, func(r *rig, _ *Config) {
		r.funcs.handlers["f"] = succeeds
		r.funcs.resolve = func(string) error {
			if away--; away >= 0 {
				return errors.New("no leader")
			}
			return nil
		}
	}, func(t *testing.T, r *rig) {
		r.store.put(event("f"))
		sleep(time.Minute)
		if e := r.ends.of("f"); len(e) != 1 || e[0].condition != Success || e[0].attempts != 1 {
			t.Errorf("%+v", e)
		}
	})
}

// Whatever cannot be stored leaves the event where it is.
func TestStoreAndSinkMayFail(t *testing.T) {
	failures := 2
	inBubble(t, func(r *rig, _ *Config) {
		r.funcs.handlers["f"] = fails
		r.store.retryErr = func() error {
			if failures--; failures >= 0 {
				return errors.New("timers full")
			}
			return nil
		}
		r.ends.fail = 2
	}, func(t *testing.T, r *rig) {
		r.store.put(event("f"))
		sleep(time.Hour)
		// Two attempts more for the retries that were not stored, two more for the ends that were not.
		if n := len(r.funcs.called("f")); n != 3+2+2 {
			t.Errorf("%d attempts", n)
		}
		if e := r.ends.of("f"); len(e) != 1 || e[0].condition != RetriesExhausted || e[0].attempts != 3 {
			t.Errorf("%+v", e)
		}
	})
}

// One function with thousands of events that fail, that are slow, or that are throttled, does not
// hold up another's.
func TestFunctionsDoNotHoldUpOneAnother(t *testing.T) {
	for _, test := range []struct {
		name    string
		events  int
		handler func(context.Context, *invoke.Call) (*invoke.Answer, error)
	}{
		{"fails at once", 10_000, fails},
		{"fails slowly", 2000, lasts(time.Second, fails)},
		{"hardly ends", 1000, lasts(5*time.Minute, fails)},
		{"throttled", 2000, throttled},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(r *rig, c *Config) {
				r.funcs.handlers["bad"] = test.handler
				r.funcs.handlers["good"] = lasts(10*time.Millisecond, succeeds)
				r.funcs.policy = Policy{MaximumRetryAttempts: 2, MaximumEventAge: 10 * time.Minute}
			}, func(t *testing.T, r *rig) {
				var events []*dozev1.Event
				for range test.events {
					events = append(events, event("bad"))
				}
				r.store.put(events...)
				for range 30 {
					begun := time.Now()
					before := len(r.ends.of("good"))
					r.store.put(event("good"))
					sleep(20 * time.Millisecond)
					good := r.ends.of("good")
					if len(good) != before+1 {
						t.Fatalf("the healthy function's event waits behind the other's")
					}
					if took := good[before].at.Sub(begun); took != 10*time.Millisecond {
						t.Errorf("took %v", took)
					}
					sleep(time.Second)
					if s := r.Stats(); s.Held > DefaultMaxHeld {
						t.Fatalf("%+v", s)
					}
				}
				// And every event of the other comes to its end.
				sleep(2 * time.Hour)
				for _, e := range r.ends.of("bad") {
					if e.condition != RetriesExhausted && e.condition != EventAgeExceeded {
						t.Fatalf("ended by %v", e.condition)
					}
				}
				if n := len(r.ends.of("bad")); n != test.events {
					t.Errorf("%d of %d ended", n, test.events)
				}
			})
		})
	}
}

// A lane in use all the time is not starved by what was put off: a backlog is worked off at about
// the rate that the function can do.
func TestBacklogIsWorkedOff(t *testing.T) {
	for _, service := range []time.Duration{time.Millisecond, 100 * time.Millisecond, 2 * time.Second} {
		t.Run(service.String(), func(t *testing.T) {
			inBubble(t, func(r *rig, c *Config) {
				r.funcs.handlers["f"] = lasts(service, succeeds)
				c.Jitter = nil
			}, func(t *testing.T, r *rig) {
				const n = 5000
				begun := time.Now()
				for range n {
					r.store.put(event("f"))
				}
				sleep(3 * time.Hour)
				ends := r.ends.of("f")
				if len(ends) != n {
					t.Fatalf("%d of %d ended", len(ends), n)
				}
				took, ideal := ends[n-1].at.Sub(begun), service*n/DefaultMaxRunning
				if took > 2*ideal+5*time.Second {
					t.Errorf("took %v, could be %v", took, ideal)
				}
				if s := r.Stats(); s.PutOff > 30*n {
					t.Errorf("events were put off %d times", s.PutOff)
				}
			})
		})
	}
}

// Many functions that never end share what there is, and one that was quiet still finds room.
func TestManySlowFunctionsLeaveRoom(t *testing.T) {
	inBubble(t, func(r *rig, c *Config) {
		c.MaxHeld = 128
		for i := range 50 {
			r.funcs.handlers[fmt.Sprint("slow", i)] = lasts(time.Hour, succeeds)
		}
		r.funcs.handlers["good"] = succeeds
	}, func(t *testing.T, r *rig) {
		for range 20 {
			for i := range 50 {
				r.store.put(event(fmt.Sprint("slow", i)))
			}
		}
		r.store.put(event("good"))
		sleep(time.Millisecond)
		if len(r.ends.of("good")) != 1 {
			t.Error("no room for the quiet function")
		}
	})
}

// Bytes are bounded as events are.
func TestHeldBytesAreBounded(t *testing.T) {
	inBubble(t, func(r *rig, c *Config) {
		c.MaxHeldBytes = 10 << 20
		r.funcs.handlers["big"] = lasts(time.Minute, succeeds)
		r.funcs.handlers["good"] = succeeds
	}, func(t *testing.T, r *rig) {
		for range 20 {
			e := event("big")
			e.Payload = make([]byte, 1<<20)
			r.store.put(e)
		}
		if s := r.Stats(); s.Held > 5 {
			t.Errorf("one function holds %d MB of 10", s.Held)
		}
		e := event("good")
		e.Payload = make([]byte, 1<<20)
		r.store.put(e)
		sleep(time.Millisecond)
		if len(r.ends.of("good")) != 1 {
			t.Error("no room for the other function")
		}
		sleep(time.Hour)
		if n := len(r.ends.of("big")); n != 20 {
			t.Errorf("%d of 20 ended", n)
		}
	})
}

// A capped function keeps its cap busy and is not asked in vain all the time.
func TestThrottledLaneFindsItsRate(t *testing.T) {
	slots := 2
	inBubble(t, func(r *rig, c *Config) {
		r.funcs.handlers["f"] = func(ctx context.Context, call *invoke.Call) (*invoke.Answer, error) {
			r.funcs.mu.Lock()
			if slots == 0 {
				r.funcs.mu.Unlock()
				return throttled(ctx, call)
			}
			slots--
			r.funcs.mu.Unlock()
			time.Sleep(100 * time.Millisecond)
			r.funcs.mu.Lock()
			slots++
			r.funcs.mu.Unlock()
			return succeeds(ctx, call)
		}
	}, func(t *testing.T, r *rig) {
		const n = 1000
		begun := time.Now()
		for range n {
			r.store.put(event("f"))
		}
		sleep(time.Hour)
		ends := r.ends.of("f")
		if len(ends) != n {
			t.Fatalf("%d of %d ended", len(ends), n)
		}
		if took, ideal := ends[n-1].at.Sub(begun), 100*time.Millisecond*n/2; took > 4*ideal {
			t.Errorf("took %v, could be %v", took, ideal)
		}
		if calls := len(r.funcs.called("f")); calls > 2*n {
			t.Errorf("%d calls for %d events", calls, n)
		}
	})
}

func TestStopLetsAttemptsEndAndGivesTheRestBack(t *testing.T) {
	inBubble(t, func(r *rig, c *Config) {
		c.MaxRunning = 3
		r.funcs.handlers["f"] = lasts(time.Minute, fails)
	}, func(t *testing.T, r *rig) {
		for range 10 {
			r.store.put(event("f"))
		}
		sleep(time.Second)
		begun := time.Now()
		if err := r.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
		if took := time.Since(begun); took != 59*time.Second {
			t.Errorf("stop took %v", took)
		}
		if len(r.funcs.called("f")) != 3 || len(r.store.retries) != 3 || r.store.acks != 3 {
			t.Errorf("%d ran, %d retries are stored, %d settled; want 3 of each", len(r.funcs.called("f")), len(r.store.retries), r.store.acks)
		}
		// The next poller finds all ten: seven as they were, three with an attempt behind them.
		r.funcs.handlers["f"] = succeeds
		next := Start(r.config)
		sleep(time.Hour)
		attempts := map[int]int{}
		for _, e := range r.ends.of("f") {
			attempts[e.attempts]++
		}
		if fmt.Sprint(attempts) != "map[1:7 2:3]" {
			t.Errorf("ended after %v attempts", attempts)
		}
		if err := next.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig, c *Config) { r.funcs.handlers["f"] = lasts(15*time.Minute, fails) })
		r.store.put(event("f"), event("f"))
		sleep(time.Second)
		begun := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop: %v", err)
		}
		if took := time.Since(begun); took != 10*time.Second {
			t.Errorf("stop took %v", took)
		}
		if r.store.out != 0 || r.store.acks != 0 {
			t.Errorf("%d not settled, %d settled for good", r.store.out, r.store.acks)
		}
		sleep(time.Hour) // the attempts end, and change nothing
		if len(r.store.retries) != 0 || len(r.store.waiting) != 2 {
			t.Errorf("%d retries and %d events are stored; want the 2 events alone", len(r.store.retries), len(r.store.waiting))
		}
	})
}
