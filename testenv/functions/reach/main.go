// Command reach is a Go function that tries to reach what it is called with, for tests.
package main

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
)

// handle fetches http://ADDRESS/ for each, and answers what came or "not reached".
func handle(_ context.Context, addresses map[string]string) (map[string]string, error) {
	client := http.Client{Timeout: 4 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	reached := map[string]string{}
	for name, address := range addresses {
		reached[name] = "not reached"
		if resp, err := client.Get("http://" + address + "/"); err == nil {
			b, _ := io.ReadAll(io.LimitReader(resp.Body, 100))
			resp.Body.Close()
			reached[name] = string(b)
		}
	}
	return reached, nil
}

func main() { lambda.Start(handle) }
