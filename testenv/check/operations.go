package check

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/doze-run/doze/testenv/history"
)

// searchLimit is how long the search for an order may take for one function. What was not decided by then is said
// to be so, which is a violation, too: a history that nobody can check proves nothing.
const searchLimit = 60 * time.Second

// absent is the value of a function that is not there.
const absent = ""

// does is the input of an operation, outcome its output. unknown: nobody said whether it was done.
type does struct {
	op, value string
	at        time.Duration
}
type outcome struct {
	status  int
	value   string
	unknown bool
}

// register is one function: it is there with a description, or it is not.
var register = porcupine.NondeterministicModel{
	Init: func() []any { return []any{absent} },
	Step: func(state, input, output any) []any {
		s, in, out := state.(string), input.(does), output.(outcome)
		var next string
		var wanted int // the status, if it was done in this state
		switch in.op {
		case "create":
			next, wanted = in.value, 201
			if s != absent {
				next, wanted = s, 409
			}
		case "update":
			next, wanted = in.value, 200
			if s == absent {
				next, wanted = s, 404
			}
		case "delete":
			next, wanted = absent, 204
			if s == absent {
				wanted = 404
			}
		case "get":
			next, wanted = s, 200
			if s == absent {
				wanted = 404
			}
		}
		switch {
		case out.unknown:
			return []any{s, next} // it was done, or is not yet, or never will be
		case out.status == 409 && in.op != "create":
			return []any{s} // another change of it is under way: refused
		case out.status != wanted || in.op == "get" && wanted == 200 && out.value != s:
			return nil
		}
		return []any{next}
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%v → %v", input, output)
	},
}

// definite are the answers that say whether an operation was done.
var definite = []int{200, 201, 204, 404, 409}

// operations holds that what clients were told of each function can have happened in one order, each operation
// between its beginning and its end. An operation that nobody answered may have been done at any time after.
func operations(h []history.Event) (found []Violation) {
	by := map[string][]porcupine.Operation{}
	begun := map[string]history.Event{}
	add := func(b history.Event, out outcome, ends int64) {
		if out.unknown && b.Does == "get" {
			return
		}
		by[b.Function] = append(by[b.Function], porcupine.Operation{
			Input: does{b.Does, b.Value, time.Duration(b.At)}, Output: out, Call: b.At, Return: ends,
		})
	}
	for _, e := range h {
		switch {
		case e.Kind == history.Operate && e.Does != "code":
			begun[e.Op] = e
		case e.Kind == history.Done:
			b, ok := begun[e.Op]
			if !ok {
				continue
			}
			delete(begun, e.Op)
			if slices.Contains(definite, e.Status) {
				add(b, outcome{status: e.Status, value: e.Value}, e.At)
			} else {
				add(b, outcome{unknown: true}, math.MaxInt64)
			}
		}
	}
	for _, op := range slices.Sorted(maps.Keys(begun)) {
		add(begun[op], outcome{unknown: true}, math.MaxInt64)
	}
	model := register.ToModel()
	for _, f := range slices.Sorted(maps.Keys(by)) {
		switch porcupine.CheckOperationsTimeout(model, by[f], searchLimit) {
		case porcupine.Illegal:
			at, what := where(model, by[f])
			found = append(found, violation(at, "the %d operations on %s have no order that explains what their clients were told; it fails with %s", len(by[f]), f, what))
		case porcupine.Unknown:
			found = append(found, violation(0, "the %d operations on %s could not be checked within %v", len(by[f]), f, searchLimit))
		}
	}
	return found
}

// where is the first operation, by its end, without whose result all before have an order.
func where(model porcupine.Model, all []porcupine.Operation) (int64, string) {
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b porcupine.Operation) int {
		switch {
		case a.Return < b.Return:
			return -1
		case a.Return > b.Return:
			return 1
		}
		return 0
	})
	n, _ := slices.BinarySearchFunc(sorted, true, func(o porcupine.Operation, _ bool) int {
		prefix := make([]porcupine.Operation, 0, len(sorted))
		for _, p := range sorted {
			if p.Return > o.Return {
				if p.Call > o.Return {
					continue
				}
				p.Output, p.Return = outcome{unknown: true}, math.MaxInt64
				if p.Input.(does).op == "get" {
					continue
				}
			}
			prefix = append(prefix, p)
		}
		if porcupine.CheckOperationsTimeout(model, prefix, searchLimit) == porcupine.Illegal {
			return 0
		}
		return -1
	})
	if n == len(sorted) {
		return 0, "none that can be told"
	}
	o := sorted[n]
	return o.Call, model.DescribeOperation(o.Input, o.Output)
}
