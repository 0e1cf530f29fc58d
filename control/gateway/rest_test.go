package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/google/go-cmp/cmp"
)

// wantAnswer checks an error answer: status, AWS's headers, a JSON body with the text in it.
func wantAnswer(t *testing.T, answer *http.Response, body string, status int, code, text string) {
	t.Helper()
	if answer.StatusCode != status || answer.Header.Get("x-amzn-ErrorType") != code || !strings.Contains(body, text) {
		t.Errorf("got %s, %s, %s\nwant %d, %s, %s", answer.Status, answer.Header.Get("x-amzn-ErrorType"), body, status, code, text)
	}
	if len(answer.Header.Get("x-amzn-RequestId")) != 36 || answer.Header.Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", answer.Header)
	}
	var shape map[string]string
	if answer.Request.Method != http.MethodHead && json.Unmarshal([]byte(body), &shape) != nil {
		t.Errorf("the body is not an AWS error: %s", body)
	}
}

// TestRouting: whatever path and verb come, the answer is an operation's or an error in AWS's shape.
func TestRouting(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	unknown, notOffered := codeUnknownOperation, "is not offered by Doze yet"
	tests := []struct {
		verb, path string
		status     int
		code, text string
	}{
		{"GET", "/2015-03-31/functions", 200, "", `{"Functions":[{"FunctionName":"f"`},
		{"GET", "/2015-03-31/functions/", 200, "", `{"Functions":[`},
		{"GET", "/2015-03-31/functions/f/", 200, "", `{"Configuration":{`},
		{"GET", "/2015-03-31/functions/arn:aws:lambda:us-east-1:000000000000:function:f/configuration", 200, "", `{"FunctionName":"f"`},
		{"GET", "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af/configuration", 200, "", `{"FunctionName":"f"`},
		{"GET", "/2015-03-31/functions/f?unknown=1", 200, "", `{"Configuration":{`},
		{"GET", "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af", 200, "", `{"Tags":{}}`},
		{"GET", "/2019-09-30/functions/f/concurrency", 200, "", `{}`},
		{"GET", "/doze/v1/instances", 200, "", `[{"id":"i-1","function":"f","version":"$LATEST","state":"idle","createdAt":"2024-05-01T12:00:00Z","idleMs":5,"memoryBytes":1099511627776,"calls":0,"cold":false,"worker":""}]`},
		{"GET", "/doze/v1/runtimes", 200, "", `[]`},
		{"GET", "/doze/v1/bill?month=2024-03", 200, "", `{"month":"2024-03","functions":[],"totalNanoUSD":9007199254740992,"alwaysOnNanoUSD":14880000000}`},
		{"GET", "/doze/v1/bill", 200, "", `"month":"2024-05"`},
		{"GET", "/doze/v1/bill?month=2024-13", 400, codeValidation, "Value '2024-13' at 'month' failed"},
		{"GET", "/doze/v1/bill?Month=2024-03", 400, codeValidation, "no query parameter 'Month'"},
		{"GET", "/doze/v1/status", 200, "", `"ready":true`},
		{"GET", "/healthz", 200, "", `"healthy":true`},
		{"GET", "/readyz", 200, "", `"ready":true`},

		{"GET", "/", 404, unknown, "No operation"},
		{"GET", "", 404, unknown, "No operation"},
		{"GET", "/favicon.ico", 404, unknown, "No operation"},
		{"GET", "//2015-03-31/functions", 404, unknown, "No operation"},
		{"GET", "/2015-03-31/functions//", 400, codeValidation, "Value '' at 'functionName' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"GET", "/2015-03-31/functions//configuration", 400, codeValidation, "at 'functionName'"},
		{"POST", "/2015-03-31/functions//invocations", 400, codeValidation, "at 'functionName'"},
		{"POST", "/2015-03-31/functions/invocations", 404, unknown, "has POST on this path"},
		{"GET", "/2015-03-31/functions/f/g/configuration", 404, unknown, "No operation"},
		{"GET", "/2015-03-31/functions/f%2Fg/configuration", 400, codeValidation, "Value 'f/g' at 'functionName'"},
		{"GET", "/2015-03-31/functions/%00/configuration", 400, codeValidation, "at 'functionName'"},
		{"GET", "/2015-03-31/functions/%FF/configuration", 400, codeValidation, "at 'functionName'"},
		{"GET", "/2015-03-31/functions/%252F/configuration", 400, codeValidation, "Value '%2F' at 'functionName'"},
		{"GET", "/2015-03-31/functions/../functions/f", 404, unknown, "No operation"},
		{"GET", invokeF, 404, unknown, "has GET on this path"},
		{"HEAD", invokeF, 404, unknown, ""},
		{"OPTIONS", "/2015-03-31/functions", 404, unknown, "has OPTIONS on this path"},
		{"PATCH", "/2015-03-31/functions/f", 404, unknown, "has PATCH on this path"},
		{"DELETE", "/2015-03-31/functions", 404, unknown, "has DELETE on this path"},
		{"GET", "/2018-10-31/layers", 404, unknown, "ListLayers " + notOffered},
		{"GET", "/2018-10-31/layers?find=LayerVersion&Arn=x", 404, unknown, "GetLayerVersionByArn " + notOffered},
		{"GET", "/2019-09-30/functions/f/provisioned-concurrency?List=ALL", 404, unknown, "ListProvisionedConcurrencyConfigs " + notOffered},
		{"GET", "/2019-09-30/functions/f/provisioned-concurrency?Qualifier=1", 404, unknown, "GetProvisionedConcurrencyConfig " + notOffered},
		{"POST", "/2015-03-31/event-source-mappings", 404, unknown, "CreateEventSourceMapping " + notOffered},
		{"GET", "/2021-10-31/functions/f/url", 404, unknown, "GetFunctionUrlConfig " + notOffered},
		{"POST", "/2021-11-15/functions/f/response-streaming-invocations", 404, unknown, "InvokeWithResponseStream " + notOffered},
		{"GET", "/2015-03-31/functions?MaxItems=abc", 400, codeSerialization, "at 'maxItems'"},
		{"GET", "/2015-03-31/functions?MaxItems=0", 400, codeValidation, "Value '0' at 'maxItems' failed"},
		{"GET", "/2015-03-31/functions?MaxItems=%zz", 400, codeValidation, "query string is malformed"},
		{"GET", "/2015-03-31/functions/" + strings.Repeat("x/", 5000), 404, unknown, "No operation"},
		{"DELETE", "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af", 400, codeValidation, "Value null at 'tagKeys' failed to satisfy constraint: Member must not be null"},
		{"POST", "/doze/v1/code/abc", 404, unknown, "not possible"},
		{"GET", "/doze/v1/code/abc", 403, codeAccessDenied, "link"},
	}
	for _, test := range tests {
		name := test.path
		if len(name) > 90 {
			name = name[:90]
		}
		t.Run(test.verb+" "+name, func(t *testing.T) {
			answer, body := w.do(test.verb, test.path, "")
			if test.status == 200 {
				if answer.StatusCode != 200 || !strings.Contains(body, test.text) || answer.Header.Get("x-amzn-RequestId") == "" {
					t.Errorf("%s %s", answer.Status, body)
				}
				return
			}
			wantAnswer(t, answer, body, test.status, test.code, test.text)
		})
	}
}

// TestBodies: what can be wrong with a body.
func TestBodies(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	const configuration = "/2015-03-31/functions/f/configuration"
	tests := []struct {
		verb, path, body string
		status           int
		code, text       string
	}{
		{"PUT", configuration, `{"Timeout":"10"}`, 400, codeSerialization, "STRING_VALUE can not be converted to an Integer (at 'timeout')"},
		{"PUT", configuration, `{"Timeout":10.5}`, 400, codeSerialization, "DECIMAL_VALUE"},
		{"PUT", configuration, `{"Timeout":99999999999}`, 400, codeSerialization, "out of range"},
		{"PUT", configuration, `{"Description":5}`, 400, codeSerialization, "NUMBER_VALUE can not be converted to a String (at 'description')"},
		{"PUT", configuration, `{"Description":true}`, 400, codeSerialization, "TRUE_VALUE"},
		{"PUT", configuration, `{"Description":{}}`, 400, codeSerialization, "Start of structure or map found where not expected"},
		{"PUT", configuration, `{"Layers":"x"}`, 400, codeSerialization, "STRING_VALUE can not be converted to a list (at 'layers')"},
		{"PUT", configuration, `{"Environment":[]}`, 400, codeSerialization, "Start of list found where not expected"},
		{"PUT", configuration, `{"Environment":{"Variables":{"KEY":1}}}`, 400, codeSerialization, "at 'environment.variables'"},
		{"PUT", configuration, `{`, 400, codeSerialization, "Could not parse request body into json"},
		{"PUT", configuration, `[]`, 400, codeSerialization, "Start of list"},
		{"PUT", configuration, `{} x`, 400, codeSerialization, "Could not parse"},
		{"PUT", configuration, "{\"Description\":\"\xff\"}", 400, codeSerialization, "UTF-8"},
		{"PUT", configuration, `{"a":` + strings.Repeat("[", 100_000), 400, codeSerialization, "nested too deeply"},
		{"PUT", configuration, `{"a":[` + strings.Repeat("1,", 200_000) + `1]}`, 400, codeSerialization, "too many values"},
		{"PUT", configuration, `{"Description":"` + strings.Repeat("x", maxOtherRequest) + `"}`, 413, codeTooLarge, "Request must be smaller than 1048576 bytes for the UpdateFunctionConfiguration operation"},
		{"POST", "/2015-03-31/functions", `{"Code":{"ZipFile":"?"}}`, 400, codeSerialization, "not base64"},
		{"POST", "/2015-03-31/functions", ``, 400, codeValidation, "3 validation errors detected: Value null at 'functionName' failed to satisfy constraint: Member must not be null; Value null at 'role' failed to satisfy constraint: Member must not be null; Value null at 'code' failed"},
		{"PUT", "/2017-10-31/functions/f/concurrency", `{}`, 400, codeValidation, "1 validation error detected: Value null at 'reservedConcurrentExecutions' failed to satisfy constraint: Member must not be null"},
		{"PUT", "/2017-10-31/functions/f/concurrency", `{"ReservedConcurrentExecutions":-1}`, 400, codeValidation, "Member must have value greater than or equal to 0"},
		{"PUT", configuration, ` { "Description" : "a\/\u00e9\ud83d\ude00\n" , "Unknown":{"x":[null,1.5e3,"y"]}, "Timeout":null, "FunctionName":"other" } `, 200, "", `"FunctionName":"f"`},
		{"PUT", configuration, `null`, 200, "", `"Description":"a/é😀\n"`},
		{"POST", "/2015-03-31/functions/f/versions", ``, 201, "", `"Version":"1"`},
	}
	for _, test := range tests {
		name := test.verb + " " + test.body
		t.Run(name[:min(60, len(name))], func(t *testing.T) {
			answer, body := w.do(test.verb, test.path, test.body)
			if test.status < 300 {
				if answer.StatusCode != test.status || !strings.Contains(body, test.text) {
					t.Errorf("%s %s", answer.Status, body)
				}
				return
			}
			wantAnswer(t, answer, body, test.status, test.code, test.text)
		})
	}
	// A form that a browser could send is a body like any other, not a disguised GET.
	answer, body := w.do("POST", "/2015-03-31/functions/f", "a=b", "Content-Type", "application/x-www-form-urlencoded", "X-HTTP-Method-Override", "GET")
	wantAnswer(t, answer, body, 404, codeUnknownOperation, "has POST on this path")
	answer, body = w.do("GET", "/2015-03-31/functions/f", "", "Grpc-Timeout", "nonsense", "TE", "trailers")
	if answer.StatusCode != 200 {
		t.Errorf("gRPC's headers mean something: %s %s", answer.Status, body)
	}
}

// raw sends bytes on a connection of its own and reads one answer.
func (w *world) raw(request string, more ...io.Reader) (*http.Response, string) {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.server.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.Copy(conn, io.MultiReader(append([]io.Reader{strings.NewReader(request)}, more...)...)); err != nil {
		w.t.Fatal(err)
	}
	r := must(http.NewRequest("POST", "/", nil))(w.t)
	answer, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer, string(body)
}

// TestBodyRefusedUnread: a body over the limit is refused by its announced length, before it is sent;
// one that announces none as soon as it is over.
func TestBodyRefusedUnread(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	answer, body := w.raw("POST " + invokeF + " HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
	wantAnswer(t, answer, body, 413, codeTooLarge, "6291456")
	answer, body = w.raw("POST /2015-03-31/functions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
	wantAnswer(t, answer, body, 413, codeTooLarge, "Request must be smaller than 70167211 bytes for the CreateFunction operation")
	chunk := "10000\r\n" + strings.Repeat("1", 0x10000) + "\r\n"
	answer, body = w.raw("POST "+invokeF+" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", strings.NewReader(strings.Repeat(chunk, 97)))
	wantAnswer(t, answer, body, 413, codeTooLarge, "6291456")
	answer, body = w.raw("POST "+invokeF+" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", strings.NewReader(chunk+chunk+"0\r\n\r\n"))
	if answer.StatusCode != 200 || len(body) != 2*0x10000 {
		t.Errorf("chunked: %s %d bytes", answer.Status, len(body))
	}
}

// TestSlowBody: a client that stops, or dribbles, is refused; one that is slow but goes on is not.
func TestSlowBody(t *testing.T) {
	read := func(t *testing.T, size int64, each int, every time.Duration) error {
		var err error
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					time.Sleep(every)
					if _, err := client.Write(make([]byte, each)); err != nil {
						return
					}
				}
			}()
			r := must(http.NewRequest("POST", "/", nil))(t)
			r.ContentLength, r.Body = size, server
			b := &body{r: r, control: http.NewResponseController(pipeWriter{conn: server}), memory: newBodyMemory(0), limit: maxCodeRequest}
			_, err = b.bytes()
			b.release()
			_ = server.Close()
			_ = client.Close()
			<-done
		})
		return err
	}
	var f *Fault
	if err := read(t, 1000, 100, 21*time.Second); !errors.As(err, &f) || f.Code != codeRequestTimeout {
		t.Errorf("stalled: %v", err)
	}
	if err := read(t, 1<<20, 10, time.Second); !errors.As(err, &f) || f.Code != codeRequestTimeout {
		t.Errorf("dribbled: %v", err)
	}
	if err := read(t, 60<<20, 200<<10, 10*time.Second); err != nil {
		t.Errorf("slow but going on for fifty minutes: %v", err)
	}
}

