package instance

import (
	"slices"
	"strings"
	"testing"

	"github.com/doze-run/doze/worker/runtimes"
)

func TestEnvironment(t *testing.T) {
	spec := testSpec()
	spec.MemoryMb = 256
	spec.Environment = map[string]string{
		"MINE": "1", "AWS_REGION": "mars", "_HANDLER": "x", "LAMBDA_TASK_ROOT": "/", "AWS_LAMBDA_RUNTIME_API": "evil:1", "_X_AMZN_TRACE_ID": "x",
		"TZ": "Europe/Vienna", "A=B": "x", "NUL": "a\x00b",
	}
	l := &Launch{ID: "i", Spec: spec, Runtime: runtimes.Runtime{Name: "provided.al2023"}, Credentials: Credentials{"AK", "SK", "ST"}}
	o := &Options{Region: "us-east-1"}
	want := strings.Split(`AWS_ACCESS_KEY_ID=AK
AWS_DEFAULT_REGION=us-east-1
AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256
AWS_LAMBDA_FUNCTION_NAME=f
AWS_LAMBDA_FUNCTION_VERSION=$LATEST
AWS_LAMBDA_INITIALIZATION_TYPE=on-demand
AWS_LAMBDA_LOG_GROUP_NAME=/aws/lambda/f
AWS_LAMBDA_LOG_STREAM_NAME=stream
AWS_REGION=us-east-1
AWS_SECRET_ACCESS_KEY=SK
AWS_SESSION_TOKEN=ST
GOMAXPROCS=1
LAMBDA_RUNTIME_DIR=/var/runtime
LAMBDA_TASK_ROOT=/var/task
LANG=en_US.UTF-8
LD_LIBRARY_PATH=/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib
MINE=1
PATH=/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin
TZ=Europe/Vienna
_HANDLER=h`, "\n")
	if got := environment(o, l, "stream"); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	l.Runtime = runtimes.Runtime{Name: "nodejs20.x", Path: "/usr/bin/node", Version: "20.1.0"}
	l.Provisioned, spec.LogGroup = true, "/mine"
	got := environment(o, l, "stream")
	for _, line := range []string{"AWS_EXECUTION_ENV=AWS_Lambda_nodejs20.x", "AWS_LAMBDA_INITIALIZATION_TYPE=provisioned-concurrency", "AWS_LAMBDA_LOG_GROUP_NAME=/mine"} {
		if !slices.Contains(got, line) {
			t.Errorf("lacks %s", line)
		}
	}
	if slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "GOMAXPROCS=") }) {
		t.Error("an interpreter has GOMAXPROCS")
	}
}

func TestShares(t *testing.T) {
	for _, c := range []struct {
		memory uint32
		milli  int
		procs  string
	}{{128, 72, "1"}, {1768, 999, "1"}, {1769, 1000, "1"}, {1800, 1017, "2"}, {3538, 2000, "2"}, {10240, 5788, "6"}} {
		if got := cpuMilli(c.memory); got != c.milli {
			t.Errorf("%d MB: %d", c.memory, got)
		}
		spec := testSpec()
		spec.MemoryMb = c.memory
		l := &Launch{Spec: spec, Runtime: runtimes.Runtime{Name: "provided.al2"}}
		if got := environment(&Options{}, l, ""); !slices.Contains(got, "GOMAXPROCS="+c.procs) {
			t.Errorf("%d MB: %v", c.memory, got)
		}
		spec.Environment = map[string]string{"GOMAXPROCS": "7"}
		if got := environment(&Options{}, l, ""); !slices.Contains(got, "GOMAXPROCS=7") {
			t.Errorf("%d MB: the owner's GOMAXPROCS is lost: %v", c.memory, got)
		}
	}
}
