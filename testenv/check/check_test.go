package check

import (
	"strings"
	"testing"

	"github.com/doze-run/doze/testenv/history"
)

const ms = 1_000_000

// good is a history that keeps every promise: a sync call, an event that succeeds at its second attempt, one that
// fails for good, operations, an update of code, and a worker's death.
func good() []history.Event {
	return []history.Event{
		{At: 0, Kind: history.Operate, Op: "o1", Does: "create", Function: "r", Value: "a", Node: "c1"},
		{At: 5 * ms, Kind: history.Done, Op: "o1", Status: 201},
		{At: 6 * ms, Kind: history.Operate, Op: "o2", Does: "update", Function: "r", Value: "b", Node: "c2"},
		{At: 7 * ms, Kind: history.Operate, Op: "o3", Does: "get", Function: "r", Node: "c3"},
		{At: 9 * ms, Kind: history.Done, Op: "o3", Status: 200, Value: "b"},
		{At: 9 * ms, Kind: history.Done, Op: "o2", Error: "connection reset"},
		{At: 10 * ms, Kind: history.Operate, Op: "o4", Does: "code", Function: "f", Code: 1},
		{At: 12 * ms, Kind: history.Done, Op: "o4", Status: 200},
		{At: 20 * ms, Kind: history.Ask, Call: "s1", Function: "f", Node: "c1", Limit: 1000},
		{At: 21 * ms, Kind: history.Begin, Call: "s1", Function: "f", Run: "i1.1", Code: 1},
		{At: 22 * ms, Kind: history.End, Call: "s1", Run: "i1.1"},
		{At: 23 * ms, Kind: history.Answer, Call: "s1", Status: 200, Of: "s1", Run: "i1.1"},
		{At: 30 * ms, Kind: history.Ask, Call: "e1", Function: "f", Node: "c2", Async: true},
		{At: 31 * ms, Kind: history.Answer, Call: "e1", Status: 202},
		{At: 32 * ms, Kind: history.Begin, Call: "e1", Function: "f", Run: "i1.2", Code: 1},
		{At: 33 * ms, Kind: history.Fault, Node: "w1", Does: "kill w1"},
		{At: 34 * ms, Kind: history.Gone, Call: "e1", Run: "i1.2"},
		{At: 40 * ms, Kind: history.Begin, Call: "e1", Function: "f", Run: "i2.1", Code: 1},
		{At: 41 * ms, Kind: history.End, Call: "e1", Run: "i2.1"},
		{At: 50 * ms, Kind: history.Ask, Call: "e2", Function: "f", Node: "c2", Async: true},
		{At: 51 * ms, Kind: history.Answer, Call: "e2", Status: 202},
		{At: 52 * ms, Kind: history.Begin, Call: "e2", Function: "f", Run: "i2.2", Code: 1},
		{At: 53 * ms, Kind: history.End, Call: "e2", Run: "i2.2", Failed: true},
		{At: 54 * ms, Kind: history.Begin, Call: "d:e2", Function: "dest", Run: "i3.1"},
		{At: 54 * ms, Kind: history.Left, Call: "e2"},
		{At: 55 * ms, Kind: history.End, Call: "d:e2", Run: "i3.1"},
		{At: 90 * ms, Kind: history.Final, Node: "c1", Index: 9, Hash: "h", Billed: map[string]int64{"f": 4, "dest": 1}},
		{At: 91 * ms, Kind: history.Final, Node: "c2", Index: 9, Hash: "h", Billed: map[string]int64{"f": 4, "dest": 1}},
	}
}

func verdict(h []history.Event) (broken []string, all []Violation) {
	for _, c := range Checkers(map[string]int{"f": 2}) {
		if found := c.Check(h); len(found) > 0 {
			broken = append(broken, c.Name)
			all = append(all, found...)
		}
	}
	return broken, all
}

func TestGoodHistory(t *testing.T) {
	if _, all := verdict(good()); len(all) > 0 {
		t.Errorf("violations in a good history: %v", all)
	}
}

