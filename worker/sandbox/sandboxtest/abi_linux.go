package sandboxtest

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// abiVar names the program that testdata/abi.c makes, for machines without a compiler.
const abiVar = "DOZE_TEST_ABI"

//go:embed testdata/abi.c
var abiSource string

// testABI runs a hostile function written in C.
func testABI(t *testing.T, f *fixture) {
	if built := os.Getenv(abiVar); built != "" {
		program, err := os.ReadFile(built)
		if err != nil {
			t.Fatal(err)
		}
		f.write(t, "abi", string(program), 0o755)
	} else {
		cc, err := exec.LookPath("gcc")
		if err != nil {
			t.Skip("needs gcc for a program in C: apt-get install gcc libc6-dev")
		}
		build := exec.Command(cc, "-static", "-O1", "-w", "-x", "c", "-o", filepath.Join(f.code, "abi"), "-")
		build.Stdin = strings.NewReader(abiSource)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v\n%s", err, out)
		}
	}
	f.write(t, "target", strings.Repeat("the content of a file of the function\n", 200), 0o644)
	for range 2 { // the second finds nothing of the first
		exit, out := f.start(t, f.config("/var/task/abi")).wait(t)
		want(t, exit, out, "own SysV 1 1 1", "unchanged read-only page", "ran from memory", "done")
		if strings.Contains(out, "WORKED") {
			t.Error(out)
		}
		if n := strings.Count(out, "unchanged read-only page\n"); n != 2 {
			t.Errorf("%d files were tried, want 2:\n%s", n, out)
		}
		if n := strings.Count(out, "killed int80"); runtime.GOARCH == "amd64" && n != 5 {
			t.Errorf("%d of 5 system calls through the 32-bit gate ended their process:\n%s", n, out)
		}
		t.Log(out)
	}
}
