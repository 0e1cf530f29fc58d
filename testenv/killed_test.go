package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// outlives is how long a function's processes may be there after their worker.
const outlives = time.Second

// A worker that is killed in the middle of a hundred instances, of which half run a call and half are frozen, takes all
// their processes with it. What it could not take, its next start ends and removes before it is ready.
func TestKilledAmongAHundred(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	hold := GoFunction(t, "testenv/functions/hold")
	for _, name := range []string{"running", "frozen"} {
		d.Create(ctx, name, types.RuntimeProvidedal2023, hold, func(in *lambda.CreateFunctionInput) {
			in.Timeout, in.MemorySize = aws.Int32(300), aws.Int32(128)
		})
	}
	const each = 50
	var ends []<-chan called
	for range each {
		ends = append(ends, d.background(ctx, "frozen", `{"Ms":4000}`))
	}
	for n, end := range ends {
		if got := <-end; got.err != nil || got.out.FunctionError != nil {
			t.Fatalf("call %d: %+v %v", n, got.out, got.err)
		}
	}
	for range each {
		d.background(ctx, "running", `{"Ms":280000}`)
	}
	d.Eventually(60*time.Second, "fifty instances run a call", func() bool {
		n := 0
		for _, i := range d.Instances(ctx, "running") {
			if i.State == "busy" {
				n++
			}
		}
		return n == each
	})
	// One for each call, unless some call came late and found another's done.
	idle := len(d.Instances(ctx, "frozen"))
	if idle < each/2 {
		t.Fatalf("%d idle instances, want about %d", idle, each)
	}

	pids := descendants(t, d.PID())
	groups := groupsOf(t, pids)
	d.Eventually(10*time.Second, "the idle instances are frozen", func() bool { return frozen(groups) >= idle })
	if want := 3 * (each + idle); len(pids) < want {
		t.Fatalf("%d processes below the worker, want %d", len(pids), want)
	}
	spaces := networks(pids)
	if len(spaces) < each+idle {
		t.Fatalf("%d network namespaces for %d instances", len(spaces), each+idle)
	}
	begin := time.Now()
	d.Kill()
	for alive := pids; ; time.Sleep(time.Millisecond) {
		var still []int
		for _, pid := range alive {
			if syscall.Kill(pid, 0) == nil && !zombie(pid) {
				still = append(still, pid)
			}
		}
		if alive = still; len(alive) == 0 {
			break
		}
		if time.Since(begin) > outlives {
			t.Fatalf("%d of %d processes outlive their worker by more than %s", len(alive), len(pids), outlives)
		}
	}
	t.Logf("%d processes in %d instances, %d of them frozen: all gone %s after their worker", len(pids), each+idle, idle, time.Since(begin).Round(time.Millisecond))

	survivor := survive(t, groups)
	d.Start()
	if !gone(survivor) {
		t.Error("the next start is ready, and a process that the last one left is still there")
	}
	for _, g := range groups {
		if _, err := os.Stat(g); err == nil {
			t.Errorf("cgroup %s is left", g)
		}
	}
	if left := networks(nil); len(left) > 0 {
		for s := range spaces {
			if left[s] {
				t.Errorf("network namespace %s is left", s)
			}
		}
	}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(table, []byte(d.DataDir)) {
		t.Errorf("mounts are left: %v\n%s", err, table)
	}
	if out := d.Invoke(ctx, "frozen", `{"Ms":1}`); string(out.Payload) != "1" {
		t.Errorf("after it: %s", out.Payload)
	}
	if n := len(d.Instances(ctx, "")); n > 2 {
		t.Errorf("%d instances after one call", n)
	}
}

var groupPath = regexp.MustCompile(`^/doze-[0-9a-f]+/[a-z0-9-]+$`)

// groupsOf are the folders of the cgroups that processes are in, in every hierarchy.
func groupsOf(t *testing.T, pids []int) []string {
	t.Helper()
	mounts, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	roots := []string{"/sys/fs/cgroup"}
	for _, m := range mounts {
		roots = append(roots, filepath.Dir(m))
	}
	seen := map[string]bool{}
	var groups []string
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(parts) < 3 || !groupPath.MatchString(parts[2]) || seen[parts[2]] {
				continue
			}
			seen[parts[2]] = true
			for _, root := range roots {
				if _, err := os.Stat(root + parts[2]); err == nil {
					groups = append(groups, root+parts[2])
				}
			}
		}
	}
	if len(groups) == 0 {
		t.Fatal("no cgroups found: is /sys/fs/cgroup mounted?")
	}
	return groups
}

// frozen counts the groups that stand still.
func frozen(groups []string) (n int) {
	for _, g := range groups {
		for file, yes := range map[string]string{"cgroup.freeze": "1", "freezer.state": "FROZEN"} {
			if b, err := os.ReadFile(filepath.Join(g, file)); err == nil && strings.TrimSpace(string(b)) == yes {
				n++
			}
		}
	}
	return n
}

// networks are the network namespaces of processes, or of all there are.
func networks(pids []int) map[string]bool {
	var links []string
	for _, pid := range pids {
		links = append(links, fmt.Sprintf("/proc/%d/ns/net", pid))
	}
	if pids == nil {
		links, _ = filepath.Glob("/proc/[0-9]*/ns/net")
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	spaces := map[string]bool{}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to != own {
			spaces[to] = true
		}
	}
	return spaces
}

// survive puts a process where an instance of the dead worker was that did not end with it, frozen where that can be.
func survive(t *testing.T, groups []string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/usr/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	done := map[string]bool{}
	for _, g := range groups {
		parent := filepath.Dir(g)
		if done[parent] {
			continue
		}
		done[parent] = true
		dir := filepath.Join(parent, "survivor")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
			t.Fatal(err)
		}
		for file, yes := range map[string]string{"cgroup.freeze": "1", "freezer.state": "FROZEN"} {
			if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(yes), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return cmd
}

func gone(cmd *exec.Cmd) bool {
	return syscall.Kill(cmd.Process.Pid, 0) != nil || zombie(cmd.Process.Pid)
}
