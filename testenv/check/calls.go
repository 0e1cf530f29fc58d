package check

import (
	"strings"
	"time"

	"github.com/doze-run/doze/testenv/history"
)

// slack is what a caller waits at most beside the function's timeout.
const slack = 5 * time.Second

// answers holds that nobody waits longer than was promised, and that a caller was told once. A node that is stopped
// (SIGSTOP) answers nobody by itself: the time that it was stopped for is not counted.
func answers(h []history.Event) (found []Violation) {
	stops := stopped(h)
	for _, c := range calls(h) {
		if c.ask.Kind == "" || c.ask.Async {
			continue
		}
		switch len(c.answers) {
		case 0:
			found = append(found, violation(c.ask.At, "call %s of %s by way of %s was never answered", c.id, c.ask.Function, c.ask.Node))
			continue
		case 1:
		default:
			found = append(found, violation(c.answers[1].At, "call %s was answered %d times", c.id, len(c.answers)))
		}
		a := c.answers[0]
		took := time.Duration(a.At-c.ask.At) - stops.during(c.ask.Node, c.ask.At, a.At)
		if limit := time.Duration(c.ask.Limit)*time.Millisecond + slack; took > limit {
			found = append(found, violation(a.At, "call %s of %s by way of %s was answered (%d %s) after %v, promised were %v",
				c.id, c.ask.Function, c.ask.Node, a.Status, a.Error, took.Round(time.Millisecond), limit))
		}
	}
	return found
}

// caughtUp is how long after a cut has healed a control node may take to hear from the leader what it missed. An
// update waits as long for nodes that can be reached.
const caughtUp = 2 * time.Second

// cutOff are the times in which nodes could not hear of a change: nobody's update waits for them, and they go on with
// calls of what they know.
func cutOff(h []history.Event) spans {
	all := spans{}
	since := map[string]int64{}
	end := func(node string, at int64) {
		if from, ok := since[node]; ok {
			all[node] = append(all[node], span{from, at + int64(caughtUp)})
			delete(since, node)
		}
	}
	for _, e := range h {
		if e.Kind != history.Fault {
			continue
		}
		switch does, _, _ := strings.Cut(e.Does, " "); does {
		case "partition", "deafen", "flap", "stop":
			if _, ok := since[e.Node]; !ok {
				since[e.Node] = e.At
			}
		case "cont", "kill":
			end(e.Node, e.At)
		case "heal":
			for node := range since {
				end(node, e.At)
			}
		}
	}
	for node, from := range since {
		all[node] = append(all[node], span{from, h[len(h)-1].At})
	}
	return all
}

// span is a time in which a node was stopped.
type span struct{ from, to int64 }

type spans map[string][]span

// stopped are the times in which nodes were stopped. Faults say "stop" and "cont".
func stopped(h []history.Event) spans {
	all := spans{}
	since := map[string]int64{}
	var last int64
	for _, e := range h {
		last = e.At
		if e.Kind != history.Fault {
			continue
		}
		switch does, _, _ := strings.Cut(e.Does, " "); does {
		case "stop":
			if _, ok := since[e.Node]; !ok {
				since[e.Node] = e.At
			}
		case "cont", "kill":
			if from, ok := since[e.Node]; ok {
				all[e.Node] = append(all[e.Node], span{from, e.At})
				delete(since, e.Node)
			}
		}
	}
	for node, from := range since {
		all[node] = append(all[node], span{from, last})
	}
	return all
}

// during is how long of a time a node was stopped.
func (s spans) during(node string, from, to int64) (sum time.Duration) {
	for _, p := range s[node] {
		if a, b := max(p.from, from), min(p.to, to); a < b {
			sum += time.Duration(b - a)
		}
	}
	return sum
}

