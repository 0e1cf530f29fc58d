// Command echo is a Go function that answers what it was called with, for tests.
package main

import (
	"context"
	"encoding/json"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type answer struct {
	Event json.RawMessage `json:"event"`
	ID    string          `json:"id"`
	ARN   string          `json:"arn"`
	Left  int64           `json:"left"`
}

func handle(ctx context.Context, event json.RawMessage) (answer, error) {
	info, _ := lambdacontext.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	return answer{event, info.AwsRequestID, info.InvokedFunctionArn, time.Until(deadline).Milliseconds()}, nil
}

func main() { lambda.Start(handle) }
