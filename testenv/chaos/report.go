//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/doze-run/doze/testenv/history"
)

// tally is one line about a history.
func tally(h []history.Event) string {
	var answered, failed, accepted, refused, operations, unanswered int
	async, ended := map[string]bool{}, map[string]bool{}
	for _, e := range h {
		switch e.Kind {
		case history.Ask:
			async[e.Call] = e.Async
		case history.Answer:
			switch {
			case async[e.Call] && e.Status == 202:
				accepted++
			case async[e.Call]:
				refused++
			case e.Status == 200 && !e.Failed:
				answered++
			default:
				failed++
			}
		case history.End:
			if async[e.Call] && !e.Failed {
				ended[e.Call] = true
			}
		case history.Left:
			ended[e.Call] = true
		case history.Done:
			operations++
			if e.Status == 0 || e.Status >= 500 {
				unanswered++
			}
		}
	}
	return fmt.Sprintf("calls: %d answered, %d failed; events: %d accepted, %d ended, %d refused; operations: %d, %d failed",
		answered, failed, accepted, len(ended), refused, operations, unanswered)
}

// looked is how long after a fault something that happens is taken to be because of it.
const looked = 15 * time.Second

// measured says of each fault what callers noticed: how long until a change was acknowledged again, which calls
// failed and how long after the fault the last of their callers was told, and the longest wait of those that did not.
func measured(h []history.Event) (lines []string) {
	type ask struct {
		at    int64
		node  string
		async bool
	}
	asks, operates := map[string]ask{}, map[string]history.Event{}
	for _, e := range h {
		switch e.Kind {
		case history.Ask:
			asks[e.Call] = ask{e.At, e.Node, e.Async}
		case history.Operate:
			operates[e.Op] = e
		}
	}
	var last history.Event
	for i, f := range h {
		verb, _, _ := strings.Cut(f.Does, " ")
		if f.Kind != history.Fault || slices.Contains([]string{"start", "cont", "heal", "free", "wipe"}, verb) {
			continue
		}
		if last.Kind != "" && f.At-last.At < int64(100*time.Millisecond) {
			continue // one of several at once
		}
		last = f
		until := f.At + int64(looked)
		for _, e := range h[i+1:] { // until the next fault, at most
			if e.Kind == history.Fault && e.At-f.At > int64(100*time.Millisecond) && !strings.HasPrefix(e.Does, "heal") {
				until = min(until, e.At)
				break
			}
		}
		var write, told, slowest time.Duration
		failed, elsewhere := 0, 0
		for _, e := range h[i+1:] {
			if e.At > until {
				break
			}
			switch e.Kind {
			case history.Done:
				if o := operates[e.Op]; write == 0 && o.At > f.At && o.Does != "get" && (e.Status/100 == 2) {
					write = time.Duration(e.At - f.At)
				}
			case history.Answer:
				a := asks[e.Call]
				if a.async {
					continue
				}
				if e.Status != 200 {
					if a.at < f.At {
						failed++
						told = time.Duration(e.At - f.At)
					} else if a.node != f.Node {
						elsewhere++
					}
					continue
				}
				slowest = max(slowest, time.Duration(e.At-a.at))
			}
		}
		text := fmt.Sprintf("%s: ", f.Does)
		if write > 0 {
			text += fmt.Sprintf("a change acknowledged after %v; ", write.Round(time.Millisecond))
		}
		if failed > 0 {
			text += fmt.Sprintf("%d calls under way failed, the last was told after %v; ", failed, told.Round(time.Millisecond))
		}
		text += fmt.Sprintf("%d later calls by way of other nodes failed; slowest answer %v", elsewhere, slowest.Round(time.Millisecond))
		lines = append(lines, "measured  "+text)
	}
	return lines
}
