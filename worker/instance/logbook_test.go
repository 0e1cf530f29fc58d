package instance

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What is printed before the response is in this invocation's log, in order, with both kinds of
// output.
func TestOutputBelongsToItsInvocation(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain %v", plain), func(t *testing.T) {
			r := newRig(t, func(r *rig, _ *Launch) { r.sandbox.plain = plain })
			fmt.Fprintln(r.process.stdout, "from init")
			w := r.dial()
			w.write(getNext)
			r.expect("ready")
			for n := range 20 {
				e := event(n, "{}")
				e.Tail = n%2 == 0
				r.invoke(e)
				w.reply()
				fmt.Fprintf(r.process.stdout, "one %d\ntwo %d\nno newline", n, n)
				w.write(respond(e, "1"))
				res := r.expect("done")
				if (len(res.LogTail) > 0) != e.Tail {
					t.Fatalf("tail %q", res.LogTail)
				}
				if e.Tail && !plain { // without a pollable descriptor a line may count to the next invocation
					want := fmt.Sprintf("START RequestId: %[1]s Version: $LATEST\none %[2]d\ntwo %[2]d\nno newline\nEND RequestId: %[1]s\nREPORT RequestId: %[1]s\tDuration: ", e.RequestID, n)
					if !strings.HasPrefix(string(res.LogTail), want) {
						t.Fatalf("tail %q, want %q", res.LogTail, want)
					}
				}
				w.reply()
				w.write(getNext)
				r.expect("idle")
			}
			r.i.Stop()
			r.expect("ended")
			report := regexp.MustCompile(`(?m)^START RequestId: (\S+) Version: \$LATEST\none \d+\ntwo \d+\nno newline\nEND RequestId: \S+\nREPORT RequestId: \S+\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t(Init Duration: \d+\.\d\d ms\t)?$`)
			if plain {
				printed := regexp.MustCompile(`(?m)^(one|two|no) .*$`).FindAllString(r.logs.String(), -1)
				for n := range 20 {
					want := []string{fmt.Sprint("one ", n), fmt.Sprint("two ", n), "no newline"}
					if at := 3 * n; len(printed) < at+3 || !slices.Equal(printed[at:at+3], want) {
						t.Fatalf("invocation %d: printed %q", n, printed)
					}
				}
			} else if got := report.FindAllString(r.logs.String(), -1); len(got) != 20 || !strings.Contains(got[0], "Init Duration") || strings.Contains(got[1], "Init Duration") {
				t.Errorf("%d whole invocations in %q", len(got), r.logs)
			}
			if !strings.HasPrefix(r.logs.String(), "INIT_START Runtime Version: provided.al2023\n") || !strings.Contains(r.logs.String(), "\nfrom init\n") {
				t.Errorf("log %q", r.logs)
			}
		})
	}
}

func TestTailIsTheLastOfIt(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	e := event(1, "{}")
	e.Tail = true
	r.invoke(e)
	w.reply()
	for n := range 1000 {
		fmt.Fprintf(r.process.stdout, "line %d\n", n)
	}
	w.write(respond(e, "1"))
	tail := string(r.expect("done").LogTail)
	if len(tail) != LogTailBytes || !strings.Contains(tail, "\nline 999\nEND") || !strings.HasSuffix(tail, "ms\t\n") {
		t.Errorf("%d bytes: %q", len(tail), tail)
	}
}

func newTestBook() (*logbook, *lines) {
	sink := &lines{}
	return newLogbook(sink, testSpec(), "stream"), sink
}

func TestLongLinesAreCut(t *testing.T) {
	b, sink := newTestBook()
	b.output(bytes.Repeat([]byte("a"), 2*MaxLineBytes+5))
	b.output([]byte("\n\nb\n"))
	b.output(append(bytes.Repeat([]byte("c"), MaxLineBytes), '\n')) // just fits
	b.close()
	var lens []int
	for _, l := range sink.text {
		lens = append(lens, len(l))
	}
	if got, want := fmt.Sprint(lens), fmt.Sprint([]int{MaxLineBytes, MaxLineBytes, 5, 0, 1, MaxLineBytes}); got != want {
		t.Errorf("lines of %s bytes, want %s", got, want)
	}
}

func TestEndlessOutputIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, sink := newTestBook()
		chunk := append(bytes.Repeat([]byte("y"), 1023), '\n')
		const seconds = 10
		total := 0
		for range seconds * 100 { // 100 MB/s
			for range 1000 {
				b.output(chunk)
				total += len(chunk)
			}
			b.mu.Lock()
			held := len(b.text)
			b.mu.Unlock()
			if held > batchBytes+MaxLineBytes {
				t.Fatalf("holds %d bytes", held)
			}
			time.Sleep(10 * time.Millisecond)
		}
		b.close()
		kept, dropped, notes := 0, 0, 0
		for _, l := range sink.text {
			var n int
			if _, err := fmt.Sscanf(l, "[doze] dropped %d bytes of output: more than 1 MB a second", &n); err == nil {
				dropped += n
				notes++
				continue
			}
			kept += len(l) + 1
		}
		if kept+dropped != total {
			t.Errorf("%d kept + %d dropped of %d", kept, dropped, total)
		}
		if most := outputBurst + seconds*outputRate; kept > most || kept < most/2 {
			t.Errorf("%d kept, at most %d should be", kept, most)
		}
		if notes > seconds+1 {
			t.Errorf("%d notes", notes)
		}
	})
}

// A reader that must keep up with endless output does not keep an invocation from its end.
func TestEndlessOutputDuringCalls(t *testing.T) {
	r := newRig(t)
	w := r.dial()
	w.write(getNext)
	r.expect("ready")
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		chunk := []byte(strings.Repeat("yyyyyyy\n", 4096))
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := r.process.stdout.Write(chunk); err != nil {
				return
			}
		}
	}()
	for n := range 10 {
		r.invoke(event(n, "{}"))
		w.reply()
		w.write(respond(event(n, ""), "1"))
		r.expect("done")
		w.reply()
		w.write(getNext)
		r.expect("idle")
	}
	close(stop)
	<-stopped
}

func TestLinesAreFlushedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, sink := newTestBook()
		b.output([]byte("one\n"))
		time.Sleep(flushAfter / 2)
		b.output([]byte("two\nbegun"))
		time.Sleep(flushAfter/2 + time.Millisecond)
		synctest.Wait()
		if sink.String() != "one\ntwo" || sink.calls != 1 {
			t.Errorf("sink has %q after %d calls", sink, sink.calls)
		}
		b.close()
		if sink.String() != "one\ntwo\nbegun" {
			t.Errorf("sink has %q", sink)
		}
	})
}

func TestOneSinkCallForAShortInvocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, sink := newTestBook()
		for n := range 100 {
			e := event(n, "")
			b.start(time.Now(), e, "1")
			b.output([]byte("hello\n"))
			b.end(time.Now(), e.RequestID, &report{})
		}
		if sink.calls != 100 || len(sink.text) != 400 {
			t.Errorf("%d calls, %d lines", sink.calls, len(sink.text))
		}
		b.close()
	})
}

// blocked is an output nobody ends: what a process that escaped holds open.
func TestOutputThatStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := newTestBook()
		pr, pw := io.Pipe()
		o := newOutputReader(struct {
			io.Reader
			buffered
		}{pr, buffered{}}, b)
		go o.run()
		began := time.Now()
		if o.finish() || time.Since(began) != outputGrace {
			t.Errorf("finished after %v", time.Since(began))
		}
		pw.Close()
		<-o.ended
		b.close()
	})
}

type buffered struct{}

func (buffered) Buffered() (int, error) { return 0, nil }
