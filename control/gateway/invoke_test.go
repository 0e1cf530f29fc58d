package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
)

const invokeF = "/2015-03-31/functions/f/invocations"

func TestInvoke(t *testing.T) {
	w := newWorld(t)
	w.create("f", func(in *lambda.CreateFunctionInput) { in.Publish = true })
	// Spaces, key order, numbers: the payload must arrive as it was sent.
	payload := []byte("{ \"b\":1.0,\n\"a\" : [1e400, \"\\u00e9\"] }")
	out := must(w.client().Invoke(t.Context(), &lambda.InvokeInput{
		FunctionName: aws.String("f"), Qualifier: aws.String("1"), Payload: payload, LogType: types.LogTypeTail,
		ClientContext: aws.String(base64.StdEncoding.EncodeToString([]byte(`{"custom":{"k":"v"}}`))),
	}))(t)
	call := w.invoker.lastCall(t)
	if !bytes.Equal(call.Payload, payload) || !bytes.Equal(out.Payload, payload) {
		t.Errorf("payload %q came back %q", call.Payload, out.Payload)
	}
	if out.StatusCode != 200 || *out.ExecutedVersion != "1" || out.FunctionError != nil || *out.LogResult != base64.StdEncoding.EncodeToString([]byte("START\nEND\n")) {
		t.Errorf("answer %+v", out)
	}
	if call.InvokedARN != "arn:aws:lambda:us-east-1:000000000000:function:f:1" || string(call.ClientContext) != `{"custom":{"k":"v"}}` || !call.Tail {
		t.Errorf("call %+v", call)
	}
}

func TestInvokeHeaders(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	answer, body := w.do("POST", invokeF, "", "X-Amzn-Trace-Id", "Root=1-2-3")
	call := w.invoker.lastCall(t)
	if answer.StatusCode != 200 || body != "{}" || string(call.Payload) != "{}" || call.TraceID != "Root=1-2-3" {
		t.Errorf("%s %s, payload %s", answer.Status, body, call.Payload)
	}
	if id := answer.Header.Get("x-amzn-RequestId"); id != requestID(call.RequestID).String() || len(id) != 36 || id != strings.ToLower(id) {
		t.Errorf("answered id %s, the call has %x", id, call.RequestID)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "X-Amz-Executed-Version": "$LATEST", "X-Amz-Function-Error": "", "X-Amz-Log-Result": "",
		"X-Doze-Cold": "true", "X-Doze-Timing": "queue=1500;claim=20;mount=900;init=20000;handler=3000", "X-Doze-Instance": "i-1",
	} {
		if got := answer.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	w.invoker.run = func(context.Context, *invoke.Call) (*invoke.Answer, error) {
		return &invoke.Answer{ExecutedVersion: "$LATEST", FunctionError: "Unhandled", Payload: []byte(`{"errorMessage":"x"}`)}, nil
	}
	if answer, body := w.do("POST", invokeF, "1"); answer.StatusCode != 200 || answer.Header.Get("X-Amz-Function-Error") != "Unhandled" || body != `{"errorMessage":"x"}` {
		t.Errorf("function error: %s %v %s", answer.Status, answer.Header, body)
	}
}

func TestInvokeEventAndDryRun(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	answer, body := w.do("POST", invokeF, `{"k":1}`, "X-Amz-Invocation-Type", "Event")
	if answer.StatusCode != 202 || body != "" || len(w.invoker.events) != 1 || string(w.invoker.events[0].Payload) != `{"k":1}` {
		t.Fatalf("event: %s %q, %d stored", answer.Status, body, len(w.invoker.events))
	}
	if answer.Header.Get("x-amzn-RequestId") != requestID(w.invoker.events[0].RequestID).String() {
		t.Error("the 202 carries another id than the event")
	}
	other := newRequestID()
	w.invoker.accept = func(e *invoke.Event) error { e.RequestID = other; return nil }
	if answer, _ := w.do("POST", invokeF, "{}", "X-Amz-Invocation-Type", "Event"); answer.Header.Get("x-amzn-RequestId") != other.String() {
		t.Error("the 202 does not carry the id that the store took")
	}
	w.invoker.accept = func(*invoke.Event) error { return invoke.ErrEventsFull }
	if answer, body := w.do("POST", invokeF, "{}", "X-Amz-Invocation-Type", "Event"); answer.StatusCode != 429 {
		t.Errorf("full store: %s %s", answer.Status, body)
	}
	answer, body = w.do("POST", invokeF, "{}", "X-Amz-Invocation-Type", "DryRun")
	if answer.StatusCode != 204 || body != "" || len(w.invoker.calls) != 0 {
		t.Errorf("dry run: %s %q, %d calls", answer.Status, body, len(w.invoker.calls))
	}
}

func TestInvokeRefusals(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	tests := []struct {
		what, path, body string
		headers          []string
		status           int
		code, text       string
	}{
		{"not JSON", invokeF, "{", nil, 400, codeInvalidContent, "Could not parse request body into json: Could not parse payload into json: "},
		{"half JSON", invokeF, `{"a":1}}`, nil, 400, codeInvalidContent, "Could not parse"},
		{"blank", invokeF, " ", nil, 400, codeInvalidContent, "Could not parse"},
		{"not there", "/2015-03-31/functions/g/invocations", "{}", nil, 404, codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g:$LATEST"},
		{"no version", invokeF + "?Qualifier=5", "{}", nil, 404, codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:5"},
		{"conflict", "/2015-03-31/functions/f:1/invocations?Qualifier=5", "{}", nil, 400, codeInvalidParameter, "The derived qualifier"},
		{"type", invokeF, "{}", []string{"X-Amz-Invocation-Type", "Later"}, 400, codeValidation, "Value 'Later' at 'invocationType' failed to satisfy constraint: Member must satisfy enum value set: [Event, RequestResponse, DryRun]"},
		{"log type", invokeF, "{}", []string{"X-Amz-Log-Type", "All"}, 400, codeValidation, "Member must satisfy enum value set: [None, Tail]"},
		{"empty qualifier", invokeF + "?Qualifier=", "{}", nil, 400, codeValidation, "Value '' at 'qualifier' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"client context", invokeF, "{}", []string{"X-Amz-Client-Context", "e"}, 400, codeInvalidContent, "Client context must be a valid Base64-encoded JSON object."},
		{"client context list", invokeF, "{}", []string{"X-Amz-Client-Context", base64.StdEncoding.EncodeToString([]byte("[]"))}, 400, codeInvalidContent, "Client context"},
		{"large", invokeF, `"` + strings.Repeat("x", maxInvoke) + `"`, nil, 413, codeTooLarge, "Request must be smaller than 6291456 bytes for the InvokeFunction operation"},
		{"large event", invokeF, `"` + strings.Repeat("x", maxInvokeEvent) + `"`, []string{"X-Amz-Invocation-Type", "Event"}, 413, codeTooLarge, "Request must be smaller than 1048576 bytes"},
		{"tenant", invokeF, "{}", []string{"X-Amz-Tenant-Id", "t"}, 400, codeInvalidParameter, "tenant isolation"},
		{"other region", "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A000000000000%3Afunction%3Af/invocations", "{}", nil, 404, codeNotFound, "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')"},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			answer, body := w.do("POST", test.path, test.body, test.headers...)
			wantAnswer(t, answer, body, test.status, test.code, test.text)
		})
	}
	if len(w.invoker.calls) != 0 || len(w.invoker.events) != 0 {
		t.Error("a refused call was run")
	}
	// The limit itself is allowed, from an unmodified client.
	full := []byte(`"` + strings.Repeat("x", maxInvoke-2) + `"`)
	out := must(w.client().Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: full}))(t)
	if !bytes.Equal(out.Payload, full) {
		t.Error("a payload of 6 MB came back otherwise")
	}
	_, err := w.client().Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: append(full, ' ')})
	wantFault(t, err, codeTooLarge, "6291456")
}

