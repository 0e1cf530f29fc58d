package testenv

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
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

const pythonSleep = `
import time
def handler(event, context):
    time.sleep(event["s"])
    return event
`

// called is how a call ended.
type called struct {
	out *lambda.InvokeOutput
	err error
}

// background invokes and hands over how it ended.
func (d *Dev) background(ctx context.Context, name, payload string) <-chan called {
	end := make(chan called, 1)
	client := d.Client()
	go func() {
		out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: &name, Payload: []byte(payload)})
		end <- called{out, err}
	}()
	return end
}

// busy waits until as many instances of a function run a call.
func (d *Dev) busy(ctx context.Context, name string, n int) {
	d.t.Helper()
	d.Eventually(20*time.Second, fmt.Sprintf("%d instances of %s run a call", n, name), func() bool {
		running := 0
		for _, i := range d.Instances(ctx, name) {
			if i.State == "busy" {
				running++
			}
		}
		return running == n
	})
}

// A function that is deleted while it runs ends its calls and goes; events that wait for it are
// dropped, and a new function of the name does not get them.
func TestDeleteWhileItRuns(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	client, python := d.Client(), d.Runtime(ctx, "python")
	d.Create(ctx, "f", python, Python(t, pythonSleep))
	if _, err := client.PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{FunctionName: aws.String("f"), ReservedConcurrentExecutions: aws.Int32(2)}); err != nil {
		t.Fatal(err)
	}
	running := []<-chan called{d.background(ctx, "f", `{"s":1.5}`), d.background(ctx, "f", `{"s":1.5}`)}
	d.busy(ctx, "f", 2)
	for range 20 {
		if _, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`{"s":0}`)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String("f")}); err != nil {
		t.Fatal(err)
	}
	var gone *types.ResourceNotFoundException
	if _, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f")}); !errors.As(err, &gone) {
		t.Errorf("a call after the deletion: %v", err)
	}
	for _, end := range running {
		if got := <-end; got.err != nil || string(got.out.Payload) != `{"s": 1.5}` {
			t.Errorf("a call that ran got %+v", got)
		}
	}
	d.Eventually(10*time.Second, "no instance of it is left", func() bool { return len(d.Instances(ctx, "f")) == 0 })
	d.Eventually(10*time.Second, "no event waits", func() bool {
		var status struct {
			PendingEvents int `json:"pendingEvents"`
		}
		d.Get(ctx, "/doze/v1/status", &status)
		return status.PendingEvents == 0
	})
	d.Create(ctx, "f", python, Python(t, "def handler(event, context):\n    return 'new'\n"))
	if out := d.Invoke(ctx, "f", "{}"); string(out.Payload) != `"new"` {
		t.Errorf("the new function answers %s", out.Payload)
	}
	d.Eventually(10*time.Second, "three calls are billed", func() bool {
		n, _ := d.Requests(ctx, "f")
		if n > 3 {
			t.Fatalf("%d calls are billed: the deleted function's events ran", n)
		}
		return n == 3
	})
}

// A call that runs while its function is updated ends with the code it began with; the next one has
// the new code, and the old instance goes.
func TestUpdateWhileItRuns(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	client := d.Client()
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, pythonSleep))
	old := d.background(ctx, "f", `{"s":1.5}`)
	d.busy(ctx, "f", 1)
	before := d.Instances(ctx, "f")[0].ID
	if _, err := client.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{
		FunctionName: aws.String("f"), ZipFile: Python(t, "def handler(event, context):\n    return 'new'\n"),
	}); err != nil {
		t.Fatal(err)
	}
	d.WaitActive(ctx, "f")
	if out := d.Invoke(ctx, "f", "{}"); string(out.Payload) != `"new"` {
		t.Errorf("after the update: %s", out.Payload)
	}
	if got := <-old; got.err != nil || string(got.out.Payload) != `{"s": 1.5}` {
		t.Errorf("the call that ran got %+v", got)
	}
	d.Eventually(10*time.Second, "the old instance has ended", func() bool {
		for _, i := range d.Instances(ctx, "f") {
			if i.ID == before {
				return false
			}
		}
		return true
	})
	if out := d.Invoke(ctx, "f", "{}"); string(out.Payload) != `"new"` {
		t.Errorf("with the old instance gone: %s", out.Payload)
	}
}

