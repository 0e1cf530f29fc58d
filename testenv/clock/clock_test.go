package clock

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const program = `package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

var begun = time.Now()

func main() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		<-time.After(time.Millisecond)
		now := time.Now()
		fmt.Println(now.Unix(), now.Sub(begun).Milliseconds())
	}
}
`

// A program that Build made goes by the offset, at once and later, and its durations do not.
func TestSkew(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module skewed\n\ngo 1.26\n", "main.go": program} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, file := filepath.Join(dir, "program"), filepath.Join(dir, "offset")
	if err := Build(t.Context(), dir, ".", out); err != nil {
		t.Fatal(err)
	}
	if err := Set(file, -time.Hour); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(out)
	cmd.Env = append(os.Environ(), Variable+"="+file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(said)
	ask := func(want time.Duration) {
		t.Helper()
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(line)
		at, _ := strconv.ParseInt(fields[0], 10, 64)
		took, _ := strconv.ParseInt(fields[1], 10, 64)
		if off := time.Unix(at, 0).Sub(time.Now()) - want; off > 5*time.Second || off < -5*time.Second {
			t.Errorf("the clock is %v from where it was set", off)
		}
		if took < 0 || took > 60_000 {
			t.Errorf("a duration of %d ms", took)
		}
	}
	ask(-time.Hour)
	if err := Set(file, 90*time.Minute); err != nil {
		t.Fatal(err)
	}
	ask(90 * time.Minute)
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}
