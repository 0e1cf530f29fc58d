package quorum

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// childDir is how TestMain knows that it is the process to be killed, and its data folder.
const childDir = "DOZE_QUORUM_TEST_CHILD"

// child proposes as fast as it can, from several goroutines, and prints a line for each
// acknowledgement, until it is killed.
func child(dir string) {
	n, err := Open(Config{NodeID: "n1", DataDir: dir, Bootstrap: true, Logger: quiet(),
		Timing: Timing{SnapshotThreshold: 64, TrailingLogs: 32, SnapshotInterval: 20e6}})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	ctx := context.Background()
	if err := n.WaitReady(ctx); err != nil {
		fmt.Println("error", err)
		return
	}
	run := os.Getpid()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("f-%d-%d-%d", run, w, i)
				if _, err := n.Propose(ctx, create(name)); err != nil {
					fmt.Println("error", err)
					return
				}
				fmt.Println("created", name)
			}
		})
	}
	wg.Go(func() {
		epoch := fmt.Sprintf("e-%d", run)
		for seq := uint64(1); ; seq += 3 {
			applied, err := n.ProposeUsage(ctx, []*dozev1.UsageBatch{usage(epoch, seq, 3, false)})
			if err != nil || applied[0].Err != nil {
				fmt.Println("error", err, applied)
				return
			}
			fmt.Println("billed", epoch, applied[0].Sequence)
		}
	})
	wg.Wait()
}

// TestKillLosesNothingAcknowledged kills a process in the middle of its writes, several times in
// the same folder, and looks for everything it had printed.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	created := map[string]bool{}
	billed := map[string]uint64{}
	for round := range 4 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		// What the child printed before it died is all acknowledged, also what comes after the kill.
		for count := 0; lines.Scan(); count++ {
			if count == 100+150*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			word := strings.Fields(lines.Text())
			switch {
			case len(word) == 2 && word[0] == "created":
				created[word[1]] = true
			case len(word) == 3 && word[0] == "billed":
				var seq uint64
				if _, err := fmt.Sscan(word[2], &seq); err == nil {
					billed[word[1]] = max(billed[word[1]], seq)
				}
			case len(word) > 0 && word[0] == "error":
				t.Error(lines.Text())
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
	}

	n := openOne(t, dir)
	for name := range created {
		if _, ok := n.Registry().Function("000000000000", name); !ok {
			t.Errorf("%s was acknowledged and is gone", name)
		}
	}
	for epoch, seq := range billed {
		// Sent again from the start: the answer is how far the ledger really is.
		applied, err := n.ProposeUsage(deadline(t), []*dozev1.UsageBatch{usage(epoch, 1, 1, false)})
		if err != nil || applied[0].Sequence < seq {
			t.Errorf("%s: billed up to %d, ledger has %+v, %v", epoch, seq, applied, err)
		}
	}
	if len(created) < 100 || len(billed) != 4 {
		t.Fatalf("saw %d created, %d epochs: too few to prove anything", len(created), len(billed))
	}
}
