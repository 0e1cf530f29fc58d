package testenv

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// dial connects a stock gRPC client, whose own bound on what it takes is lifted as AWS's answers of
// 6 MB need.
func (d *Dev) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(d.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// A function's whole life over gRPC, and that both edges show the same.
func TestGRPC(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	conn := d.dial(t)
	client := dozev1.NewLambdaClient(conn)

	t.Run("reflection", func(t *testing.T) {
		stream, err := reflection.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ask := func(request *reflection.ServerReflectionRequest) *reflection.ServerReflectionResponse {
			t.Helper()
			if err := stream.Send(request); err != nil {
				t.Fatal(err)
			}
			answer, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return answer
		}
		var services []string
		for _, s := range ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
			services = append(services, s.GetName())
		}
		if !slices.Contains(services, "doze.v1.Lambda") {
			t.Errorf("services %v", services)
		}
		// What grpcurl needs to build a request: the file, and with it the operations.
		files := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "doze.v1.Lambda"}}).GetFileDescriptorResponse().GetFileDescriptorProto()
		methods := 0
		for _, raw := range files {
			var file descriptorpb.FileDescriptorProto
			if err := proto.Unmarshal(raw, &file); err != nil {
				t.Fatal(err)
			}
			for _, s := range file.GetService() {
				methods += len(s.GetMethod())
			}
		}
		if want := len(dozev1.Lambda_ServiceDesc.Methods) + len(dozev1.Lambda_ServiceDesc.Streams); methods != want {
			t.Errorf("reflection shows %d operations of %d", methods, want)
		}
		if err := stream.CloseSend(); err != nil {
			t.Error(err)
		}
	})

	created, err := client.CreateFunction(ctx, &dozev1.CreateFunctionRequest{
		FunctionName: proto.String("echo"), Role: proto.String(Role), Runtime: proto.String(string(d.Runtime(ctx, "python"))),
		Handler: proto.String("app.handler"), Timeout: proto.Int32(10),
		Code: &dozev1.FunctionCode{ZipFile: Python(t, "def handler(event, context):\n    if event == 'fail': raise ValueError('no good')\n    return event\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if created.GetState() != "Pending" && created.GetState() != "Active" || created.GetMemorySize() != 128 {
		t.Errorf("created %v", created)
	}
	d.Eventually(20*time.Second, "active", func() bool {
		found, err := client.GetFunction(ctx, &dozev1.GetFunctionRequest{FunctionName: proto.String("echo")})
		if err != nil {
			t.Fatal(err)
		}
		if found.GetConfiguration().GetFunctionArn() != created.GetFunctionArn() || found.GetConfiguration().GetCodeSha256() != created.GetCodeSha256() {
			t.Fatalf("found %v", found)
		}
		return found.GetConfiguration().GetState() == "Active"
	})

	t.Run("invoke", func(t *testing.T) {
		var header metadata.MD
		answer, err := client.Invoke(ctx, &dozev1.InvokeRequest{FunctionName: proto.String("echo"), Payload: []byte(`{"name": "gRPC"}`), LogType: proto.String("Tail")}, grpc.Header(&header))
		if err != nil || string(answer.GetPayload()) != `{"name": "gRPC"}` || answer.GetStatusCode() != 200 || answer.GetExecutedVersion() != "$LATEST" || answer.FunctionError != nil || answer.GetLogResult() == "" {
			t.Errorf("answer %v, %v", answer, err)
		}
		if id := header.Get("x-amzn-requestid"); len(id) != 1 || len(id[0]) != 36 {
			t.Errorf("request id %q", id)
		}
		failed, err := client.Invoke(ctx, &dozev1.InvokeRequest{FunctionName: proto.String("echo"), Payload: []byte(`"fail"`)})
		if err != nil || failed.GetFunctionError() != "Unhandled" || failed.GetStatusCode() != 200 || !strings.Contains(string(failed.GetPayload()), `"errorType": "ValueError"`) {
			t.Errorf("a function error: %v, %v", failed, err)
		}
	})

	t.Run("5 MB there and back", func(t *testing.T) {
		payload := []byte(`"` + strings.Repeat("x", 5<<20) + `"`)
		answer, err := client.Invoke(ctx, &dozev1.InvokeRequest{FunctionName: proto.String("echo"), Payload: payload})
		if err != nil || !bytes.Equal(answer.GetPayload(), payload) {
			t.Errorf("%d bytes came back as %d, %v", len(payload), len(answer.GetPayload()), err)
		}
	})

	t.Run("errors", func(t *testing.T) {
		call := func(request *dozev1.InvokeRequest) error {
			_, err := client.Invoke(ctx, request)
			return err
		}
		for name, test := range map[string]struct {
			err        error
			code       codes.Code
			aws        string
			httpStatus uint32
		}{
			"no such function": {call(&dozev1.InvokeRequest{FunctionName: proto.String("nobody")}), codes.NotFound, "ResourceNotFoundException", 404},
			"no name":          {call(&dozev1.InvokeRequest{}), codes.InvalidArgument, "ValidationException", 400},
			"a bad name":       {call(&dozev1.InvokeRequest{FunctionName: proto.String("../etc")}), codes.InvalidArgument, "ValidationException", 400},
			"no JSON":          {call(&dozev1.InvokeRequest{FunctionName: proto.String("echo"), Payload: []byte("{")}), codes.InvalidArgument, "InvalidRequestContentException", 400},
			"too large":        {call(&dozev1.InvokeRequest{FunctionName: proto.String("echo"), Payload: make([]byte, 6291457)}), codes.OutOfRange, "RequestEntityTooLargeException", 413},
		} {
			s := status.Convert(test.err)
			var detail *dozev1.ErrorDetail
			for _, any := range s.Details() {
				if one, ok := any.(*dozev1.ErrorDetail); ok {
					detail = one
				}
			}
			if s.Code() != test.code || detail.GetCode() != test.aws || detail.GetHttpStatus() != test.httpStatus || detail.GetMessage() == "" || detail.GetRequestId() == "" || detail.GetType() != "User" {
				t.Errorf("%s: %v, detail %v", name, test.err, detail)
			}
		}
	})

	t.Run("the REST edge shows the same", func(t *testing.T) {
		d.WaitActive(ctx, "echo")
		if out := d.Invoke(ctx, "echo", `[1]`); string(out.Payload) != "[1]" {
			t.Errorf("answer %s", out.Payload)
		}
		var list struct{ Functions []types.FunctionConfiguration }
		d.Get(ctx, "/2015-03-31/functions", &list)
		if len(list.Functions) != 1 || *list.Functions[0].FunctionArn != created.GetFunctionArn() {
			t.Errorf("functions %+v", list.Functions)
		}
	})

	if _, err := client.DeleteFunction(ctx, &dozev1.DeleteFunctionRequest{FunctionName: proto.String("echo")}); err != nil {
		t.Error(err)
	}
	if _, err := client.GetFunction(ctx, &dozev1.GetFunctionRequest{FunctionName: proto.String("echo")}); status.Code(err) != codes.NotFound {
		t.Errorf("deleted, and then: %v", err)
	}
}
