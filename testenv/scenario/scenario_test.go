package scenario

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	s, err := Parse(strings.NewReader(`# The leader is killed,
# and comes back.
cluster 5 controls 1 workers
load 6 callers 2 senders
at 5s kill leader
then 1.5s start it
# not about it
when 100 running partition w1 from controls
at 30s end
`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Scenario{About: "The leader is killed, and comes back.", Controls: 5, Workers: 1,
		Load: map[string]int{"functions": 4, "callers": 6, "senders": 2}, Steps: []Step{
			{Text: "kill leader", At: 5 * time.Second, Verb: "kill", Args: []string{"leader"}},
			{Text: "start it", At: 1500 * time.Millisecond, Then: true, Verb: "start", Args: []string{"it"}},
			{Text: "partition w1 from controls", At: waitLimit, Running: 100, Verb: "partition", Args: []string{"w1", "from", "controls"}},
			{Text: "end", At: 30 * time.Second, Verb: "end", Args: []string{}},
		}}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("parsed %+v\nwant %+v", s, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for line, says := range map[string]string{
		"at 5s explode c1":           "nothing that can be done",
		"at 5s kill":                 "kill takes node",
		"at 5s kill c4":              "no node",
		"at soon kill c1":            "not a duration",
		"kill c1":                    "begins with none of",
		"when x running kill c1":     "not a number",
		"at 1s partition c1 and c2":  `"and" stands where "from" must`,
		"at 1s deafen c1 from c2":    `"from" stands where "to" must`,
		"at 1s lose 101% at c1":      "percentage",
		"load many callers":          "not a number",
		"load 3 dancers":             "none of",
		"at 1s burst 10 of whatever": "not a duration",
		"at 1s kill c1":              "not an end",
	} {
		if _, err := Parse(strings.NewReader(line + "\n")); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", line, err, says)
		}
	}
}

// What a seed makes can be read, is the same again, and another seed's is another.
func TestRandom(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(50) {
		text := Random(seed, 3*time.Minute)
		if text != Random(seed, 3*time.Minute) {
			t.Fatalf("seed %d makes two scenarios", seed)
		}
		if seen[text] {
			t.Errorf("seed %d makes another's scenario", seed)
		}
		seen[text] = true
		s, err := Parse(strings.NewReader(text))
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		if len(s.Steps) < 30 {
			t.Errorf("seed %d makes %d steps in three minutes", seed, len(s.Steps))
		}
	}
}

// The named scenarios can be read, and say what they are about.
func TestNamed(t *testing.T) {
	files, err := filepath.Glob("../scenarios/*.txt")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d scenarios (%v)", len(files), err)
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Parse(f)
		f.Close()
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if s.About == "" {
			t.Errorf("%s does not say what it is about", path)
		}
	}
}