// SIGTERM lets fifty running calls end, all of them; a second one ends at once what still runs. Each
// time nothing is left of any instance, and the bill has what was answered, once.
func TestStopUnderLoad(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, pythonSleep), func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(60) })
	start := func(n int, seconds string) (ends []<-chan called, pids []int) {
		t.Helper()
		for range n {
			ends = append(ends, d.background(ctx, "f", `{"s":`+seconds+`}`))
		}
		d.busy(ctx, "f", n)
		return ends, descendants(t, d.PID())
	}
	empty := func(pids []int) {
		t.Helper()
		d.Eventually(5*time.Second, "every process has ended", func() bool {
			for _, pid := range pids {
				if syscall.Kill(pid, 0) == nil && !zombie(pid) {
					return false
				}
			}
			return true
		})
	}
	billed := func(want int64) {
		t.Helper()
		d.Eventually(10*time.Second, fmt.Sprintf("%d calls are billed", want), func() bool {
			n, _ := d.Requests(ctx, "f")
			if n > want {
				t.Fatalf("%d calls were answered, %d are billed", want, n)
			}
			return n == want
		})
	}

	ends, pids := start(50, "3")
	if err := d.Stop(); err != nil {
		t.Fatalf("%v\n%s", err, d.Stderr())
	}
	for _, end := range ends {
		if got := <-end; got.err != nil || string(got.out.Payload) != `{"s": 3}` {
			t.Errorf("a running call got %+v", got)
		}
	}
	empty(pids)

	d.Start()
	billed(50)
	ends, pids = start(5, "50")
	if err := d.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.Eventually(10*time.Second, "the first signal is heard", func() bool { return strings.Contains(d.Stderr(), "a second signal stops at once") })
	if err := d.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.Wait(10 * time.Second); err == nil {
		t.Error("calls were cut off, and the process says that all is well")
	}
	for _, end := range ends {
		if got := <-end; got.err == nil {
			t.Errorf("a call that was cut off got %s", got.out.Payload)
		}
	}
	empty(pids)

	d.Start()
	d.Invoke(ctx, "f", `{"s":0}`)
	billed(51)
}

