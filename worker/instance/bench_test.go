package instance

import (
	"fmt"
	"io"
	"testing"
	"time"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// turnstile invokes again as soon as the runtime asks: the round of one instance, without anybody's
// queue.
type turnstile struct {
	left  int
	next  Event
	ended chan struct{}
	done  chan struct{}
	bad   *Result
}

func (h *turnstile) Ready(i *Instance, _ time.Duration) { h.Idle(i) }
func (h *turnstile) Idle(i *Instance) {
	if h.left == 0 {
		close(h.done)
		return
	}
	h.left--
	if err := i.Invoke(&h.next); err != nil {
		panic(err)
	}
}
func (h *turnstile) Done(_ *Instance, r *Result) {
	if r.Outcome != OK {
		h.bad = r
	}
}
func (h *turnstile) Ended(*Instance) { close(h.ended) }

type nowhere struct{}

func (nowhere) Lines(*dozev1.FunctionSpec, string, int64, [][]byte) {}

func rounds(b *testing.B, options *Options, launch *Launch, function func(*Instance)) {
	h := &turnstile{left: b.N, next: *event(1, `{"hello":"world"}`), ended: make(chan struct{}), done: make(chan struct{})}
	b.ReportAllocs()
	options.Logs = nowhere{}
	i, err := Start(b.Context(), options, launch, h)
	if err != nil {
		b.Fatal(err)
	}
	if function != nil {
		go function(i)
	}
	select {
	case <-h.done:
	case <-h.ended:
		b.Fatalf("ended: %s", describe(h.bad))
	}
	b.StopTimer()
	i.Stop()
	<-h.ended
	if h.bad != nil {
		b.Fatal(describe(h.bad))
	}
}

// Against a client in this process: what the platform's side of a round costs, client included.
func BenchmarkRound(b *testing.B) {
	r := newRig(b)
	launch := *r.i.launch
	launch.CodeDir = codeWithBootstrap(b)
	rounds(b, r.options, &launch, func(i *Instance) {
		r.process = r.sandbox.process
		w := r.dial()
		_ = w.nc.SetDeadline(time.Time{})
		request := []byte(respond(event(1, ""), `{"hello":"world"}`) + getNext)
		buf := make([]byte, 64<<10)
		_, _ = io.WriteString(w.nc, getNext)
		for {
			if _, err := w.nc.Read(buf); err != nil {
				return
			}
			if _, err := w.nc.Write(request); err != nil {
				return
			}
		}
	})
}

func BenchmarkPython(b *testing.B) {
	r := startReal(b, interpreter(b, "python3"), "app.handler", map[string]string{"app.py": "def handler(event, context): return event\n"})
	rounds(b, r.options, r.i.launch, nil)
}

func BenchmarkNode(b *testing.B) {
	r := startReal(b, interpreter(b, "nodejs"), "index.handler", map[string]string{"index.js": "exports.handler = async (event) => event;\n"})
	rounds(b, r.options, r.i.launch, nil)
}

// From Start to Ready, without a sandbox's own cost.
func BenchmarkInit(b *testing.B) {
	for _, c := range []struct{ prefix, handler, file, source string }{
		{"python3", "app.handler", "app.py", "def handler(event, context): return event\n"},
		{"nodejs", "index.handler", "index.js", "exports.handler = async (event) => event;\n"},
	} {
		b.Run(c.prefix, func(b *testing.B) {
			r := startReal(b, interpreter(b, c.prefix), c.handler, map[string]string{c.file: c.source})
			r.expect("ready")
			for n := range b.N {
				h := newRecorder()
				launch := *r.i.launch
				launch.ID = fmt.Sprint("i-", n)
				i, err := Start(b.Context(), r.options, &launch, h)
				if err != nil {
					b.Fatal(err)
				}
				<-h.said
				b.StopTimer()
				i.Stop()
				<-h.said
				b.StartTimer()
			}
		})
	}
}
