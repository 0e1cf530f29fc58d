// The function that doze bench calls: echo, or sleep first when the event says so.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
)

var instance = rand.Text()

type sleepEvent struct {
	SleepMs int64 `json:"sleepMs"`
}

type sleepAnswer struct {
	Instance      string `json:"instance"`
	StartedMicros int64  `json:"startedMicros"`
}

func handle(ctx context.Context, event json.RawMessage) (any, error) {
	if !bytes.Contains(event, []byte(`"sleepMs"`)) {
		return event, nil
	}
	started := time.Now().UnixMicro()
	var e sleepEvent
	if err := json.Unmarshal(event, &e); err != nil {
		return nil, err
	}
	select {
	case <-time.After(time.Duration(e.SleepMs) * time.Millisecond):
		return sleepAnswer{instance, started}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func main() { lambda.Start(handle) }