// kill -9 at moments drawn at random, under sync calls and events: whatever was answered is on the
// bill once, whatever was accepted ran, and no more than was begun is billed.
func TestKilledAtRandom(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t, "--async-retry-waits", "300ms,300ms")
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, pythonSleep))
	random := rand.New(rand.NewPCG(1, 2))
	var answered, accepted, cut atomic.Int64
	for range 4 {
		client := d.Client()
		stop := make(chan struct{})
		var group sync.WaitGroup
		for worker := range 6 {
			group.Go(func() {
				in := &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"s":0.01}`)}
				count := &answered
				if worker == 0 {
					in.InvocationType, count = types.InvocationTypeEvent, &accepted
				}
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := client.Invoke(ctx, in); err != nil {
						cut.Add(1)
						return // its connection ended with the process
					}
					count.Add(1)
				}
			})
		}
		time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond) // the moment; nothing waits for it
		d.Kill()
		close(stop)
		group.Wait()
		d.Start()
	}
	done := answered.Load() + accepted.Load()
	d.Eventually(60*time.Second, "all that was answered or accepted is billed", func() bool {
		n, _ := d.Requests(ctx, "f")
		return n >= done
	})
	d.Eventually(60*time.Second, "no event waits", func() bool {
		var status struct {
			PendingEvents int `json:"pendingEvents"`
		}
		d.Get(ctx, "/doze/v1/status", &status)
		return status.PendingEvents == 0
	})
	// An attempt of an event that was cut off is made again: one each kill for each that ran, at most.
	if n, _ := d.Requests(ctx, "f"); n > done+cut.Load()+accepted.Load() {
		t.Errorf("%d answered, %d accepted, %d cut off, %d billed", answered.Load(), accepted.Load(), cut.Load(), n)
	}
}

// A thousand functions are listed page by page, any of them can be called, and a restart is as quick
// as ever.
func TestThousandFunctions(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	client, python := d.Client(), d.Runtime(ctx, "python")
	code := Python(t, "def handler(event, context):\n    return context.function_name\n")
	var group sync.WaitGroup
	for part := range 4 {
		group.Go(func() {
			for n := part * 250; n < (part+1)*250; n++ {
				if _, err := client.CreateFunction(ctx, &lambda.CreateFunctionInput{
					FunctionName: aws.String(fmt.Sprintf("f%03d", n)), Runtime: python, Handler: aws.String("app.handler"),
					Role: aws.String(Role), Code: &types.FunctionCode{ZipFile: code},
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	check := func() {
		t.Helper()
		pages := lambda.NewListFunctionsPaginator(client, &lambda.ListFunctionsInput{MaxItems: aws.Int32(50)})
		n := 0
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range page.Functions {
				if want := fmt.Sprintf("f%03d", n); aws.ToString(f.FunctionName) != want {
					t.Fatalf("the list has %s where %s is due", aws.ToString(f.FunctionName), want)
				}
				n++
			}
		}
		if n != 1000 {
			t.Errorf("%d functions are listed", n)
		}
		for _, name := range []string{"f000", "f499", "f999"} {
			if out := d.Invoke(ctx, name, "{}"); string(out.Payload) != `"`+name+`"` {
				t.Errorf("%s answers %s", name, out.Payload)
			}
		}
	}
	check()
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	d.Start()
	client = d.Client()
	check()
}

// What stands at AWS's limits is taken and works; settings beyond them are refused.
func TestLimits(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	client, python := d.Client(), d.Runtime(ctx, "python")
	t.Run("a package of 50 MB", func(t *testing.T) {
		const limit = 52428800
		source := "import os\ndef handler(event, context):\n    return os.path.getsize('blob')\n"
		overhead := len(stored(t, source, nil))
		blob := make([]byte, limit-overhead)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(blob)
		code := stored(t, source, blob)
		if len(code) != limit {
			t.Fatalf("a package of %d bytes", len(code))
		}
		d.Create(ctx, "big", python, code, func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(30) })
		if out := d.Invoke(ctx, "big", "{}"); string(out.Payload) != fmt.Sprint(len(blob)) {
			t.Errorf("the function sees %s bytes of %d", out.Payload, len(blob))
		}
	})
	t.Run("settings", func(t *testing.T) {
		code := Python(t, "import os\ndef handler(event, context):\n    return [len(os.environ.get('BIG', '')), context.get_remaining_time_in_millis() // 100000, context.memory_limit_in_mb]\n")
		d.Create(ctx, "most", python, code, func(in *lambda.CreateFunctionInput) {
			in.Timeout, in.MemorySize = aws.Int32(900), aws.Int32(10240) // more than most machines have: it is a limit, not a share
			in.EphemeralStorage = &types.EphemeralStorage{Size: aws.Int32(10240)}
			in.Environment = &types.Environment{Variables: map[string]string{"BIG": strings.Repeat("x", 4096-len(`{"BIG":""}`))}}
		})
		if out := d.Invoke(ctx, "most", "{}"); string(out.Payload) != `[4086, 8, "10240"]` && string(out.Payload) != `[4086, 8, 10240]` {
			t.Errorf("at the upper limits: %s", out.Payload)
		}
		d.Create(ctx, "least", python, Python(t, pythonSleep), func(in *lambda.CreateFunctionInput) {
			in.Timeout, in.MemorySize = aws.Int32(1), aws.Int32(128)
		})
		if out := d.Invoke(ctx, "least", `{"s":30}`); !strings.Contains(string(out.Payload), "Task timed out after 1.00 seconds") {
			t.Errorf("at the lower limits: %s", out.Payload)
		}
		for what, change := range map[string]func(*lambda.UpdateFunctionConfigurationInput){
			"timeout":    func(in *lambda.UpdateFunctionConfigurationInput) { in.Timeout = aws.Int32(901) },
			"no timeout": func(in *lambda.UpdateFunctionConfigurationInput) { in.Timeout = aws.Int32(0) },
			"memory":     func(in *lambda.UpdateFunctionConfigurationInput) { in.MemorySize = aws.Int32(10241) },
			"environment": func(in *lambda.UpdateFunctionConfigurationInput) {
				in.Environment = &types.Environment{Variables: map[string]string{"BIG": strings.Repeat("x", 4096)}}
			},
		} {
			in := &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("least")}
			change(in)
			if _, err := client.UpdateFunctionConfiguration(ctx, in); err == nil || !strings.Contains(err.Error(), fmt.Sprint(http.StatusBadRequest)) {
				t.Errorf("%s beyond its limit: %v", what, err)
			}
		}
	})
}

// stored packs a Python module and a blob as they are.
func stored(t *testing.T, source string, blob []byte) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := zip.NewWriter(&buffer)
	for _, file := range []struct {
		name string
		text []byte
	}{{"app.py", []byte(source)}, {"blob", blob}} {
		f, err := w.CreateHeader(&zip.FileHeader{Name: file.name, Method: zip.Store})
		if err == nil {
			_, err = f.Write(file.text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}