func TestInvokeForms(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	for _, path := range []string{
		invokeF, invokeF + "/", "/2015-03-31/functions/%66/invocations", "/2015-03-31/functions/function:f/invocations",
		"/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af%3A%24LATEST/invocations",
		invokeF + "?Qualifier=%24LATEST", invokeF + "?unknown=1",
	} {
		if answer, body := w.do("POST", path, "7"); answer.StatusCode != 200 || body != "7" {
			t.Errorf("%s: %s %s", path, answer.Status, body)
		}
	}
}

func TestInvokeFaults(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	tests := []struct {
		err        error
		status     int
		code, text string
	}{
		{&invoke.Throttled{Reason: invoke.ReasonReserved, RetryAfter: 1200 * time.Millisecond}, 429, codeTooMany, `"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","message":"Rate Exceeded."`},
		{&invoke.InvalidRuntime{Message: "java21 is not here: python3.11 is"}, 502, codeInvalidRuntime, "java21 is not here"},
		{&invoke.Unavailable{Err: errors.New("secret detail")}, 500, codeService, "the function has not seen it"},
		{&invoke.Unavailable{Ran: true, Err: errors.New("secret detail")}, 500, codeService, "may have been running"},
		{errors.New("secret detail"), 500, codeService, "internal error"},
		{nil, 500, codeService, "internal error"},
	}
	for _, test := range tests {
		w.invoker.run = func(context.Context, *invoke.Call) (*invoke.Answer, error) {
			if test.err == nil {
				panic("secret bug")
			}
			return nil, test.err
		}
		answer, body := w.do("POST", invokeF, "{}")
		wantAnswer(t, answer, body, test.status, test.code, test.text)
		if strings.Contains(body, "secret") {
			t.Errorf("the client is told internals: %s", body)
		}
		if test.status == 429 && answer.Header.Get("Retry-After") != "2" {
			t.Errorf("Retry-After %q", answer.Header.Get("Retry-After"))
		}
	}
	w.invoker.run = func(context.Context, *invoke.Call) (*invoke.Answer, error) {
		return nil, &invoke.Throttled{Reason: invoke.ReasonConcurrent}
	}
	_, err := w.client().Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f")})
	var throttled *types.TooManyRequestsException
	if !errors.As(err, &throttled) || throttled.Reason != types.ThrottleReasonConcurrentInvocationLimitExceeded || aws.ToString(throttled.Message) != "Rate Exceeded." {
		t.Errorf("SDK sees %v", err)
	}
	var answered *smithyhttp.ResponseError
	if !errors.As(err, &answered) || answered.HTTPStatusCode() != 429 {
		t.Errorf("SDK sees %v", err)
	}
}

