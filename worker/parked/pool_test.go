package parked

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

func TestEmptyUntilWanted(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		time.Sleep(time.Minute)
		if begun, _ := y.count(); begun != 0 {
			t.Error("something was parked that no function has")
		}
		p.Want([]Kind{python})
		time.Sleep(time.Second)
		if s := p.stat("python"); s.Parked != 1 || s.Target != 1 || s.Bytes != 5<<20 {
			t.Errorf("%+v a second after the first function", s)
		}
		time.Sleep(time.Hour)
		if begun, _ := y.count(); begun != 1 {
			t.Errorf("%d were parked for nobody", begun)
		}
		p.Want(nil)
		time.Sleep(grace / 2)
		if _, alive := y.count(); alive != 1 {
			t.Error("given up at once: the function may be on its way back")
		}
		time.Sleep(grace + lookEvery)
		if _, alive := y.count(); alive != 0 {
			t.Errorf("%d alive when no function has it any more", alive)
		}
		time.Sleep(2 * time.Minute)
		if stats := p.Stats(); len(stats) != 0 {
			t.Errorf("%+v remembered", stats)
		}
	})
}

func TestSizedByUse(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		p.Use(python)
		time.Sleep(time.Second)
		if hits := p.starts(t, python, 5); hits != 1 {
			t.Errorf("%d hits of a stock of 1", hits)
		}
		time.Sleep(2 * time.Second)
		if s := p.stat("python"); s.Parked != 6 || s.Target != 6 || s.Hits != 1 || s.Misses != 4 {
			t.Errorf("%+v after five starts in a second", s)
		}
		if hits := p.starts(t, python, 5); hits != 5 {
			t.Errorf("%d hits the second time", hits)
		}
		p.starts(t, python, 100)
		time.Sleep(10 * time.Second)
		if s := p.stat("python"); s.Parked != perKind {
			t.Errorf("%+v after a hundred starts", s)
		}
		time.Sleep(2 * time.Minute)
		if _, alive := y.count(); alive != 1 {
			t.Errorf("%d alive two minutes later", alive)
		}
	})
}

func TestRate(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprint("busy ", busy), func(t *testing.T) {
			in(t, func(t *testing.T, y *yard, p *Pool) {
				y.set(func() { y.busy = busy })
				p.starts(t, python, perKind)
				begin := time.Now()
				time.Sleep(10 * time.Second)
				share := idleShare
				if busy {
					share = busyShare
				}
				y.mu.Lock()
				defer y.mu.Unlock()
				for i, at := range y.parked {
					if least := settle + time.Duration(float64(i)*float64(y.takes)/share); at.Sub(begin) < least-time.Millisecond {
						t.Errorf("parking %d began after %s, %s at the soonest", i, at.Sub(begin), least)
					}
				}
				if len(y.parked) != perKind {
					t.Errorf("%d were parked", len(y.parked))
				}
			})
		})
	}
}

// TestStartsComeFirst: nothing is parked while instances start, but not for ever.
func TestStartsComeFirst(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		begin := time.Now()
		for time.Since(begin) < time.Second {
			p.starts(t, python, 1)
			time.Sleep(settle / 2)
		}
		if begun, _ := y.count(); begun == 0 || begun > int(time.Second/patience)+1 {
			t.Errorf("%d parkings in a second of starts", begun)
		}
	})
}

func TestFailuresBackOff(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		y.set(func() { y.fail = errors.New("broken") })
		p.Use(python)
		p.Use(node)
		time.Sleep(10 * time.Minute)
		if begun, _ := y.count(); begun < 20 || begun > 40 {
			t.Errorf("%d attempts in ten minutes", begun)
		}
		y.set(func() { y.fail = nil })
		time.Sleep(lastBackoff + time.Second)
		if p.stat("python").Parked != 1 || p.stat("node").Parked != 1 {
			t.Errorf("%+v", p.Stats())
		}
	})
}

func TestFailedStartIsAMiss(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		p.Use(python)
		time.Sleep(time.Second)
		y.set(func() { y.failing = errors.New("broken") })
		if _, hit, err := p.Start(t.Context(), python, sandbox.Config{}, cold); hit || err != nil {
			t.Errorf("%v %v", hit, err)
		}
		if s := p.stat("python"); s.Hits != 0 || s.Misses != 1 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Second)
		y.set(func() { y.failing = fmt.Errorf("no program: %w", sandbox.ErrEntrypoint) })
		if _, hit, err := p.Start(t.Context(), python, sandbox.Config{}, cold); !hit || !errors.Is(err, sandbox.ErrEntrypoint) {
			t.Errorf("%v %v", hit, err)
		}
	})
}

func TestTheDeadAreReplaced(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		p.Use(python)
		time.Sleep(time.Second)
		end := func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, s := range p.kinds["python"].stock {
				s.Parked.(*car).end()
			}
		}
		end()
		if hits := p.starts(t, python, 1); hits != 0 {
			t.Error("a dead one was used")
		}
		time.Sleep(time.Second)
		end()
		time.Sleep(2 * lookEvery)
		if _, alive := y.count(); p.stat("python").Parked != 2 || alive != 2 {
			t.Errorf("%+v, %d alive", p.Stats(), alive)
		}
	})
}

func TestMemory(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		p.config.MaxBytes = 22 << 20 // four of them
		p.Want([]Kind{python, node})
		p.starts(t, python, 8)
		time.Sleep(10 * time.Second)
		if s := p.stat("python"); s.Parked < 3 || s.Bytes > 22<<20 {
			t.Errorf("%+v", p.Stats())
		}
		p.starts(t, node, 3) // used last: its stock comes first
		time.Sleep(10 * time.Second)
		if p.stat("node").Parked != 4 || p.stat("python").Parked != 0 {
			t.Errorf("%+v", p.Stats())
		}
		if !p.Shrink() || p.Shrink() {
			t.Error("Shrink does not say whether there was something")
		}
		time.Sleep(lastBackoff / 2)
		if _, alive := y.count(); alive != 0 {
			t.Error("memory that an instance needed was taken again at once")
		}
		y.set(func() { y.full = true })
		time.Sleep(2 * lastBackoff)
		if _, alive := y.count(); alive != 0 {
			t.Error("parked without memory")
		}
		y.set(func() { y.full = false })
		time.Sleep(lastBackoff + time.Second)
		if _, alive := y.count(); alive == 0 {
			t.Error("nothing was parked when there was memory again")
		}
	})
}

func TestCloseWhileParking(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		y.set(func() { y.takes = time.Hour })
		p.Use(python)
		time.Sleep(time.Second)
	})
}

func TestManyKinds(t *testing.T) {
	in(t, func(t *testing.T, y *yard, p *Pool) {
		var kinds []Kind
		for i := range 2 * maxKinds {
			kinds = append(kinds, Kind{Name: fmt.Sprint("k", i)})
		}
		p.Want(kinds)
		time.Sleep(time.Minute)
		if _, alive := y.count(); len(p.Stats()) > maxKinds || alive > 40 {
			t.Errorf("%d kinds, %d alive", len(p.Stats()), alive)
		}
		p.Missed(Kind{Name: "other"})
	})
}
