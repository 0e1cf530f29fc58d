package instance

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

// The whole table of allowed steps, as a reviewer wants to see a change to it.
func TestStateTable(t *testing.T) {
	var b strings.Builder
	for from := range State(states) {
		b.WriteString(from.String() + " ->")
		for next := range State(states) {
			if from.May(next) {
				b.WriteString(" " + next.String())
			}
		}
		b.WriteString("\n")
	}
	const golden = "testdata/state.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the table is\n%s\nwant\n%s", b.String(), want)
	}
	if State(200).May(Idle) || Idle.May(State(15)) {
		t.Error("a state outside the table may go somewhere")
	}
}