// Each checker sees what is wrong with a doctored history, and says no more than is.
func TestDoctored(t *testing.T) {
	without := func(drop func(history.Event) bool) []history.Event {
		var left []history.Event
		for _, e := range good() {
			if !drop(e) {
				left = append(left, e)
			}
		}
		return left
	}
	changed := func(change func(*history.Event)) []history.Event {
		h := good()
		for i := range h {
			change(&h[i])
		}
		return h
	}
	with := func(more ...history.Event) []history.Event {
		h := good()
		return append(h[:len(h)-2:len(h)-2], append(more, h[len(h)-2:]...)...)
	}
	for _, test := range []struct {
		name, broken, says string
		h                  []history.Event
	}{
		{"no answer", "answers", "never answered", without(func(e history.Event) bool { return e.Kind == history.Answer && e.Call == "s1" })},
		{"two answers", "answers", "answered 2 times", with(history.Event{At: 60 * ms, Kind: history.Answer, Call: "s1", Status: 200, Of: "s1", Run: "i1.1"})},
		{"late answer", "answers", "promised were 6s", changed(func(e *history.Event) {
			if e.Kind == history.Answer && e.Call == "s1" {
				e.At += 6000 * ms
			}
		})},
		{"late answer of a node that was stopped", "", "", append([]history.Event{
			{At: 1, Kind: history.Fault, Node: "c1", Does: "stop c1"}, {At: 2000 * ms, Kind: history.Fault, Node: "c1", Does: "cont c1"},
		}, changed(func(e *history.Event) {
			if e.Kind == history.Answer && e.Call == "s1" {
				e.At += 6000 * ms
			}
		})...)},
		{"another's answer", "callers", "got the answer of e2", changed(func(e *history.Event) {
			if e.Kind == history.Answer && e.Call == "s1" {
				e.Of = "e2"
			}
		})},
		{"another's run", "callers", "got the answer of run i2.2", changed(func(e *history.Event) {
			if e.Kind == history.Answer && e.Call == "s1" {
				e.Run = "i2.2"
			}
		})},
		{"ran twice", "once", "ran 2 times", with(history.Event{At: 60 * ms, Kind: history.Begin, Call: "s1", Function: "f", Run: "i2.9", Code: 1})},
		{"event without end", "events", "has no end", changed(func(e *history.Event) {
			if e.Kind == history.End && e.Call == "e1" {
				e.Kind = history.Gone
			}
		})},
		{"failed event that went nowhere", "events", "has no end", without(func(e history.Event) bool { return e.Kind == history.Left })},
		{"billed twice", "ledger", "bills 5 requests of f", changed(func(e *history.Event) {
			if e.Kind == history.Final {
				e.Billed["f"] = 5
			}
		})},
		{"not billed", "ledger", "bills 2 requests of f", changed(func(e *history.Event) {
			if e.Kind == history.Final {
				e.Billed["f"] = 2
			}
		})},
		{"nothing billed", "ledger", "bills nothing of f", changed(func(e *history.Event) { delete(e.Billed, "f") })},
		{"other hash", "replicas", "the state of c2 is x", changed(func(e *history.Event) {
			if e.Node == "c2" && e.Kind == history.Final {
				e.Hash = "x"
			}
		})},
		{"other index", "replicas", "has applied 8", changed(func(e *history.Event) {
			if e.Node == "c2" && e.Kind == history.Final {
				e.Index = 8
			}
		})},
		{"other bill", "replicas", "bills map", changed(func(e *history.Event) {
			if e.Node == "c2" && e.Kind == history.Final {
				e.Billed["f"] = 3
			}
		})},
		{"nobody said", "replicas", "no control node", without(func(e history.Event) bool { return e.Kind == history.Final })},
		{"over its cap", "caps", "3 runs of f at once", with(
			history.Event{At: 60 * ms, Kind: history.Begin, Call: "x1", Function: "f", Run: "x.1", Code: 1},
			history.Event{At: 61 * ms, Kind: history.Begin, Call: "x2", Function: "f", Run: "x.2", Code: 1},
			history.Event{At: 62 * ms, Kind: history.Begin, Call: "x3", Function: "f", Run: "x.3", Code: 1},
			history.Event{At: 63 * ms, Kind: history.End, Call: "x1", Run: "x.1"},
			history.Event{At: 64 * ms, Kind: history.End, Call: "x2", Run: "x.2"},
			history.Event{At: 65 * ms, Kind: history.End, Call: "x3", Run: "x.3"},
		)},
		{"old code", "updates", "ran code 0; code 1 was Successful", changed(func(e *history.Event) {
			if e.Kind == history.Begin && e.Call == "s1" {
				e.Code = 0
			}
		})},
		{"old code of a node that was cut off", "", "", append([]history.Event{
			{At: 1, Kind: history.Fault, Node: "c1", Does: "partition c1"},
		}, changed(func(e *history.Event) {
			if e.Kind == history.Begin && e.Call == "s1" {
				e.Code = 0
			}
		})...)},
		{"read of what was not written", "operations", "have no order", changed(func(e *history.Event) {
			if e.Op == "o3" {
				e.Value = "c"
			}
		})},
		{"stale read", "operations", "get", with(
			history.Event{At: 60 * ms, Kind: history.Operate, Op: "o5", Does: "update", Function: "r", Value: "d"},
			history.Event{At: 61 * ms, Kind: history.Done, Op: "o5", Status: 200},
			history.Event{At: 62 * ms, Kind: history.Operate, Op: "o6", Does: "get", Function: "r"},
			history.Event{At: 63 * ms, Kind: history.Done, Op: "o6", Status: 200, Value: "b"},
		)},
		{"lost write", "operations", "get", with(
			history.Event{At: 60 * ms, Kind: history.Operate, Op: "o5", Does: "delete", Function: "r"},
			history.Event{At: 61 * ms, Kind: history.Done, Op: "o5", Status: 204},
			history.Event{At: 62 * ms, Kind: history.Operate, Op: "o6", Does: "create", Function: "r", Value: "e"},
			history.Event{At: 63 * ms, Kind: history.Done, Op: "o6", Status: 201},
			history.Event{At: 64 * ms, Kind: history.Operate, Op: "o7", Does: "get", Function: "r"},
			history.Event{At: 65 * ms, Kind: history.Done, Op: "o7", Status: 404},
		)},
		{"one that nobody answered shows later", "", "", with(
			history.Event{At: 60 * ms, Kind: history.Operate, Op: "o5", Does: "update", Function: "r", Value: "d"},
			history.Event{At: 61 * ms, Kind: history.Operate, Op: "o6", Does: "get", Function: "r"},
			history.Event{At: 62 * ms, Kind: history.Done, Op: "o6", Status: 200, Value: "b"},
			history.Event{At: 63 * ms, Kind: history.Done, Op: "o5", Status: 503},
			history.Event{At: 64 * ms, Kind: history.Operate, Op: "o7", Does: "get", Function: "r"},
			history.Event{At: 65 * ms, Kind: history.Done, Op: "o7", Status: 200, Value: "d"},
		)},
	} {
		t.Run(test.name, func(t *testing.T) {
			broken, all := verdict(test.h)
			if got := strings.Join(broken, " "); got != test.broken {
				t.Errorf("broken promises: %q, want %q: %v", got, test.broken, all)
			}
			for _, v := range all {
				if strings.Contains(v.String(), test.says) {
					return
				}
			}
			if test.says != "" {
				t.Errorf("no violation says %q: %v", test.says, all)
			}
		})
	}
}
