// Command hold is a Go function that has a child process and keeps its caller waiting, for tests.
package main

import (
	"context"
	"os/exec"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
)

func main() {
	if err := exec.Command("/usr/bin/sleep", "1000").Start(); err != nil {
		panic(err)
	}
	lambda.Start(func(ctx context.Context, event struct{ Ms int64 }) (int64, error) {
		select {
		case <-time.After(time.Duration(event.Ms) * time.Millisecond):
		case <-ctx.Done():
		}
		return event.Ms, nil
	})
}
