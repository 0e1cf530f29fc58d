// Package scenario reads what is to happen to a cluster, a line a step, and makes such scenarios up.
//
//	# Words about it; what is expected.
//	cluster 3 controls 2 workers
//	load 6 callers 2 senders 2 operators 1 deployers
//	at 5s kill leader
//	then 7s start it
//	when 100 running kill worker
//	at 30s end
//
// `at` counts from when the load began, `then` from the end of the step before, `when` waits until so many handlers
// run. It knows words and numbers. It must not know how a step is done.
package scenario

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Scenario is one of them.
type Scenario struct {
	// About is its first comment.
	About             string
	Controls, Workers int
	// Load is how many there are of each kind.
	Load  map[string]int
	Steps []Step
}

// Step is one line.
type Step struct {
	// Text is the line, without when it is due.
	Text string
	// At is the time after the beginning of the load, or with Then after the end of the step before; with Running
	// it is how long that may take at most.
	At      time.Duration
	Then    bool
	Running int
	Verb    string
	// Args are what the verb takes, see verbs.
	Args []string
}

// waitLimit is how long a step waits for handlers to run.
const waitLimit = 60 * time.Second

// verbs are what can be done, and their arguments: a node stands for some of Targets; words in quotes are themselves.
var verbs = map[string][]string{
	"kill":      {"node"},                     // kill -9
	"stop":      {"node"},                     // SIGSTOP
	"cont":      {"node"},                     // SIGCONT
	"term":      {"node"},                     // SIGTERM, and wait until it has ended
	"start":     {"node"},                     // start what has ended, in its folder
	"wipe":      {"node"},                     // the same, in an empty folder
	"roll":      {"node"},                     // one by one: term, start, wait until the cluster is whole
	"crash":     {"node"},                     // one by one: kill, start, wait until the cluster is whole
	"partition": {"node", "from", "node"},     // neither hears the other
	"deafen":    {"node", "to", "node"},       // the first does not hear the second, which hears it
	"flap":      {"node", "from", "node"},     // a partition that comes and goes every half second, until heal
	"heal":      {},                           // ends all that is wrong between nodes
	"lose":      {"percent", "at", "node"},    // packets that come to it
	"limit":     {"kilobytes", "at", "node"},  // a second that leave it
	"fill":      {"node"},                     // its disk
	"free":      {"node"},                     // what was filled
	"clock":     {"offset", "at", "node"},     // what time of day it takes it to be (+1h, -10m, 0s)
	"burst":     {"number", "of", "duration"}, // calls at once, that run for so long
	"flood":     {"number", "of", "duration"}, // events at once
	"end":       {},
}

// Targets are the words for nodes beside their names (c1, w2).
var Targets = []string{
	"leader",   // the control node that leads
	"follower", // a control node that does not
	"worker",   // one that runs
	"it",       // what the last step that named a node was done to
	"others",   // the control nodes that it is not
	"controls", "workers", "all",
}

// Loads are the words for a load: how many users of each kind there are, the reserved concurrency of one function more,
// and the functions' timeout in seconds.
var Loads = []string{"functions", "callers", "senders", "operators", "deployers", "reserved", "timeout"}

// Parse reads a scenario. An error says which line it does not understand.
func Parse(r io.Reader) (*Scenario, error) {
	s := &Scenario{Controls: 3, Workers: 2, Load: map[string]int{"functions": 4}}
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if comment, ok := strings.CutPrefix(line, "#"); ok {
			if len(s.Steps) == 0 {
				s.About = strings.TrimSpace(s.About + " " + strings.TrimSpace(comment))
			}
			continue
		}
		if line == "" {
			continue
		}
		if err := s.line(strings.Fields(line)); err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", number, line, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if n := len(s.Steps); n == 0 || s.Steps[n-1].Verb != "end" {
		return nil, fmt.Errorf("the last line is not an end (at 30s end)")
	}
	return s, nil
}

func (s *Scenario) line(words []string) error {
	switch words[0] {
	case "cluster":
		return counts(words[1:], []string{"controls", "workers"}, func(word string, n int) {
			if word == "controls" {
				s.Controls = n
			} else {
				s.Workers = n
			}
		})
	case "load":
		return counts(words[1:], Loads, func(word string, n int) { s.Load[word] = n })
	}
	step, err := s.step(words)
	if err == nil {
		s.Steps = append(s.Steps, step)
	}
	return err
}

func counts(words, known []string, take func(string, int)) error {
	if len(words) == 0 || len(words)%2 != 0 {
		return fmt.Errorf("it takes numbers and words: %s", strings.Join(known, ", "))
	}
	for i := 0; i < len(words); i += 2 {
		n, err := strconv.ParseUint(words[i], 10, 10)
		if err != nil {
			return fmt.Errorf("%q is not a number", words[i])
		}
		if !slices.Contains(known, words[i+1]) {
			return fmt.Errorf("%q is none of %s", words[i+1], strings.Join(known, ", "))
		}
		take(words[i+1], int(n))
	}
	return nil
}

func (s *Scenario) step(words []string) (step Step, err error) {
	switch {
	case len(words) > 2 && (words[0] == "at" || words[0] == "then"):
		step.Then = words[0] == "then"
		if step.At, err = time.ParseDuration(words[1]); err != nil {
			return step, fmt.Errorf("%q is not a duration such as 5s", words[1])
		}
		words = words[2:]
	case len(words) > 3 && words[0] == "when" && words[2] == "running":
		step.At = waitLimit
		if step.Running, err = strconv.Atoi(words[1]); err != nil || step.Running < 1 {
			return step, fmt.Errorf("%q is not a number of handlers", words[1])
		}
		words = words[3:]
	default:
		return step, fmt.Errorf("it begins with none of cluster, load, at DURATION, then DURATION, when NUMBER running")
	}
	step.Text, step.Verb, step.Args = strings.Join(words, " "), words[0], words[1:]
	wants, ok := verbs[step.Verb]
	if !ok {
		return step, fmt.Errorf("%q is nothing that can be done", step.Verb)
	}
	if len(wants) != len(step.Args) {
		return step, fmt.Errorf("%s takes %s", step.Verb, strings.Join(wants, " "))
	}
	for i, want := range wants {
		if err := s.argument(want, step.Args[i]); err != nil {
			return step, err
		}
	}
	return step, nil
}

func (s *Scenario) argument(want, arg string) error {
	switch want {
	case "node":
		for i := range s.Controls {
			if arg == fmt.Sprint("c", i+1) {
				return nil
			}
		}
		for i := range s.Workers {
			if arg == fmt.Sprint("w", i+1) {
				return nil
			}
		}
		if !slices.Contains(Targets, arg) {
			return fmt.Errorf("%q is no node and none of %s", arg, strings.Join(Targets, ", "))
		}
	case "percent":
		if n, err := strconv.Atoi(strings.TrimSuffix(arg, "%")); err != nil || n < 0 || n > 100 {
			return fmt.Errorf("%q is not a percentage", arg)
		}
	case "number", "kilobytes":
		if n, err := strconv.Atoi(arg); err != nil || n < 1 || n > 1_000_000 {
			return fmt.Errorf("%q is not a number", arg)
		}
	case "offset":
		if _, err := time.ParseDuration(arg); err != nil {
			return fmt.Errorf("%q is not an offset such as +1h", arg)
		}
	case "duration":
		if d, err := time.ParseDuration(arg); err != nil || d < 0 {
			return fmt.Errorf("%q is not a duration", arg)
		}
	default:
		if arg != want {
			return fmt.Errorf("%q stands where %q must", arg, want)
		}
	}
	return nil
}
