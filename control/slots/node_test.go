package slots

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// net is a network among nodes in one process, in synctest's time. Messages take a while, overtake one
// another, and are lost where it is cut.
type net struct {
	calm bool // no message is late
	t    *testing.T
	rnd  *rand.Rand

	mu     sync.Mutex
	all    []string
	nodes  map[string]*Node
	hears  map[string]func([]byte) []byte
	cut    map[[2]string]bool
	limit  int
	lives  int
	runs   map[string]int // executions now, by function
	most   map[string]int
	calls  int
	full   int
	away   int
	refuse int
}

var errCut = errors.New("cut")

func newNet(t *testing.T, seed uint64, nodes, limit int) *net {
	n := &net{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), nodes: map[string]*Node{}, hears: map[string]func([]byte) []byte{},
		cut: map[[2]string]bool{}, limit: limit, runs: map[string]int{}, most: map[string]int{},
	}
	for i := range nodes {
		n.all = append(n.all, fmt.Sprint("c", i+1))
	}
	return n
}

func (n *net) random(most time.Duration) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Duration(n.rnd.Int64N(int64(most)))
}

func (n *net) start(node string, clean bool) {
	n.t.Helper()
	n.mu.Lock()
	n.lives++
	boot := fmt.Sprint(node, "-", n.lives)
	n.mu.Unlock()
	opened, err := Open(Config{
		Node: node, Boot: boot, Wire: &wire{net: n, node: node, boot: boot}, Clean: clean, Logger: slog.New(slog.DiscardHandler),
		Members: func() []string { return n.all },
		Limit:   func(_, _ string) (int, bool) { return n.limit, true },
		Longest: func(_, _ string) time.Duration { return runLimit },
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[node] = opened
}

// kill ends a node as kill -9 does.
func (n *net) kill(node string) {
	n.mu.Lock()
	killed := n.nodes[node]
	delete(n.nodes, node)
	delete(n.hears, node)
	n.mu.Unlock()
	killed.stop()
	killed.running.Wait()
}

func (n *net) close() {
	defer time.Sleep(10 * time.Second) // what is still on its way ends
	for _, m := range n.all {
		n.mu.Lock()
		node := n.nodes[m]
		n.mu.Unlock()
		if node != nil {
			if _, err := node.Close(); err != nil {
				n.t.Error(err)
			}
		}
	}
}

// wire is the network as one life of a node has it.
type wire struct {
	net        *net
	node, boot string
}

// living is the node's own life if it has not been killed.
func (w *wire) living() bool {
	x := w.net.nodes[w.node]
	return x == nil && w.net.hears[w.node] != nil || x != nil && x.config.Boot == w.boot
}

// late is how long a message takes: one in fifty as long as if somebody on the way had been frozen.
func (n *net) late() time.Duration {
	if !n.calm && n.random(50) == 0 {
		return n.random(4 * time.Second)
	}
	return n.random(3 * time.Millisecond)
}

func (w *wire) carry(to string, message []byte) ([]byte, error) {
	time.Sleep(w.net.late())
	w.net.mu.Lock()
	hear, lost := w.net.hears[to], w.net.cut[[2]string{w.node, to}] || !w.living()
	w.net.mu.Unlock()
	if hear == nil || lost {
		return nil, errCut
	}
	answer := hear(message)
	time.Sleep(w.net.late())
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	if w.net.cut[[2]string{to, w.node}] || !w.living() {
		return nil, errCut
	}
	return answer, nil
}

func (w *wire) AskNode(ctx context.Context, node, _ string, request []byte) ([]byte, error) {
	came := make(chan []byte, 1)
	go func() {
		if answer, err := w.carry(node, request); err == nil {
			came <- answer
		}
	}()
	select {
	case answer := <-came:
		return answer, nil
	case <-ctx.Done(): // nobody says that it is lost
		return nil, ctx.Err()
	}
}

func (w *wire) TellNode(node, _ string, message []byte) error {
	go func() { _, _ = w.carry(node, message) }()
	return nil
}

func (w *wire) HearNode(_ string, answer func([]byte) []byte) (func() error, error) {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	w.net.hears[w.node] = answer
	return func() error {
		w.net.mu.Lock()
		defer w.net.mu.Unlock()
		delete(w.net.hears, w.node)
		return nil
	}, nil
}

func (w *wire) Favourite(name string) string {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	for i := range w.net.all {
		m := w.net.all[(int(name[len(name)-1])+i)%len(w.net.all)]
		if w.net.hears[m] != nil && !w.net.cut[[2]string{w.node, m}] {
			return m
		}
	}
	return ""
}

// runLimit is the functions' timeout.
const runLimit = 2 * time.Second

// call makes one call by way of a node: it waits for an instance, runs for a while wherever that is, and
// comes back. Of a killed node nothing begins, and what has begun goes on.
func (n *net) call(ctx context.Context, by, function string) {
	n.mu.Lock()
	node := n.nodes[by]
	n.mu.Unlock()
	if node == nil {
		time.Sleep(10 * time.Millisecond)
		return
	}
	slot, err := node.Take("1", function, function, n.limit, runLimit)
	if err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		if errors.Is(err, ErrFull) {
			n.full++
		} else {
			n.away++
		}
		return
	}
	time.Sleep(n.random(300 * time.Millisecond)) // the queue, the start
	n.mu.Lock()
	alive := n.nodes[by] == node
	n.mu.Unlock()
	if !alive {
		return
	}
	if !slot.MayBegin() {
		n.mu.Lock()
		n.refuse++
		n.mu.Unlock()
		slot.End(0)
		return
	}
	if n.random(100) < 5 {
		time.Sleep(Slack - time.Second - 1) // it begins late
	}
	n.mu.Lock()
	n.runs[function]++
	n.most[function] = max(n.most[function], n.runs[function])
	if n.runs[function] > n.limit {
		n.t.Errorf("%d executions of %s at once", n.runs[function], function)
	}
	n.mu.Unlock()
	time.Sleep(n.random(runLimit))
	n.mu.Lock()
	n.runs[function]--
	n.calls++
	alive = n.nodes[by] == node
	n.mu.Unlock()
	if alive {
		slot.End(0)
	}
}

// load calls functions by way of all nodes until ctx ends.
func (n *net) load(ctx context.Context, callers int) *sync.WaitGroup {
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			for call := i; ctx.Err() == nil; call++ {
				n.call(ctx, n.all[i%len(n.all)], fmt.Sprint("f", call%5))
				time.Sleep(n.random(200 * time.Millisecond))
			}
		})
	}
	return &group
}

