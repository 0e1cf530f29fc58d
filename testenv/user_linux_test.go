package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox/sandboxtest"
)

// TestOrdinaryUser runs the platform as a user without any right: what is deployed is called, behind the walls,
// and held to its limits.
func TestOrdinaryUser(t *testing.T) {
	for _, c := range []struct {
		name        string
		subordinate bool
	}{{"subordinate ids", true}, {"one id", false}} {
		t.Run(c.name, func(t *testing.T) {
			u := sandboxtest.NewUser(t, c.subordinate)
			d := StartDevAs(t, u)
			ctx := t.Context()
			if info, err := os.Stat(d.DataDir); err != nil || !info.IsDir() {
				t.Errorf("the data is not in the user's own folder: %v", err)
			}

			d.Create(ctx, "python", d.Runtime(ctx, "python"), Python(t, `
import os
def handler(event, context):
    if event.get("do") == "sleep":
        import time; time.sleep(60)
    seen = [p for p in ("/root", "/home", "/etc/shadow", "/sys", "/run/systemd") if os.path.exists(p) and (p not in ("/home",) or os.listdir(p))]
    return {"uid": os.getuid(), "pids": len([n for n in os.listdir("/proc") if n.isdigit()]), "seen": seen}
`), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(2); in.MemorySize = aws.Int32(128) })
			// With a timeout that even a machine that is busy with other things does not let it reach.
			d.Create(ctx, "eater", d.Runtime(ctx, "python"), Python(t, "def handler(event, context):\n    hold = []\n    while True: hold.append(bytearray(1 << 20))\n"),
				func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(60); in.MemorySize = aws.Int32(128) })
			d.Create(ctx, "node", d.Runtime(ctx, "node"), Node(t, `export const handler = async (event) => ({uid: process.getuid(), got: event.n})`))
			d.Create(ctx, "go", types.RuntimeProvidedal2023, GoFunction(t, "testenv/functions/echo"))

			uid := "993"
			for name, want := range map[string]string{"python": `"seen": []`, "node": `"got":7`, "go": `"event":{"n":7}`} {
				out := d.Invoke(ctx, name, `{"n":7}`)
				if out.FunctionError != nil || !strings.Contains(string(out.Payload), want) {
					t.Errorf("%s: %s %s", name, aws.ToString(out.FunctionError), out.Payload)
				}
				if sole := strings.Contains(strings.ReplaceAll(string(out.Payload), " ", ""), `"uid":`+uid); name != "go" && sole == c.subordinate {
					t.Errorf("%s runs as %s", name, out.Payload)
				}
			}
			if out := d.Invoke(ctx, "python", `{"do":"sleep"}`); !strings.Contains(string(out.Payload), "timed out after 2.00 seconds") {
				t.Errorf("%s", out.Payload)
			}
			out := d.Invoke(ctx, "eater", `{}`)
			if aws.ToString(out.FunctionError) != "Unhandled" || !strings.Contains(string(out.Payload), "signal: killed") && !strings.Contains(string(out.Payload), "OutOfMemory") {
				t.Errorf("%s %s", aws.ToString(out.FunctionError), out.Payload)
			}
			if out := d.Invoke(ctx, "python", `{}`); out.FunctionError != nil {
				t.Errorf("after that: %s", out.Payload)
			}

			stdout, _, code := d.CLI(ctx, "status")
			if says := strings.Contains(stdout, "no distinct uids"); code != 0 || says == c.subordinate {
				t.Errorf("status (exit %d):\n%s", code, stdout)
			}
			_, stderr, code := d.CLI(ctx, "ps")
			if says := strings.Contains(stderr, "no distinct uids"); code != 0 || says == c.subordinate {
				t.Errorf("ps (exit %d) says on stderr:\n%s", code, stderr)
			}

			// kill -9: nothing of it stays, and the next one starts in the same folder.
			d.Kill()
			d.Eventually(5*time.Second, "no process of the killed worker is left", func() bool { return len(processesOf(t, u)) == 0 })
			d.Start()
			if out := d.Invoke(ctx, "go", `{}`); out.FunctionError != nil {
				t.Errorf("after the kill: %s", out.Payload)
			}
			if err := d.Stop(); err != nil {
				t.Error(err)
			}
			if left := processesOf(t, u); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if left, _ := filepath.Glob(filepath.Join(d.DataDir, "worker", "sandbox", "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestOrdinaryUserDelegated gives the user a cgroup, as systemd does with Delegate=yes.
func TestOrdinaryUserDelegated(t *testing.T) {
	u := sandboxtest.NewUser(t, true)
	group := ""
	for _, mount := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(mount, "cgroup.procs")); err == nil {
			group = filepath.Join(mount, fmt.Sprintf("doze-test-user-%d", os.Getpid()))
			break
		}
	}
	if group == "" {
		t.Skip("no cgroup v2 hierarchy is mounted here")
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // cgroups below it first
		for _, pattern := range []string{"*/*", "*", ""} {
			dirs, _ := filepath.Glob(filepath.Join(group, pattern))
			for _, dir := range dirs {
				unix.Rmdir(dir)
			}
		}
		if _, err := os.Stat(group); err == nil {
			t.Errorf("%s cannot be removed", group)
		}
	})
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		u.Own(t, filepath.Join(group, name))
	}
	plain := u.Command
	d := startDevAs(t, u, func(program string, args ...string) *exec.Cmd {
		inner := plain(program, args...)
		cmd := exec.Command("/bin/sh", append([]string{"-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, group}, inner.Args...)...)
		cmd.Dir, cmd.Env = inner.Dir, inner.Env
		return cmd
	})
	ctx := t.Context()
	d.Create(ctx, "go", types.RuntimeProvidedal2023, GoFunction(t, "testenv/functions/echo"))
	if out := d.Invoke(ctx, "go", `{}`); out.FunctionError != nil {
		t.Fatalf("%s", out.Payload)
	}
	groups, _ := filepath.Glob(filepath.Join(group, "doze-*", "*", "cgroup.procs"))
	if len(groups) == 0 {
		t.Error("the instance has no cgroup of its own")
	}
	stdout, _, _ := d.CLI(ctx, "status")
	if strings.Contains(stdout, "no freezing by the kernel") {
		t.Errorf("the cgroup is not used to freeze:\n%s", stdout)
	}
	for line := range strings.Lines(stdout) {
		if strings.Contains(line, "does not give") {
			t.Log(strings.TrimSpace(line))
		}
	}
	d.Kill()
	d.Eventually(5*time.Second, "no process of the killed worker is left", func() bool { return len(processesOf(t, u)) == 0 })
	d.Start() // sweeps
	if left, _ := filepath.Glob(filepath.Join(group, "doze-*", "*-*")); len(left) > len(d.Instances(ctx, "")) {
		t.Logf("cgroups after the start: %v", left)
	}
}

// processesOf lists the processes of the user, and those in namespaces that it made.
func processesOf(t *testing.T, u *sandboxtest.User) (list []string) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			continue
		}
		var uid int
		_, after, _ := strings.Cut(string(status), "\nUid:")
		if _, err := fmt.Sscan(after, &uid); err == nil && (uid == u.UID || u.Sub > 0 && uid >= u.Sub && uid < u.Sub+1<<16) && !strings.Contains(string(status), "State:\tZ") {
			name, _, _ := strings.Cut(string(status), "\n")
			list = append(list, filepath.Base(dir)+" "+strings.TrimPrefix(name, "Name:\t"))
		}
	}
	slices.Sort(list)
	return list
}
