package testenv

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// An event that fails for good goes to its function's destination as a record, and to its dead-letter
// target as it was; the destination's own success is sent on in turn.
func TestDestinations(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t, "--async-retry-waits", "200ms,200ms")
	python := d.Runtime(ctx, "python")
	arn := func(name string) *string { return aws.String("arn:aws:lambda:us-east-1:000000000000:function:" + name) }
	d.Create(ctx, "fails", python, Python(t, "def handler(event, context):\n    raise ValueError('no')\n"),
		func(in *lambda.CreateFunctionInput) {
			in.DeadLetterConfig = &types.DeadLetterConfig{TargetArn: arn("letters")}
		})
	d.Create(ctx, "letters", python, Python(t, "def handler(event, context):\n    assert event == {'n': 7}\n"))
	d.Create(ctx, "records", python, Python(t, `
def handler(event, context):
    about = event["requestContext"]
    assert about["condition"] == "RetriesExhausted" and about["approximateInvokeCount"] == 2, about
    assert about["functionArn"].endswith(":function:fails:$LATEST"), about
    assert event["requestPayload"] == {"n": 7} and event["responseContext"]["functionError"] == "Unhandled", event
    assert event["responsePayload"]["errorType"] == "ValueError", event
    return {"seen": about["requestId"]}
`))
	d.Create(ctx, "last", python, Python(t, `
def handler(event, context):
    assert event["requestContext"]["condition"] == "Success" and event["responsePayload"]["seen"], event
`))
	client := d.Client()
	for function, config := range map[string]*types.DestinationConfig{
		"fails":   {OnFailure: &types.OnFailure{Destination: arn("records")}},
		"records": {OnSuccess: &types.OnSuccess{Destination: arn("last")}},
		"last":    {OnFailure: &types.OnFailure{Destination: arn("wrong")}},
		"letters": {OnFailure: &types.OnFailure{Destination: arn("wrong")}},
	} {
		if _, err := client.PutFunctionEventInvokeConfig(ctx, &lambda.PutFunctionEventInvokeConfigInput{
			FunctionName: &function, MaximumRetryAttempts: aws.Int32(1), DestinationConfig: config,
		}); err != nil {
			t.Fatal(err)
		}
	}
	d.Create(ctx, "wrong", python, Python(t, "def handler(event, context):\n    pass\n"))
	if _, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("fails"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`{"n": 7}`)}); err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{"fails": 2, "records": 1, "last": 1, "letters": 1, "wrong": 0}
	d.Eventually(30*time.Second, "the records have come to their ends", func() bool {
		for function, calls := range want {
			if n, _ := d.Requests(ctx, function); n < calls {
				return false
			}
		}
		return true
	})
	for function, calls := range want {
		if n, _ := d.Requests(ctx, function); n != calls {
			t.Errorf("%s ran %d times, want %d", function, n, calls)
		}
	}
}
