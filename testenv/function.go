package testenv

import (
	"archive/zip"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// Role is a role as clients send it; nothing assumes it.
const Role = "arn:aws:iam::000000000000:role/test"

// Zip packs files by name. Names that end in "bootstrap" are executable.
func Zip(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := zip.NewWriter(&buffer)
	for name, text := range files {
		header := &zip.FileHeader{Name: name, Method: zip.Deflate}
		header.SetMode(0o644)
		if filepath.Base(name) == "bootstrap" {
			header.SetMode(0o755)
		}
		f, err := w.CreateHeader(header)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

// Python is a package with one file, whose handler is app.handler.
func Python(t testing.TB, source string) []byte {
	return Zip(t, map[string]string{"app.py": source})
}

// Node is a package with one ES module, whose handler is index.handler.
func Node(t testing.TB, source string) []byte {
	return Zip(t, map[string]string{"index.mjs": source})
}

// Runtime is the name of the runtime of this kind ("python", "nodejs") that the process under test
// offers; the test fails when it has none, since a machine that runs these tests must have both.
func (d *Dev) Runtime(ctx context.Context, kind string) types.Runtime {
	d.t.Helper()
	for _, r := range d.Runtimes(ctx) {
		if len(r) > len(kind) && r[:len(kind)] == kind {
			return types.Runtime(r)
		}
	}
	d.t.Fatalf("doze found no %s on this machine; install it", kind)
	return ""
}

// Create creates a function and waits until it is active. change may adjust the request.
func (d *Dev) Create(ctx context.Context, name string, runtime types.Runtime, code []byte, change ...func(*lambda.CreateFunctionInput)) *lambda.CreateFunctionOutput {
	d.t.Helper()
	handler := "app.handler"
	if len(runtime) > 4 && runtime[:4] == "node" {
		handler = "index.handler"
	}
	input := &lambda.CreateFunctionInput{
		FunctionName: aws.String(name), Runtime: runtime, Handler: aws.String(handler), Role: aws.String(Role),
		Code: &types.FunctionCode{ZipFile: code}, Timeout: aws.Int32(10),
	}
	for _, c := range change {
		c(input)
	}
	client := d.Client()
	out, err := client.CreateFunction(ctx, input)
	if err != nil {
		d.t.Fatalf("create %s: %v", name, err)
	}
	d.WaitActive(ctx, name)
	return out
}

// WaitActive waits as `aws lambda wait function-active-v2` and `function-updated-v2` do.
func (d *Dev) WaitActive(ctx context.Context, name string) {
	d.t.Helper()
	client := d.Client()
	fast := func(o *lambda.FunctionActiveV2WaiterOptions) {
		o.MinDelay, o.MaxDelay = 5*time.Millisecond, 50*time.Millisecond
	}
	if err := lambda.NewFunctionActiveV2Waiter(client, fast).Wait(ctx, &lambda.GetFunctionInput{FunctionName: &name}, time.Minute); err != nil {
		d.t.Fatalf("%s does not become active: %v", name, err)
	}
	quick := func(o *lambda.FunctionUpdatedV2WaiterOptions) {
		o.MinDelay, o.MaxDelay = 5*time.Millisecond, 50*time.Millisecond
	}
	if err := lambda.NewFunctionUpdatedV2Waiter(client, quick).Wait(ctx, &lambda.GetFunctionInput{FunctionName: &name}, time.Minute); err != nil {
		d.t.Fatalf("%s is not updated: %v", name, err)
	}
}

// Invoke calls a function and fails the test when the platform does not answer.
func (d *Dev) Invoke(ctx context.Context, name, payload string) *lambda.InvokeOutput {
	d.t.Helper()
	out, err := d.Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: &name, Payload: []byte(payload), LogType: types.LogTypeTail})
	if err != nil {
		d.t.Fatalf("invoke %s: %v", name, err)
	}
	return out
}

var goFunctions sync.Map // source dir → built bootstrap

// GoFunction builds a Go function (a folder of package main, relative to the repository's root) and
// packs it as a provided.al2023 package. Where there is no Go, as in a container, the folder
// DOZE_TEST_FUNCTIONS has it built already, at the same path.
func GoFunction(t testing.TB, dir string) []byte {
	t.Helper()
	built, _ := goFunctions.LoadOrStore(dir, sync.OnceValues(func() ([]byte, error) {
		if ready := os.Getenv("DOZE_TEST_FUNCTIONS"); ready != "" {
			return os.ReadFile(filepath.Join(ready, dir, "bootstrap"))
		}
		tmp, err := os.MkdirTemp("", "doze-test-fn-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		path := filepath.Join(tmp, "bootstrap")
		build := exec.Command("go", "build", "-tags", "lambda.norpc", "-ldflags", "-s -w", "-o", path, ".")
		build.Dir = filepath.Join(Root(), dir)
		build.Env = append(slices.Clone(os.Environ()), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return out, err
		}
		return os.ReadFile(path)
	}))
	raw, err := built.(func() ([]byte, error))()
	if err != nil {
		t.Fatalf("build %s: %v\n%s", dir, err, raw)
	}
	return Zip(t, map[string]string{"bootstrap": string(raw)})
}

// Root is the repository's root, for tests that run in a folder below it.
func Root() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return "."
}
