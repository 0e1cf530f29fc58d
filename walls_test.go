// Package doze_test holds the walls between the packages: who may import whom, and why.
package doze_test

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/doze-run/doze/"

// wall forbids the packages whose path (below the module) begins with from to import any package
// whose path begins with one of the others.
type wall struct {
	from   string
	not    []string
	except []string // packages below from that may
	why    string
}

var walls = []wall{
	{"control", []string{module + "worker", module + "cmd", module + "testenv"}, nil,
		"control nodes and workers meet on the bus: a worker may run on another machine and in another version"},
	{"worker", []string{module + "control", module + "cmd", module + "testenv"}, nil,
		"workers and control nodes meet on the bus: a worker keeps no truth and asks nobody but the bus"},
	{"bus", []string{module + "control", module + "worker", module + "cmd", module + "testenv"}, nil,
		"the bus carries what others mean: it knows neither side"},
	{"proto", []string{module + "bus", module + "control", module + "worker", module + "cmd"}, nil,
		"the wire is what everything else is built on"},
	{"control", []string{"github.com/nats-io/"}, nil, "NATS is known to package bus alone, so that its traps are met once"},
	{"worker", []string{"github.com/nats-io/"}, nil, "NATS is known to package bus alone, so that its traps are met once"},
	{"cmd", []string{"github.com/nats-io/", "github.com/hashicorp/raft"}, nil, "commands call control.Open and worker.Open, nothing below"},
	{"control", []string{"github.com/hashicorp/raft"}, []string{"control/quorum"}, "Raft is known to package quorum alone"},
	{"worker", []string{"github.com/hashicorp/raft"}, nil, "a worker has no part in consensus"},
	{"bus", []string{"github.com/hashicorp/raft"}, nil, "the bus has no part in consensus"},
	{"control/registry", []string{"time", "net", "os", "math/rand", "crypto/rand", "github.com/google/uuid", module + "bus"}, nil,
		"the registry is pure: the same log must give byte-equal state on every node"},
	{"control/ledger", []string{"time", "net", "os", "math/rand", "crypto/rand", "github.com/google/uuid", module + "bus"}, nil,
		"the ledger is pure: the same log must give byte-equal state on every node"},
	{"control/gateway", []string{module + "bus", module + "control/quorum", module + "control/placement", module + "control/delivery"}, nil,
		"the edge says what it needs in its own interfaces"},
	{"worker/instance", []string{module + "bus", module + "worker/pool", module + "worker/meter", module + "worker/sandbox/linux", module + "worker/sandbox/process"}, nil,
		"an instance is handed one event at a time: it knows no queue, no bill, and no particular wall"},
	{"worker/sandbox", []string{module + "bus", module + "proto", module + "worker/instance", module + "worker/pool"}, nil,
		"a sandbox is a wall around a program: it knows no function"},
	{"worker/meter", []string{module + "bus", module + "worker/pool", module + "worker/instance"}, nil,
		"the journal knows records and files"},
}

func TestWalls(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		path, ok := strings.CutPrefix(fields[0], module)
		if !ok {
			continue
		}
		packages++
		for _, w := range walls {
			if !below(path, w.from) {
				continue
			}
			for _, imported := range fields[1:] {
				if forbidden(w, path, imported) {
					t.Errorf("%s imports %s.\n\tIt must not: %s.", path, imported, w.why)
				}
			}
		}
	}
	if packages < 20 {
		t.Fatalf("only %d packages were looked at", packages)
	}
}

func forbidden(w wall, path, imported string) bool {
	for _, e := range w.except {
		if below(path, e) {
			return false
		}
	}
	for _, n := range w.not {
		if imported == n || strings.HasPrefix(imported, strings.TrimSuffix(n, "/")+"/") || strings.HasSuffix(n, "/") && strings.HasPrefix(imported, n) {
			return true
		}
		if n == "github.com/hashicorp/raft" && strings.HasPrefix(imported, n) {
			return true
		}
	}
	return false
}

func below(path, from string) bool { return path == from || strings.HasPrefix(path, from+"/") }