// TestInvokePending: a call that follows its function's creation at once waits for it, and not for
// ever.
func TestInvokePending(t *testing.T) {
	w := newWorld(t)
	w.settle = false
	w.create("f")
	looks := 0
	w.afterResolve = func() {
		if looks++; looks == 3 { // the call has seen it Pending, and is waiting
			w.activate(DevAccount, "f")
		}
	}
	if answer, body := w.do("POST", invokeF, "1"); answer.StatusCode != 200 || body != "1" || looks < 4 {
		t.Errorf("%s %s after %d looks", answer.Status, body, looks)
	}
	w.create("g")
	ctx, cancel := context.WithCancel(withExchange(t.Context(), &exchange{caller: Identity{Account: DevAccount, Role: registry.RoleRoot}}))
	cancel() // instead of waiting out the two seconds
	_, err := w.gateway.service.invoke(ctx, &invocation{caller: Identity{Account: DevAccount, Role: registry.RoleRoot}, name: "g", kind: typeRequestResponse})
	var f *Fault
	if !errors.As(err, &f) || f.Code != codeConflict || !strings.HasSuffix(f.Message, "The function is currently in the following state: Pending") {
		t.Errorf("pending: %v", err)
	}
	function, _ := w.state.Function(DevAccount, "g")
	if _, err := w.state.Apply(registry.Settle{Account: DevAccount, Name: "g", Version: registry.Latest, Incarnation: function.Latest.Incarnation, RevisionID: newRevision(), Failed: true, Reason: "no", ReasonCode: "InternalError"}); err != nil {
		t.Fatal(err)
	}
	answer, body := w.do("POST", "/2015-03-31/functions/g/invocations", "{}")
	wantAnswer(t, answer, body, 409, codeConflict, "state: Failed")
}

// TestInvokeClientGone: the invoker learns that nobody waits, by its context.
func TestInvokeClientGone(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	started, ended := make(chan struct{}), make(chan error, 1)
	w.invoker.run = func(ctx context.Context, _ *invoke.Call) (*invoke.Answer, error) {
		close(started)
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		cancel()
	}()
	r := must(http.NewRequestWithContext(ctx, "POST", w.server.URL+invokeF, strings.NewReader("{}")))(t)
	if answer, err := http.DefaultClient.Do(r); err == nil {
		answer.Body.Close()
		t.Error("an answer after the client had gone")
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the invoker saw %v", err)
	}
}

func BenchmarkInvoke(b *testing.B) {
	s := &service{config: Config{Registry: registry.New(), Region: defaultRegion, Invoker: &scriptedInvoker{}}}
	state := s.config.Registry.(*registry.State)
	if _, err := state.Apply(registry.CreateFunction{Account: DevAccount, Name: "f", Version: registry.Version{RevisionID: "r"}}); err != nil {
		b.Fatal(err)
	}
	if _, err := state.Apply(registry.Settle{Account: DevAccount, Name: "f", Version: registry.Latest, Incarnation: "r", RevisionID: "s"}); err != nil {
		b.Fatal(err)
	}
	answer := &invoke.Answer{ExecutedVersion: "$LATEST", Payload: []byte("{}")}
	s.config.Invoker = fixedInvoker{answer}
	g := &Gateway{config: s.config, service: s, memory: newBodyMemory(1 << 30)}
	g.config.Authenticator = Anyone{Account: DevAccount}
	payload := []byte(`{"key":"value"}`)
	w := &discard{header: http.Header{}}
	body := bytes.NewReader(nil)
	r := httptest.NewRequest("POST", invokeF, nil)
	r.ContentLength = int64(len(payload))
	r.Body = nopCloser{body}
	b.ReportAllocs()
	for b.Loop() {
		body.Reset(payload)
		g.serveHTTP(w, r)
	}
	if w.status != 0 && w.status != 200 {
		b.Fatalf("status %d", w.status)
	}
}

type fixedInvoker struct{ answer *invoke.Answer }

func (f fixedInvoker) Invoke(context.Context, *invoke.Call) (*invoke.Answer, error) {
	return f.answer, nil
}
func (fixedInvoker) Enqueue(context.Context, *invoke.Event) error { return nil }

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }
