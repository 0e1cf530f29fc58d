package testenv

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
)

// BenchmarkTLSCost calls a warm function in a cluster in clear and in one with certificates, in turns, and
// reports the medians and how they compare:
//
//	go test -run '^$' -bench TLSCost -benchtime 20x ./testenv
func BenchmarkTLSCost(b *testing.B) {
	ctx := b.Context()
	clusters := []*Cluster{StartCluster(b, 3, 2), StartSecureCluster(b, 3, 2)}
	for _, c := range clusters {
		first := c.Controls[0]
		first.Create(ctx, "f", first.Runtime(ctx, "python"), Python(b, "def handler(event, context):\n    return event\n"))
	}
	for _, callers := range []int{1, 16} {
		b.Run(map[int]string{1: "c1", 16: "c16"}[callers], func(b *testing.B) {
			var took [2][]time.Duration
			for _, c := range clusters {
				round(ctx, b, c, callers, 200) // they are warm from here on
			}
			b.ResetTimer()
			for range b.N {
				for i, c := range clusters {
					took[i] = append(took[i], round(ctx, b, c, callers, 100)...)
				}
			}
			b.StopTimer()
			for i := range took {
				slices.Sort(took[i])
			}
			at := func(i int, p float64) float64 { return float64(took[i][int(p*float64(len(took[i])-1))].Microseconds()) }
			b.ReportMetric(at(0, 0.5), "clear-p50-µs")
			b.ReportMetric(at(1, 0.5), "TLS-p50-µs")
			b.ReportMetric(at(1, 0.5)/at(0, 0.5), "p50-ratio")
			b.ReportMetric(at(0, 0.99), "clear-p99-µs")
			b.ReportMetric(at(1, 0.99), "TLS-p99-µs")
		})
	}
}

// round makes calls by way of all control nodes and is how long each took.
func round(ctx context.Context, b *testing.B, c *Cluster, callers, each int) []time.Duration {
	b.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var group sync.WaitGroup
	for i := range callers {
		client := c.Controls[i%len(c.Controls)].Client()
		group.Go(func() {
			var own []time.Duration
			for range each {
				begun := time.Now()
				if out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"a":1}`)}); err != nil || out.FunctionError != nil {
					b.Errorf("%v", err)
					return
				}
				own = append(own, time.Since(begun))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, own...)
		})
	}
	group.Wait()
	return all
}
