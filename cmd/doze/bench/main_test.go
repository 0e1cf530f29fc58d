package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain lets the test binary stand in for the programs that a run starts: the echo server, a
// platform, and a function's plain process.
func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	switch arg := strings.Join(os.Args[1:min(len(os.Args), 3)], " "); {
	case arg == "bench "+EchoCommand:
		err = ServeEcho(ctx, os.Stdout)
	case strings.HasPrefix(arg, "dev "):
		err = servePlatform(ctx, os.Stdout)
	case arg == "function":
		err = pollRuntimeAPI(ctx, os.Getenv("AWS_LAMBDA_RUNTIME_API"))
	default:
		stop()
		goleak.VerifyTestMain(m)
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// fakePlatform answers the part of the Lambda API that a run uses: functions that echo or sleep.
type fakePlatform struct {
	mu        sync.Mutex
	functions map[string]bool
	polls     map[string]int
	created   int
	calls     int
}

func newFakePlatform() *fakePlatform {
	return &fakePlatform{functions: make(map[string]bool), polls: make(map[string]int)}
}

func (f *fakePlatform) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/readyz":
		return
	case "/doze/v1/status":
		_, _ = w.Write([]byte("{}"))
		return
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=") {
		http.Error(w, `{"Message":"unsigned"}`, http.StatusForbidden)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<20))
	if err != nil {
		return
	}
	rest := strings.TrimPrefix(r.URL.Path, "/2015-03-31/functions")
	parts := strings.Split(strings.Trim(rest, "/"), "/")
	f.mu.Lock()
	switch {
	case r.Method == "POST" && parts[0] == "":
		defer f.mu.Unlock()
		var in struct{ FunctionName, Runtime, Handler string }
		if json.Unmarshal(body, &in) != nil || in.Runtime == "" || in.Handler == "" {
			http.Error(w, `{"Message":"bad"}`, http.StatusBadRequest)
			return
		}
		f.functions[in.FunctionName] = true
		f.created++
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"FunctionName":%q,"State":"Pending"}`, in.FunctionName)
	case !f.functions[parts[0]]:
		defer f.mu.Unlock()
		w.Header().Set("X-Amzn-ErrorType", "ResourceNotFoundException")
		http.Error(w, `{"Type":"User","Message":"Function not found"}`, http.StatusNotFound)
	case r.Method == "DELETE":
		defer f.mu.Unlock()
		delete(f.functions, parts[0])
		w.WriteHeader(http.StatusNoContent)
	case r.Method == "GET" && parts[len(parts)-1] == "configuration":
		defer f.mu.Unlock()
		state := "Pending"
		if f.polls[parts[0]]++; f.polls[parts[0]] > 1 {
			state = "Active"
		}
		fmt.Fprintf(w, `{"FunctionName":%q,"State":%q}`, parts[0], state)
	case r.Method == "POST" && parts[len(parts)-1] == "invocations":
		f.calls++
		f.mu.Unlock()
		var e struct{ SleepMs int64 }
		if bytes.Contains(body, []byte("sleepMs")) && json.Unmarshal(body, &e) == nil {
			started := time.Now().UnixMicro()
			// A tenth of the time: the test has little.
			time.Sleep(time.Duration(e.SleepMs) * time.Millisecond / 10)
			fmt.Fprintf(w, `{"instance":%q,"startedMicros":%d}`, rand.Text(), started)
			return
		}
		_, _ = w.Write(body)
	default:
		defer f.mu.Unlock()
		http.Error(w, `{"Message":"no such operation"}`, http.StatusNotFound)
	}
}

func servePlatform(ctx context.Context, ready io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: newFakePlatform()}
	go func() { <-ctx.Done(); _ = server.Close() }()
	fmt.Fprintf(ready, "doze ready http=%s grpc=127.0.0.1:1\n", listener.Addr())
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// pollRuntimeAPI is a function's client in its shortest form: echo.
func pollRuntimeAPI(ctx context.Context, api string) error {
	base := "http://" + api + "/2018-06-01/runtime/invocation/"
	for ctx.Err() == nil {
		next, err := http.Get(base + "next")
		if err != nil {
			return err
		}
		event, err := io.ReadAll(next.Body)
		_ = next.Body.Close()
		if err != nil {
			return err
		}
		// A reader of unknown length makes the body chunked, as aws-lambda-go's is.
		body := io.MultiReader(bytes.NewReader(event))
		answer, err := http.Post(base+next.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "application/json", body)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
	}
	return nil
}

// tiny is a plan that takes a few seconds.
func tiny() *plan {
	return &plan{total: 50 * time.Second, rounds: 2, warmup: 10 * time.Millisecond, window: 60 * time.Millisecond, open: 50 * time.Millisecond,
		floor: 50 * time.Millisecond, sleepRounds: 1, sleep: 150 * time.Millisecond, prewarm: 20 * time.Millisecond, cold: 3, first: 2,
		pace: time.Millisecond, settle: time.Millisecond, starts: 2, idle: 10 * time.Millisecond, crowd: 12,
		variant: 2, rate: 50 * time.Millisecond, thaws: 2, idleCrowd: 12, dropCaches: func() error { return nil }}
}

func testOptions(t *testing.T) Options {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("GORACE", "atexit_sleep_ms=0") // or every child ends a second late under -race
	return Options{Program: program, GoFunction: t.TempDir() + "/none", bounds: tiny(), Progress: testWriter{t},
		Interpreter: func(_ context.Context, language, _ string, _ int) (Interpreter, error) {
			if language == "node" {
				return Interpreter{}, fmt.Errorf("no %s on this machine", language)
			}
			return Interpreter{Runtime: "python3.11", Argv: []string{program, "function"}}, nil
		}}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

func rowOf(t *testing.T, r *Report, key string) Row {
	t.Helper()
	for _, row := range r.Rows {
		if row.Key == key {
			return row
		}
	}
	t.Fatalf("the report has no row %s", key)
	return Row{}
}

func pattern(s string) *regexp.Regexp { return regexp.MustCompile(s) }
