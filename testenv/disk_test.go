package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of its own of this many bytes, which its owner may fill.
func smallDisk(t *testing.T, bytes int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Skipf("SKIPPED: a disk to fill needs the right to mount one: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all room there is, in a file whose removal gives it back.
func fill(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// ready asks /readyz, and answers its words.
func (d *Dev) ready(ctx context.Context) (bool, string) {
	d.t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.HTTP+"/readyz", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		d.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return response.StatusCode == http.StatusOK, string(text)
}

// A full disk stops what has to be stored, with words that say what to do; calls go on. When there
// is room again all goes on by itself, and the bill has every call once.
func TestFullDisk(t *testing.T) {
	ctx := t.Context()
	disk := smallDisk(t, 64<<20)
	d := StartDev(t, "--data-dir", filepath.Join(disk, "data"))
	client := d.Client()
	python := d.Runtime(ctx, "python")
	d.Create(ctx, "f", python, Python(t, "def handler(event, context):\n    return 1\n"))
	runs := int64(0)
	invoke := func() {
		t.Helper()
		if out := d.Invoke(ctx, "f", "{}"); string(out.Payload) != "1" {
			t.Fatalf("answer %s", out.Payload)
		}
		runs++
	}
	event := func() error {
		_, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent})
		if err == nil {
			runs++
		}
		return err
	}
	billed := func() bool {
		n, _ := d.Requests(ctx, "f")
		if n > runs {
			t.Fatalf("%d calls, %d billed", runs, n)
		}
		return n == runs
	}
	invoke()
	if err := event(); err != nil {
		t.Fatal(err)
	}
	d.Eventually(10*time.Second, "two calls are billed", billed)

	filler := fill(t, disk)
	for range 5 {
		invoke()
	}
	wantFull := func(what string, err error) {
		t.Helper()
		var service *types.ServiceException
		if !errors.As(err, &service) || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), "is full: free some room") {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantFull("an event", event())
	_, err := client.CreateFunction(ctx, &lambda.CreateFunctionInput{
		FunctionName: aws.String("g"), Runtime: python, Handler: aws.String("app.handler"), Role: aws.String(Role),
		Code: &types.FunctionCode{ZipFile: Python(t, "def handler(event, context):\n    return 2\n")},
	})
	wantFull("a new function", err)
	d.Eventually(20*time.Second, "usage meets the full disk, and the platform says so", func() bool {
		invoke()
		ready, why := d.ready(ctx)
		return !ready && strings.Contains(why, "is full: free some room")
	})
	if out, _, _ := d.CLI(ctx, "status"); !strings.Contains(out, "is full: free some room") {
		t.Errorf("doze status does not say that the disk is full:\n%s", out)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.Eventually(20*time.Second, "all goes on", func() bool { ready, _ := d.ready(ctx); return ready })
	invoke()
	if err := event(); err != nil {
		t.Errorf("an event after the disk was full: %v", err)
	}
	d.Create(ctx, "g", python, Python(t, "def handler(event, context):\n    return 2\n"))
	if out := d.Invoke(ctx, "g", "{}"); string(out.Payload) != "2" {
		t.Errorf("answer %s", out.Payload)
	}
	d.Eventually(30*time.Second, "every call is billed once", billed)
	var status struct {
		Problems []string `json:"problems"`
	}
	out, _, _ := d.CLI(ctx, "status", "--json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Problems) > 0 {
		t.Errorf("status: %v\n%s", err, out)
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	d.Start()
	client = d.Client()
	invoke()
	d.Eventually(10*time.Second, "the bill is as it was, and the last call in it", billed)
}

// Without room to begin the process says so; with room it begins in the same folder.
func TestStartOnFullDisk(t *testing.T) {
	disk := smallDisk(t, 48<<20)
	filler := fill(t, disk)
	data := filepath.Join(disk, "data")
	if err := os.Truncate(filler, 40<<20); err != nil {
		t.Fatal(err)
	}
	_, errs, code := doze(t, "", nil, "dev", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--data-dir", data)
	if code != 1 || !strings.Contains(errs, "the disk of "+data+" is full: free some room, or choose another folder with --data-dir") {
		t.Errorf("exit %d\n%s", code, errs)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d := StartDev(t, "--data-dir", data)
	if ready, why := d.ready(t.Context()); !ready {
		t.Error(why)
	}
}