type pipeWriter struct {
	http.ResponseWriter
	conn net.Conn
}

func (p pipeWriter) SetReadDeadline(at time.Time) error { return p.conn.SetReadDeadline(at) }

// TestBodyMemory: large bodies wait for memory, for a while, and give it back.
func TestBodyMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newBodyMemory(1)
		if err := memory.take(t.Context(), memory.total); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var f *Fault
		if err := memory.take(t.Context(), 1); !errors.As(err, &f) || f.Code != codeTooMany || time.Since(start) != memoryWait {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		time.AfterFunc(time.Second, func() { memory.free.Release(memory.total) })
		if err := memory.take(t.Context(), memory.total); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t)
	w.create("f")
	for range 3 {
		body := `"` + strings.Repeat("x", 4<<20) + `"`
		if answer, _ := w.do("POST", invokeF, body); answer.StatusCode != 200 {
			t.Error(answer.Status)
		}
	}
	// It waits for the handlers to return, and for ever if a body's memory is not given back.
	if err := w.gateway.memory.free.Acquire(t.Context(), w.gateway.memory.total); err != nil {
		t.Error(err)
	}
}

func TestHalfBody(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	conn := must(net.Dial("tcp", w.server.Listener.Addr().String()))(t)
	defer conn.Close()
	fmt.Fprint(conn, "POST "+invokeF+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{}")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer := must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
	defer answer.Body.Close()
	if answer.StatusCode != 400 || answer.Header.Get("x-amzn-ErrorType") != codeSerialization || len(w.invoker.calls) != 0 {
		t.Errorf("%s %v, %d calls", answer.Status, answer.Header, len(w.invoker.calls))
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	answer, body := w.do("GET", "/doze/v1/functions/f/logs?since=10m", "")
	at := w.clock.Now().Add(-10 * time.Minute).UnixMilli()
	want := fmt.Sprintf("{\"atMs\":%d,\"stream\":\"s\",\"message\":\"first\"}\n{\"atMs\":%d,\"stream\":\"s\",\"message\":\"second \\\"quoted\\\"\"}\n", at, at)
	if diff := cmp.Diff(want, body); diff != "" || answer.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("%s %s", answer.Header.Get("Content-Type"), diff)
	}
	for path, text := range map[string]string{
		"/doze/v1/functions/f/logs?since=yesterday": "'since' must be",
		"/doze/v1/functions/f/logs?follow=maybe":    "can not be converted to a Boolean",
		"/doze/v1/functions/f/logs?from=1":          "no query parameter 'from'",
		"/doze/v1/functions/g/logs":                 "Function not found",
		"/doze/v1/functions//logs":                  "at 'functionName'",
	} {
		if answer, body := w.do("GET", path, ""); answer.StatusCode < 400 || !strings.Contains(body, text) {
			t.Errorf("%s: %s %s", path, answer.Status, body)
		}
	}
	// With follow the lines come as they are, before the end.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := must(http.NewRequestWithContext(ctx, "GET", w.server.URL+"/doze/v1/functions/f/logs?follow=true", nil))(t)
	followed := must(http.DefaultClient.Do(r))(t)
	defer followed.Body.Close()
	lines := bufio.NewScanner(followed.Body)
	for range 2 {
		if !lines.Scan() {
			t.Fatal("the stream ended")
		}
	}
	cancel()
}

func TestUpload(t *testing.T) {
	w := newWorld(t)
	// The largest zip that is allowed, taken and stored whole.
	content := bytes.Repeat([]byte("doze"), 50<<18)
	large := storedZip(t, "large", content[:len(content)-1024])
	w.create("f", func(in *lambda.CreateFunctionInput) { in.Code.ZipFile = large })
	f, _ := w.state.Function(DevAccount, "f")
	if !bytes.Equal(w.code.packages[f.Latest.Code.SHA256], large) {
		t.Error("the stored package differs")
	}
	_, err := w.gateway.service.store(t.Context(), target{account: DevAccount, name: "g"}, append(large, content[:2048]...))
	var fault *Fault
	if !errors.As(err, &fault) || fault.Message != "Zipped size must be smaller than 52428800 bytes" {
		t.Errorf("over 50 MB: %v", err)
	}
	// An unmodified client sends all of a body that is too large before it looks for an answer.
	in := createInput("g")
	in.Code.ZipFile = make([]byte, 53<<20)
	_, err = w.client().CreateFunction(t.Context(), in)
	wantFault(t, err, codeTooLarge, "Request must be smaller than 70167211 bytes for the CreateFunction operation")
}

func TestReady(t *testing.T) {
	w := newWorld(t)
	w.gateway.config.Ready = func() error { return errors.New("no leader yet") }
	if answer, body := w.do("GET", "/readyz", ""); answer.StatusCode != 503 || !strings.Contains(body, "no leader yet") {
		t.Errorf("%s %s", answer.Status, body)
	}
}
