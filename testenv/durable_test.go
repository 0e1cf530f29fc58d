package testenv

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// kill -9 under load, again and again: functions and code stay, and the bill has every answered
// call once and no more than one attempt for each that was not answered.
func TestKilledUnderLoadBillsOnce(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, "def handler(event, context):\n    return 1\n"))
	var answered, failed atomic.Int64
	for range 3 {
		client := d.Client()
		load, stop := context.WithCancel(ctx)
		var group sync.WaitGroup
		before := answered.Load()
		for range 8 {
			group.Go(func() {
				for load.Err() == nil {
					if _, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f")}); err != nil {
						failed.Add(1)
						return
					}
					answered.Add(1)
				}
			})
		}
		d.Eventually(30*time.Second, "200 calls are answered", func() bool { return answered.Load() >= before+200 })
		d.Kill()
		stop()
		group.Wait()
		d.Start()
	}
	d.Invoke(ctx, "f", "{}")
	answered.Add(1)
	d.Eventually(10*time.Second, "every answered call is billed", func() bool {
		n, _ := d.Requests(ctx, "f")
		return n >= answered.Load()
	})
	n, mbMs := d.Requests(ctx, "f")
	if n > answered.Load()+failed.Load() {
		t.Errorf("%d answered, %d cut off, %d billed", answered.Load(), failed.Load(), n)
	}
	if mbMs%128 != 0 || mbMs < 128*n {
		t.Errorf("%d MB·ms for %d calls of 128 MB", mbMs, n)
	}
}

// An accepted event survives kill -9 and runs afterwards.
func TestEventSurvivesKill(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t, "--async-retry-waits", "300ms,300ms")
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, `
import time
def handler(event, context):
    time.sleep(event["sleep"])
    return 1
`))
	client := d.Client()
	for n := range 20 {
		out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: fmt.Appendf(nil, `{"sleep":%d.2}`, n%2)})
		if err != nil || out.StatusCode != 202 || len(out.Payload) != 0 {
			t.Fatalf("%v %+v", err, out)
		}
	}
	d.Kill()
	d.Start()
	d.Eventually(60*time.Second, "all 20 events ran", func() bool { n, _ := d.Requests(ctx, "f"); return n >= 20 })
}

// A failing event is tried three times, under one request id.
func TestEventRetries(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t, "--async-retry-waits", "300ms,600ms")
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, `
def handler(event, context):
    print("attempt of", context.aws_request_id)
    raise Exception("always")
`))
	if _, err := d.Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	var lines []string
	d.Eventually(30*time.Second, "three attempts are logged", func() bool {
		stdout, _, _ := d.CLI(ctx, "logs", "f")
		lines = nil
		for line := range strings.Lines(stdout) {
			if at := strings.Index(line, "attempt of"); at >= 0 {
				lines = append(lines, strings.TrimSpace(line[at:]))
			}
		}
		return len(lines) >= 3
	})
	if len(lines) != 3 || lines[0] != lines[1] || lines[1] != lines[2] {
		t.Errorf("attempts: %q", lines)
	}
	d.Eventually(10*time.Second, "three attempts are billed", func() bool { n, _ := d.Requests(ctx, "f"); return n == 3 })
}

// SIGTERM lets a running call end, ships its usage, and leaves no process behind.
func TestStopLetsCallsEnd(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, "import time\ndef handler(event, context):\n    time.sleep(1.5)\n    return 'whole'\n"))
	answer := make(chan string, 1)
	client := d.Client()
	go func() {
		out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f")})
		if err != nil {
			answer <- err.Error()
			return
		}
		answer <- string(out.Payload)
	}()
	d.Eventually(10*time.Second, "the call runs", func() bool {
		all := d.Instances(ctx, "f")
		return len(all) == 1 && all[0].State == "busy"
	})
	if err := d.Stop(); err != nil {
		t.Fatalf("%v\n%s", err, d.Stderr())
	}
	if got := <-answer; got != `"whole"` {
		t.Errorf("the running call got %s", got)
	}
	d.Start()
	if n, _ := d.Requests(ctx, "f"); n != 1 {
		d.Eventually(5*time.Second, "the call is billed", func() bool { n, _ := d.Requests(ctx, "f"); return n == 1 })
	}
	d.Invoke(ctx, "f", "{}")
}

// After kill -9 no process of a function outlives its worker, and the next start cleans up.
func TestKillLeavesNoProcess(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, `
import subprocess, time
child = subprocess.Popen(["sleep", "1000"])
def handler(event, context):
    time.sleep(0.3)
`))
	client := d.Client()
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() { _, _ = client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f")}) })
	}
	group.Wait()
	pids := descendants(t, d.PID())
	if len(pids) < 10 {
		t.Fatalf("only %d processes below doze", len(pids))
	}
	d.Kill()
	d.Eventually(2*time.Second, "every process has ended", func() bool {
		for _, pid := range pids {
			if syscall.Kill(pid, 0) == nil && !zombie(pid) {
				return false
			}
		}
		return true
	})
	d.Start()
	d.Invoke(ctx, "f", "{}")
}

// descendants are the ids of all processes below pid.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	parents := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var id, parent int
		var state string
		after := raw[strings.LastIndexByte(string(raw), ')')+1:]
		_, _ = fmt.Sscan(string(raw), &id)
		_, _ = fmt.Sscan(string(after), &state, &parent)
		parents[parent] = append(parents[parent], id)
	}
	var all []int
	next := []int{pid}
	for len(next) > 0 {
		children := parents[next[0]]
		all, next = append(all, children...), append(next[1:], children...)
	}
	return all
}

func zombie(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(raw), ") Z ")
}
