package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/doze-run/doze/control/invoke"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// TestGRPC: the same operations, checks and errors over the other edge.
func TestGRPC(t *testing.T) {
	w := newWorld(t)
	client := w.grpcClient()
	var header metadata.MD
	created, err := client.CreateFunction(t.Context(), &dozev1.CreateFunctionRequest{
		FunctionName: ptr("f"), Role: ptr(role), Runtime: ptr("python3.12"), Handler: ptr("app.handler"), Code: &dozev1.FunctionCode{ZipFile: onlyZip},
	}, grpc.Header(&header))
	if err != nil {
		t.Fatal(err)
	}
	if created.GetFunctionArn() != "arn:aws:lambda:us-east-1:000000000000:function:f" || created.GetState() != "Pending" {
		t.Errorf("created %v", created)
	}
	if id := header.Get("x-amzn-requestid"); len(id) != 1 || len(id[0]) != 36 {
		t.Errorf("request id %v", id)
	}
	found, err := client.GetFunction(t.Context(), &dozev1.GetFunctionRequest{FunctionName: ptr("f")})
	if err != nil || !strings.HasPrefix(found.GetCode().GetLocation(), "http://doze.example/doze/v1/code/") {
		t.Errorf("found %v, %v", found, err)
	}

	_, err = client.CreateFunction(t.Context(), &dozev1.CreateFunctionRequest{FunctionName: ptr("a b")})
	wantStatus(t, err, codes.InvalidArgument, codeValidation, "3 validation errors detected: Value 'a b' at 'functionName' failed")
	_, err = client.GetFunction(t.Context(), &dozev1.GetFunctionRequest{FunctionName: ptr("g")})
	wantStatus(t, err, codes.NotFound, codeNotFound, "Function not found: arn:")
	_, err = client.UpdateFunctionConfiguration(t.Context(), &dozev1.UpdateFunctionConfigurationRequest{FunctionName: ptr("f"), RevisionId: ptr("old")})
	wantStatus(t, err, codes.FailedPrecondition, codePrecondition, "Revision Id")

	payload := []byte(`"` + strings.Repeat("x", 5<<20) + `"`)
	answer, err := client.Invoke(t.Context(), &dozev1.InvokeRequest{FunctionName: ptr("f"), Payload: payload, LogType: ptr("Tail")}, grpc.Header(&header))
	if err != nil || !bytes.Equal(answer.GetPayload(), payload) || answer.GetStatusCode() != 200 || answer.GetExecutedVersion() != "$LATEST" || answer.GetLogResult() == "" {
		t.Errorf("invoked: %d bytes, %v", len(answer.GetPayload()), err)
	}
	if header.Get("x-doze-timing")[0] != "queue=1500;claim=20;mount=900;init=20000;handler=3000" || header.Get("x-amzn-requestid")[0] != requestID(w.invoker.lastCall(t).RequestID).String() {
		t.Errorf("headers %v", header)
	}
	_, err = client.Invoke(t.Context(), &dozev1.InvokeRequest{FunctionName: ptr("f"), Payload: make([]byte, maxInvoke+1)})
	wantStatus(t, err, codes.OutOfRange, codeTooLarge, "6291456")
	_, err = client.Invoke(t.Context(), &dozev1.InvokeRequest{FunctionName: ptr("f"), InvocationType: ptr("Later")})
	wantStatus(t, err, codes.InvalidArgument, codeValidation, "enum value set")
	accepted, err := client.Invoke(t.Context(), &dozev1.InvokeRequest{FunctionName: ptr("f"), InvocationType: ptr("Event")})
	if err != nil || accepted.GetStatusCode() != 202 || len(w.invoker.events) != 1 {
		t.Errorf("event: %v, %v", accepted, err)
	}
	w.invoker.run = func(context.Context, *invoke.Call) (*invoke.Answer, error) {
		return nil, &invoke.Throttled{Reason: invoke.ReasonConcurrent}
	}
	_, err = client.Invoke(t.Context(), &dozev1.InvokeRequest{FunctionName: ptr("f")})
	if detail := wantStatus(t, err, codes.ResourceExhausted, codeTooMany, messageRate); detail.GetReason() != invoke.ReasonConcurrent || detail.GetHttpStatus() != 429 {
		t.Errorf("detail %v", detail)
	}
	w.invoker.run = func(context.Context, *invoke.Call) (*invoke.Answer, error) { panic("a bug") }
	_, err = client.Invoke(t.Context(), &dozev1.InvokeRequest{FunctionName: ptr("f")})
	wantStatus(t, err, codes.Internal, codeService, "internal error")

	if _, err := client.TagResource(t.Context(), &dozev1.TagResourceRequest{Resource: created.FunctionArn, Tags: map[string]string{"a": "b"}}); err != nil {
		t.Error(err)
	}
	bill, err := client.GetBill(t.Context(), &dozev1.GetBillRequest{})
	if err != nil || bill.GetMonth() != "2024-05" {
		t.Errorf("bill %v, %v", bill, err)
	}
}

func TestGRPCLogs(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	client := w.grpcClient()
	stream, err := client.TailLogs(t.Context(), &dozev1.TailLogsRequest{FunctionName: ptr("f")})
	if err != nil {
		t.Fatal(err)
	}
	var messages []string
	for {
		record, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, record.GetMessage())
	}
	if len(messages) != 2 || messages[0] != "first" {
		t.Errorf("messages %q", messages)
	}
	for _, name := range []*string{nil, ptr("a b"), ptr("g")} {
		stream, err := client.TailLogs(t.Context(), &dozev1.TailLogsRequest{FunctionName: name})
		if err == nil {
			_, err = stream.Recv()
		}
		if code := status.Code(err); code != codes.InvalidArgument && code != codes.NotFound {
			t.Errorf("%v: %v", name, err)
		}
	}
}

func wantStatus(t *testing.T, err error, code codes.Code, awsCode, text string) *dozev1.ErrorDetail {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("got %v, want %v: %s", err, code, text)
	}
	for _, d := range s.Details() {
		if detail, ok := d.(*dozev1.ErrorDetail); ok {
			if detail.GetCode() != awsCode || detail.GetRequestId() == "" {
				t.Errorf("detail %v, want %s", detail, awsCode)
			}
			return detail
		}
	}
	t.Errorf("no ErrorDetail in %v", err)
	return nil
}
