package load

import (
	"bufio"
	"encoding/json"
	"net"
	"sync"

	"github.com/doze-run/doze/testenv/history"
)

// Recorder is told by handlers, over connections of their own and past the platform, what they run.
type Recorder struct {
	log *history.Log
	l   net.Listener

	mu      sync.Mutex
	seen    map[string]bool   // what was written down, by kind and run: a line whose answer was lost comes again
	open    map[string]string // runs without an end, and their calls
	conns   map[net.Conn]bool
	closed  bool
	serving sync.WaitGroup
}

// Record takes what handlers say at l, until Close.
func Record(l net.Listener, log *history.Log) *Recorder {
	r := &Recorder{log: log, l: l, seen: map[string]bool{}, open: map[string]string{}, conns: map[net.Conn]bool{}}
	r.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			if r.closed {
				r.mu.Unlock()
				c.Close()
				return
			}
			r.conns[c] = true
			r.mu.Unlock()
			r.serving.Go(func() { r.serve(c) })
		}
	})
	return r
}

// Addr is where handlers reach it.
func (r *Recorder) Addr() string { return r.l.Addr().String() }

// Running is how many runs have begun and not ended.
func (r *Recorder) Running() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// Close hangs up.
func (r *Recorder) Close() {
	r.mu.Lock()
	r.closed = true
	r.l.Close()
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.serving.Wait()
}

// serve writes down one instance's lines, and answers each when it has. An instance that ends without a word ends
// its connection.
func (r *Recorder) serve(c net.Conn) {
	runs := map[string]bool{}
	defer func() {
		c.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
		for run := range runs {
			if call, ok := r.open[run]; ok && !r.closed {
				delete(r.open, run)
				r.log.Add(history.Event{Kind: history.Gone, Call: call, Run: run})
			}
		}
	}()
	lines := bufio.NewReader(c)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var e history.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return
		}
		r.mu.Lock()
		if key := string(e.Kind) + " " + e.Run; !r.seen[key] {
			r.seen[key] = true
			switch e.Kind {
			case history.Begin:
				r.open[e.Run] = e.Call
				runs[e.Run] = true
			case history.End:
				delete(r.open, e.Run)
				delete(runs, e.Run)
			}
			r.log.Add(e)
		}
		r.mu.Unlock()
		if _, err := c.Write([]byte("\n")); err != nil {
			return
		}
	}
}
