package instance

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// freezerRig is an instance whose process freezes.
func freezerRig(t *testing.T, after time.Duration) (*rig, func() *freezable) {
	var f *freezable
	r := newRig(t, func(r *rig, _ *Launch) {
		r.options.FreezeAfter = after
		r.sandbox.freezer = true
		r.options.Sandbox = catching{r.sandbox, func(p *freezable) { f = p }}
	})
	return r, func() *freezable { return f }
}

type catching struct {
	*fakeSandbox
	caught func(*freezable)
}

func (c catching) Start(ctx context.Context, config sandbox.Config) (sandbox.Process, error) {
	p, err := c.fakeSandbox.Start(ctx, config)
	if err == nil {
		f := p.(*freezable)
		f.orders = make(chan string, 64)
		c.caught(f)
	}
	return p, err
}

func order(t *testing.T, f *freezable, want string) {
	t.Helper()
	select {
	case got := <-f.orders:
		if got != want {
			t.Fatalf("order %s, want %s", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no order to %s", want)
	}
}

func TestFreezesWhenIdle(t *testing.T) {
	r, process := freezerRig(t, time.Millisecond)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	order(t, process(), "freeze")
	for n := range 3 {
		r.invoke(event(n, "{}"))
		order(t, process(), "thaw")
		if n > 0 {
			w.reply() // the 202 comes with the event
		}
		w.reply()
		if n == 1 { // a busy instance is not frozen
			time.Sleep(5 * time.Millisecond)
			if len(process().orders) != 0 {
				t.Fatal("frozen while busy")
			}
		}
		w.write(respond(event(n, ""), "1") + getNext)
		r.expect("done")
		r.expect("idle")
		order(t, process(), "freeze")
	}
}

// An event that comes while the order to freeze is on its way thaws what is frozen after it.
func TestInvokeDuringFreeze(t *testing.T) {
	r, process := freezerRig(t, time.Millisecond)
	f := process()
	f.gate = make(chan struct{})
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	f.gate <- struct{}{} // the order is under way from here on
	invoked := make(chan error, 1)
	go func() { invoked <- r.i.Invoke(event(1, "{}")) }()
	if err := <-invoked; err != nil {
		t.Fatal(err)
	}
	w.reply()
	f.fm.Lock()
	frozen := f.frozen
	f.fm.Unlock()
	if frozen {
		t.Error("frozen with an event")
	}
	close(f.gate)
	w.write(respond(event(1, ""), "1"))
	r.expect("done")
}

func TestNotFrozenWhenSwitchedOff(t *testing.T) {
	r, process := freezerRig(t, 0)
	r.dial().write(getNext)
	r.expect("ready")
	time.Sleep(5 * time.Millisecond)
	if len(process().orders) != 0 {
		t.Error("frozen")
	}
}

// stubborn does not thaw.
type stubborn struct{ *fakeProcess }

func (stubborn) Freeze() error { return nil }
func (stubborn) Thaw() error   { return errors.New("no") }

type stubbornSandbox struct{ *fakeSandbox }

func (s stubbornSandbox) Start(ctx context.Context, c sandbox.Config) (sandbox.Process, error) {
	p, err := s.fakeSandbox.Start(ctx, c)
	if err != nil {
		return nil, err
	}
	return stubborn{p.(*fakeProcess)}, nil
}

func TestDoesNotThaw(t *testing.T) {
	r := newRig(t, func(r *rig, _ *Launch) {
		r.options.FreezeAfter = time.Nanosecond
		r.options.Sandbox = stubbornSandbox{r.sandbox}
	})
	r.dial().write(getNext)
	r.expect("ready")
	for frozen := false; !frozen; time.Sleep(time.Millisecond) {
		r.i.freezer.mu.Lock()
		frozen = r.i.freezer.frozen
		r.i.freezer.mu.Unlock()
	}
	r.invoke(event(1, "{}"))
	if res := r.expect("done"); res.Outcome != Killed {
		t.Errorf("result %s", describe(res))
	}
	r.expect("ended")
}