// callers holds that an answer says of itself that it belongs to the call that got it.
func callers(h []history.Event) (found []Violation) {
	runs := map[string]string{} // the call of a run
	for _, e := range h {
		if e.Kind == history.Begin {
			runs[e.Run] = e.Call
		}
	}
	for _, c := range calls(h) {
		for _, a := range c.answers {
			if a.Of != "" && a.Of != c.id {
				found = append(found, violation(a.At, "call %s got the answer of %s", c.id, a.Of))
			}
			if of := runs[a.Run]; a.Run != "" && of != c.id {
				found = append(found, violation(a.At, "call %s got the answer of run %s, which ran %q", c.id, a.Run, of))
			}
		}
	}
	return found
}

// once holds that a sync call reached a handler at most once.
func once(h []history.Event) (found []Violation) {
	for _, c := range calls(h) {
		if c.ask.Kind != "" && !c.ask.Async && len(c.begins) > 1 {
			found = append(found, violation(c.begins[1].At, "call %s of %s ran %d times: %s and %s", c.id, c.ask.Function, len(c.begins), c.begins[0].Run, c.begins[1].Run))
		}
	}
	return found
}

// events holds that what was accepted came to an end. All functions of a run that fail have a destination.
func events(h []history.Event) (found []Violation) {
next:
	for _, c := range calls(h) {
		if !c.accepted() || len(c.left) > 0 {
			continue
		}
		for _, e := range c.ends {
			if !e.Failed {
				continue next
			}
		}
		found = append(found, violation(c.ask.At, "event %s of %s was accepted by %s and has no end (%d runs began, %d ended)",
			c.id, c.ask.Function, c.ask.Node, len(c.begins), len(c.ends)))
	}
	return found
}

// updates holds that what an update replaced does not run any more for who asks after the update's success, by way
// of a node that could have heard of it.
func updates(h []history.Event) (found []Violation) {
	cuts := cutOff(h)
	current := map[string]int64{} // of a function, the newest number that was Successful so far
	least := map[string]int64{}   // of a call
	asked := map[string]string{}
	pending := map[string]history.Event{}
	for _, e := range h {
		switch e.Kind {
		case history.Operate:
			if e.Does == "code" {
				pending[e.Op] = e
			}
		case history.Done:
			if op, ok := pending[e.Op]; ok && e.Status == 200 {
				current[op.Function] = max(current[op.Function], op.Code)
			}
		case history.Ask:
			if !e.Async && cuts.during(e.Node, e.At, e.At+1) == 0 { // an event runs what is current when it runs, which its ask does not bound less tightly
				least[e.Call], asked[e.Call] = current[e.Function], e.Function
			}
		case history.Begin:
			if e.Code < least[e.Call] {
				found = append(found, violation(e.At, "call %s of %s ran code %d; code %d was Successful when it was asked", e.Call, asked[e.Call], e.Code, least[e.Call]))
			}
		}
	}
	return found
}

// concurrency holds that what certainly ran at once stayed within the caps. A run of which no end is known counts
// for the moment of its beginning only.
func concurrency(h []history.Event, caps map[string]int) (found []Violation) {
	ends := map[string]int64{}
	for _, e := range h {
		if e.Kind == history.End {
			ends[e.Run] = e.At
		}
	}
	running := map[string]map[string]bool{}
	reported := map[string]bool{}
	for _, e := range h {
		switch e.Kind {
		case history.Begin:
			limit, capped := caps[e.Function]
			if !capped {
				continue
			}
			if running[e.Function] == nil {
				running[e.Function] = map[string]bool{}
			}
			if n := len(running[e.Function]) + 1; n > limit && !reported[e.Function] {
				reported[e.Function] = true
				found = append(found, violation(e.At, "%d runs of %s at once, of which %d are reserved", n, e.Function, limit))
			}
			if _, ok := ends[e.Run]; ok {
				running[e.Function][e.Run] = true
			}
		case history.End:
			for _, runs := range running {
				delete(runs, e.Run)
			}
		}
	}
	return found
}
