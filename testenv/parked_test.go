package testenv

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// stock is what the status says of one kind of parked sandboxes.
type stock struct {
	Kind           string
	Parked, Target int
	Hits, Misses   int64
}

func variables(name, value string) *types.Environment {
	return &types.Environment{Variables: map[string]string{name: value}}
}

// parked are the worker's parked sandboxes by kind.
func (d *Dev) parked(ctx context.Context) map[string]stock {
	d.t.Helper()
	var status struct {
		Workers []struct {
			Parked []stock
		}
	}
	d.Get(ctx, "/doze/v1/status", &status)
	all := map[string]stock{}
	for _, w := range status.Workers {
		for _, s := range w.Parked {
			all[s.Kind] = s
		}
	}
	return all
}

func needParking(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only the linux sandbox parks, and it needs root: run the tests as root to have this test")
	}
}

// whoAmI tells what would be left of another function, and what tells two instances apart.
const whoAmI = `
import os, random, uuid, builtins, sys
mine = [random.random(), str(uuid.uuid4()), hash("x"), os.getuid()]
def handler(event, context):
    seen = [n for n in sys.modules if n.startswith("secret")] + [n for n in vars(builtins) if n.startswith("SECRET")] + os.listdir("/tmp") + os.listdir("/dev/shm")
    seen += [k for k in os.environ if k.startswith("SECRET") and k != "SECRET_" + context.function_name.upper()]
    builtins.SECRET = context.function_name
    sys.modules["secret"] = builtins
    open("/tmp/secret", "w").close(); open("/dev/shm/secret", "w").close()
    os.environ["SECRET_LEFT"] = "x"
    return {"name": context.function_name, "mine": mine, "seen": seen, "own": os.environ.get("SECRET_" + context.function_name.upper()), "code": sorted(os.listdir("/var/task"))}
`

// The first deployment of a runtime has one warm within a second; the first call takes it; each is used once;
// nothing of one function is seen by another; the last deletion empties the stock.
func TestParkedLife(t *testing.T) {
	needParking(t)
	ctx := t.Context()
	d := StartDev(t)
	if all := d.parked(ctx); len(all) != 0 {
		t.Errorf("%+v without a function", all)
	}
	python := d.Runtime(ctx, "python")
	kind := string(python)
	client := d.Client()
	seen := map[string]bool{}
	const functions = 6
	for n := range functions {
		name := fmt.Sprintf("f%d", n)
		d.Create(ctx, name, python, Zip(t, map[string]string{"app.py": whoAmI, name: ""}), func(in *lambda.CreateFunctionInput) {
			in.Environment = variables("SECRET_"+strings.ToUpper(name), "of "+name)
		})
		limit := 10 * time.Second
		if n == 0 {
			limit = 2 * time.Second // a second, and what a busy machine adds
		}
		d.Eventually(limit, "one waits", func() bool { return d.parked(ctx)[kind].Parked >= 1 })
		before := d.parked(ctx)[kind].Hits
		out := string(d.Invoke(ctx, name, "{}").Payload)
		for _, want := range []string{`"name": "` + name + `"`, `"seen": []`, `"own": "of ` + name + `"`, `"code": ["app.py", "` + name + `"]`} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %s in %s", name, want, out)
			}
		}
		if _, mine, ok := strings.Cut(out, `"mine"`); ok {
			mine, _, _ = strings.Cut(mine, "]")
			for i, v := range strings.Split(mine, ", ") {
				if key := fmt.Sprint(i, v); seen[key] {
					t.Errorf("%s: value %d is another instance's: %s", name, i, mine)
				} else {
					seen[key] = true
				}
			}
		}
		d.Eventually(5*time.Second, "the call was a hit", func() bool { return d.parked(ctx)[kind].Hits > before })
	}
	for n := range functions {
		if _, err := client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String(fmt.Sprintf("f%d", n))}); err != nil {
			t.Fatal(err)
		}
	}
	d.Eventually(30*time.Second, "the stock of a runtime that no function has is empty", func() bool { return d.parked(ctx)[kind].Parked == 0 })
}

// A function that a waiting interpreter cannot take over is started from nothing, and is the same otherwise.
func TestParkedOnlyWhatFits(t *testing.T) {
	needParking(t)
	ctx := t.Context()
	d := StartDev(t)
	python := d.Runtime(ctx, "python")
	d.Create(ctx, "shadow", python, Zip(t, map[string]string{"app.py": "import json\ndef handler(e, c): return json.MINE\n", "json.py": "MINE = 'mine'\n"}))
	d.Create(ctx, "variable", python, Python(t, "import sys\ndef handler(e, c): return [sys.flags.optimize, __debug__]\n"), func(in *lambda.CreateFunctionInput) {
		in.Environment = variables("PYTHONOPTIMIZE", "1")
	})
	d.Eventually(10*time.Second, "one waits", func() bool { return d.parked(ctx)[string(python)].Parked >= 1 })
	if out := d.Invoke(ctx, "shadow", "{}"); string(out.Payload) != `"mine"` {
		t.Errorf("%s", out.Payload)
	}
	if out := d.Invoke(ctx, "variable", "{}"); string(out.Payload) != `[1, false]` {
		t.Errorf("%s", out.Payload)
	}
	d.Eventually(5*time.Second, "both are misses", func() bool { s := d.parked(ctx)[string(python)]; return s.Hits == 0 && s.Misses == 2 })
}

// What is parked ends with its worker, whichever way that ends.
func TestParkedEndWithTheWorker(t *testing.T) {
	needParking(t)
	ctx := t.Context()
	d := StartDev(t)
	for i, kind := range []string{"python", "nodejs"} {
		d.Create(ctx, fmt.Sprintf("f%d", i), d.Runtime(ctx, kind), Python(t, ""))
	}
	d.Create(ctx, "native", "provided.al2023", Zip(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))
	for _, end := range []func(){d.Kill, func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	}} {
		d.Eventually(20*time.Second, "all three kinds are parked", func() bool {
			kinds := 0
			for _, s := range d.parked(ctx) {
				if s.Parked > 0 {
					kinds++
				}
			}
			return kinds == 3
		})
		pids := descendants(t, d.PID())
		if len(pids) < 7 { // the launcher, and two for each kind
			t.Errorf("only %d processes below doze", len(pids))
		}
		end()
		d.Eventually(2*time.Second, "every process has ended", func() bool {
			for _, pid := range pids {
				if syscall.Kill(pid, 0) == nil && !zombie(pid) {
					return false
				}
			}
			return true
		})
		d.Start()
	}
}
