package testenv

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/doze-run/doze/worker/sandbox/sandboxtest"
)

// reachPython does what functions/reach does.
const reachPython = `
import urllib.request
def handler(event, context):
    reached = {}
    for name, address in event.items():
        try: reached[name] = urllib.request.urlopen("http://" + address + "/", timeout=4).read(100).decode()
        except OSError as e: reached[name] = "not reached"
    return reached
`

const notReached = "not reached"

// startInWorld starts `doze dev` where the world's resolv.conf is the host's.
func startInWorld(t *testing.T, w *sandboxtest.World, flags ...string) *Dev {
	t.Helper()
	flags = append([]string{"--egress-range", sandboxtest.InstanceRange.String(), "--deny-egress", w.Denied.Network.String()}, flags...)
	return StartDevBy(t, []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, w.ResolvConf}, flags...)
}

// reach calls the function with targets, and checks what it says of them.
func (d *Dev) reach(t *testing.T, function string, targets, want map[string]string) {
	t.Helper()
	event, err := json.Marshal(targets)
	if err != nil {
		t.Fatal(err)
	}
	out := d.Invoke(t.Context(), function, string(event))
	var got map[string]string
	if err := json.Unmarshal(out.Payload, &got); err != nil {
		t.Fatalf("%s: %s", function, out.Payload)
	}
	for name := range targets {
		if got[name] != want[name] {
			t.Errorf("%s: %s (%s): %q, want %q", function, name, targets[name], got[name], want[name])
		}
	}
}

// interfaces are the host's ends of instances' lines.
func interfaces(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/sys/class/net/doze*")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A function that was deployed with egress reaches outside and nothing of the host, in Python and in Go; one
// without reaches nothing; a kill -9 leaves nothing that the next start does not remove.
func TestEgress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network egress needs root: run the tests as root to have this test")
	}
	ctx := t.Context()
	w := sandboxtest.NewWorld(t)
	before := interfaces(t)
	// The API listens on every address of this host, so that only the wall keeps an instance from it.
	d := startInWorld(t, w, "--listen", "0.0.0.0:0", "--allow-remote")
	_, api, err := net.SplitHostPort(d.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]string{
		"outside": w.Outside.Addr.String(), "by name": w.Name, "denied": w.Denied.Addr.String(), "metadata": "169.254.169.254",
		"private": "10.0.0.1", "loopback": "127.0.0.1:" + api,
	}
	want, nothing := map[string]string{"outside": "the outside", "by name": "the outside"}, map[string]string{}
	for _, a := range w.HostAddrs {
		targets["api "+a.String()] = netip.AddrPortFrom(a, uint16(port(t, api))).String()
		targets["host "+a.String()] = netip.AddrPortFrom(a, uint16(w.HostPort)).String()
	}
	for name := range targets {
		nothing[name] = notReached
		if want[name] == "" {
			want[name] = notReached
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(reachPython), 0o644); err != nil {
		t.Fatal(err)
	}
	python := string(d.Runtime(ctx, "python"))
	deploy := func(name, code string, flags ...string) (stdout string) {
		t.Helper()
		out, errs, exit := d.CLI(ctx, append([]string{"deploy", name, code, "--timeout", "60", "--json"}, flags...)...)
		if exit != 0 {
			t.Fatalf("deploy %s: %s", name, errs)
		}
		return out
	}
	zip := filepath.Join(dir, "go.zip")
	if err := os.WriteFile(zip, GoFunction(t, "testenv/functions/reach"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := deploy("py", dir, "--runtime", python, "--handler", "app.handler", "--network", "egress"); !strings.Contains(out, `"Network": "egress"`) {
		t.Errorf("deploy says %s", out)
	}
	deploy("go", zip, "--runtime", "provided.al2023", "--network", "egress")
	d.Create(ctx, "plain", types.Runtime(python), Python(t, reachPython), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(60) })
	d.Eventually(5*time.Second, "one waits with its network", func() bool { return d.parked(ctx)[python+"+egress"].Parked > 0 })
	for range 2 { // cold, from what waits, and warm
		d.reach(t, "py", targets, want)
		d.reach(t, "go", targets, want)
		d.reach(t, "plain", targets, nothing)
	}
	d.Eventually(5*time.Second, "the worker reports that the function with egress was started from one that waited", func() bool {
		return d.parked(ctx)[python+"+egress"].Hits > 0
	})

	// The same again changes nothing; without egress it is a new incarnation that reaches nothing.
	_, errs, _ := d.CLI(ctx, "deploy", "py", dir, "--network", "egress")
	if strings.Contains(errs, "configuration of py updated") {
		t.Errorf("a deploy of the same network: %s", errs)
	}
	deploy("py", dir, "--network", "none")
	d.reach(t, "py", targets, nothing)
	if out := deploy("py", dir, "--network", "default"); strings.Contains(out, `"Network"`) {
		t.Errorf("deploy says %s", out)
	}
	d.reach(t, "py", targets, nothing)
	deploy("py", dir, "--network", "egress")
	d.reach(t, "py", targets, want)

	if len(interfaces(t)) <= len(before) {
		t.Fatal("no line of an instance is there: the rest would show nothing")
	}
	d.Kill()
	d.Start()
	d.Eventually(5*time.Second, "the dead worker's lines are gone", func() bool {
		return !slices.ContainsFunc(interfaces(t), func(path string) bool { return !slices.Contains(before, path) && older(t, path) })
	})
	d.reach(t, "py", targets, want)
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, path := range interfaces(t) {
		if !slices.Contains(before, path) {
			t.Errorf("%s is left", path)
		}
	}
}

// older tells whether an interface was made before this moment by some seconds: a fresh one is the new worker's.
func older(t *testing.T, path string) bool {
	info, err := os.Stat(path)
	return err == nil && time.Since(info.ModTime()) > 30*time.Second
}

func port(t *testing.T, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// With --network egress, functions of which nothing is said reach outside, and one that says none does not.
func TestEgressByDefault(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network egress needs root: run the tests as root to have this test")
	}
	ctx := t.Context()
	w := sandboxtest.NewWorld(t)
	d := startInWorld(t, w, "--network", "egress")
	python := d.Runtime(ctx, "python")
	d.Create(ctx, "plain", python, Python(t, reachPython))
	targets := map[string]string{"by name": w.Name}
	d.reach(t, "plain", targets, map[string]string{"by name": "the outside"})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(reachPython), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, errs, exit := d.CLI(ctx, "deploy", "plain", dir, "--network", "none", "--json"); exit != 0 || !strings.Contains(out, `"Network": "none"`) {
		t.Fatalf("deploy: %s %s", out, errs)
	}
	d.reach(t, "plain", targets, map[string]string{"by name": notReached})
	if _, errs, exit := d.CLI(ctx, "deploy", "plain", dir, "--network", "everything"); exit != 2 || !strings.Contains(errs, "none, egress, default") {
		t.Errorf("%d: %s", exit, errs)
	}
}