// Whatever dies, is cut off, comes back: there are never more executions than the cap. And it does not stand
// still.
func TestNeverAboveTheCap(t *testing.T) {
	for seed, nodes := range []int{3, 3, 3, 5, 5} {
		seed := uint64(seed)
		t.Run(fmt.Sprint(nodes, " nodes, seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNet(t, seed, nodes, 4)
				for _, m := range n.all {
					n.start(m, true)
				}
				ctx, stop := context.WithCancel(context.Background())
				load := n.load(ctx, 30)
				time.Sleep(5 * time.Second)
				for range 15 {
					m, other := n.any(), n.any()
					switch n.random(6) {
					case 0, 1:
						n.kill(m)
						time.Sleep(n.random(6 * time.Second))
						n.start(m, false)
					case 2:
						for _, o := range n.all { // cut off
							n.sever(m, o, true)
						}
					case 3:
						n.sever(m, other, n.random(2) == 0) // one way or both
					case 4:
						n.kill(m)
						if o := other; o != m {
							n.kill(o)
							time.Sleep(n.random(time.Second))
							n.start(o, false)
						}
						n.start(m, false)
					case 5:
						n.mu.Lock()
						node := n.nodes[m]
						n.mu.Unlock()
						clean, err := node.Close()
						if err != nil {
							t.Error(err)
						}
						n.kill(m) // what is left of its calls
						n.start(m, clean)
					}
					time.Sleep(n.random(5 * time.Second))
					n.heal()
					time.Sleep(n.random(2 * time.Second))
				}
				// Once all is well for long enough, all of the cap is used.
				time.Sleep(15 * time.Second)
				n.mu.Lock()
				before, full := n.calls, n.full
				n.mu.Unlock()
				time.Sleep(20 * time.Second)
				n.mu.Lock()
				// 5 functions, 4 at once, a second each and something between.
				if done := n.calls - before; done < 200 {
					t.Errorf("%d calls in 20 s when all was well, %d refused", done, n.full-full)
				}
				t.Logf("%d calls ended, %d refused for the cap, %d for want of a home, %d lost their right; most at once %v", n.calls, n.full, n.away, n.refuse, n.most)
				n.mu.Unlock()
				stop()
				load.Wait()
				n.close()
			})
		})
	}
}

func (n *net) any() string { return n.all[n.random(time.Duration(len(n.all)))] }

func (n *net) sever(a, b string, both bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a == b {
		return
	}
	n.cut[[2]string{a, b}] = true
	if both {
		n.cut[[2]string{b, a}] = true
	}
}

func (n *net) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// The home dies and stays dead: the others grant within a few terms, what it held aside.
func TestHomeIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNet(t, 1, 3, 4)
		n.calm = true // it is how long a take-over takes that nothing else delays
		for _, m := range n.all {
			n.start(m, true)
		}
		defer n.close()
		take := func(by string) error {
			slot, err := n.nodes[by].Take("1", "f", "f", 4, runLimit)
			if err == nil {
				slot.End(0)
			}
			return err
		}
		if err := take("c1"); err != nil {
			t.Fatal(err)
		}
		home := n.nodes["c1"].holder.End(Lease{Key: "f"})
		n.kill(home)
		for _, m := range n.all {
			if m == home {
				continue
			}
			begun := time.Now()
			if err := take(m); err != nil {
				t.Errorf("%s after %v: %v", m, time.Since(begun), err)
			}
			t.Logf("%s was granted a slot after %v", m, time.Since(begun))
		}
	})
}
