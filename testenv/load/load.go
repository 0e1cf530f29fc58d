// Package load is the users of a cluster: they deploy, call and change functions, by way of every control node, each
// with a random source of its own that the seed makes, and write down what they did and what they were told.
//
// It knows AWS's API and histories. It must not know what is done to the cluster meanwhile: a caller who is refused
// tries something else, as callers do.
package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/doze-run/doze/testenv/history"
)

// Node is a control node to its clients. The client must not retry: what was sent twice would be two calls.
type Node struct {
	Name   string
	Client *lambda.Client
}

// Config is what the load is made of. The zero of a number is none.
type Config struct {
	Seed  uint64
	Nodes []Node
	Log   *history.Log
	// Recorder is where functions reach a Recorder, Runtime the Python they are written for.
	Recorder, Runtime string
	// Functions is how many functions are called; Callers wait for answers, Senders send events, Operators create,
	// change, read and delete functions of their own, Deployers change the code of those that are called.
	Functions, Callers, Senders, Operators, Deployers int
	// Reserved is the concurrency that a function of its own has, "capped"; callers call it, too.
	Reserved int
	// Timeout is that of the functions, whole seconds; 0 is ten.
	Timeout time.Duration
}

const (
	// defaultTimeout is that of the functions when nothing is said.
	defaultTimeout = 10 * time.Second
	// patience is how long after the promised end a caller hangs up.
	patience = 20 * time.Second
	// destination is where failed events go, capped the function with a reservation.
	destination, capped = "dest", "capped"
	role                = "arn:aws:iam::000000000000:role/test"
)

// Load is users at work.
type Load struct {
	config Config
	names  []string
	next   atomic.Int64
	stop   chan struct{}
	once   sync.Once
	group  sync.WaitGroup
	bursts sync.WaitGroup
}

// Caps are the reserved concurrencies that functions have.
func (c Config) Caps() map[string]int {
	if c.Reserved == 0 {
		return nil
	}
	return map[string]int{capped: c.Reserved}
}

// Deploy makes the functions.
func Deploy(ctx context.Context, config Config) (*Load, error) {
	if config.Timeout == 0 {
		config.Timeout = defaultTimeout
	}
	l := &Load{config: config, stop: make(chan struct{})}
	names := []string{destination}
	for i := range max(config.Functions, 1) {
		names = append(names, fmt.Sprint("f", i))
	}
	l.names = names[1:]
	if config.Reserved > 0 {
		names = append(names, capped)
	}
	for _, name := range names {
		if err := l.make(ctx, name); err != nil {
			return nil, fmt.Errorf("deploy %s: %w", name, err)
		}
	}
	return l, nil
}

func (l *Load) make(ctx context.Context, name string) error {
	code, err := pack(0)
	if err != nil {
		return err
	}
	client := l.config.Nodes[0].Client
	if _, err := client.CreateFunction(ctx, l.create(name, "", code)); err != nil {
		return err
	}
	if err := l.settled(ctx, rand.New(rand.NewPCG(1, 1)), name); err != nil {
		return err
	}
	if name == destination {
		return nil
	}
	if name == capped {
		if _, err := client.PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{
			FunctionName: &name, ReservedConcurrentExecutions: aws.Int32(int32(l.config.Reserved)),
		}); err != nil {
			return err
		}
	}
	_, err = client.PutFunctionEventInvokeConfig(ctx, &lambda.PutFunctionEventInvokeConfigInput{
		FunctionName: &name, MaximumRetryAttempts: aws.Int32(1),
		DestinationConfig: &types.DestinationConfig{OnFailure: &types.OnFailure{
			Destination: aws.String("arn:aws:lambda:us-east-1:000000000000:function:" + destination),
		}},
	})
	return err
}

func (l *Load) create(name, description string, code []byte) *lambda.CreateFunctionInput {
	return &lambda.CreateFunctionInput{
		FunctionName: &name, Runtime: types.Runtime(l.config.Runtime), Handler: aws.String("app.handler"), Role: aws.String(role),
		Code: &types.FunctionCode{ZipFile: code}, Timeout: aws.Int32(int32(l.config.Timeout / time.Second)), Description: &description,
		Environment: &types.Environment{Variables: map[string]string{"RECORDER": l.config.Recorder}},
	}
}

// Start lets the users begin.
func (l *Load) Start(ctx context.Context) {
	user := func(kind uint64, n int, does func(context.Context, *rand.Rand)) {
		for i := range n {
			random := rand.New(rand.NewPCG(l.config.Seed, kind<<32|uint64(i)))
			l.group.Go(func() {
				for {
					select {
					case <-l.stop:
						return
					case <-ctx.Done():
						return
					case <-time.After(time.Duration(random.Int64N(int64(40 * time.Millisecond)))): // a user thinks, too
						does(ctx, random)
					}
				}
			})
		}
	}
	user(1, l.config.Callers, func(ctx context.Context, r *rand.Rand) { l.call(ctx, r, false) })
	user(2, l.config.Senders, func(ctx context.Context, r *rand.Rand) { l.call(ctx, r, true) })
	user(3, l.config.Operators, l.operate)
	for i := range l.config.Deployers {
		// A function's code is changed by one user alone: the order of its numbers is the order of its updates.
		code := int64(0)
		user(16+uint64(i), 1, func(ctx context.Context, r *rand.Rand) {
			code++
			l.update(ctx, r, l.names[i%len(l.names)], code)
		})
	}
}

// Stop lets nobody begin anything more, and waits until all have been answered.
func (l *Load) Stop() {
	l.once.Do(func() { close(l.stop) })
	l.group.Wait()
	l.bursts.Wait()
}

// Burst makes so many calls at once, that run for so long each.
func (l *Load) Burst(ctx context.Context, n int, sleep time.Duration, async bool) {
	for i := range n {
		node := l.config.Nodes[i%len(l.config.Nodes)]
		name := l.names[i%len(l.names)]
		l.bursts.Go(func() { l.invoke(ctx, node, name, event{Sleep: sleep.Seconds()}, async) })
	}
}

// event is what handlers get.
type event struct {
	Call  string  `json:"call"`
	Sleep float64 `json:"sleep"`
	Fail  bool    `json:"fail,omitempty"`
	Pad   string  `json:"pad,omitempty"`
}

func (l *Load) node(r *rand.Rand) Node { return l.config.Nodes[r.IntN(len(l.config.Nodes))] }

// call makes a call of a random size and duration: most are short and small, few are neither.
func (l *Load) call(ctx context.Context, r *rand.Rand, async bool) {
	e := event{Sleep: 0.005 + r.Float64()*0.045}
	switch n := r.IntN(100); {
	case n < 4:
		e.Sleep = 1 + r.Float64()
	case n < 25:
		e.Sleep = 0.1 + r.Float64()*0.4
	}
	switch n := r.IntN(100); {
	case n < 2:
		e.Pad = strings.Repeat("p", 130<<10+r.IntN(100<<10)) // over what a queue takes
	case n < 20:
		e.Pad = strings.Repeat("p", r.IntN(16<<10))
	}
	name := l.names[r.IntN(len(l.names))]
	if l.config.Reserved > 0 && r.IntN(4) == 0 {
		name = capped
	}
	if async {
		e.Fail = r.IntN(10) == 0
	}
	l.invoke(ctx, l.node(r), name, e, async)
}

func (l *Load) invoke(ctx context.Context, node Node, name string, e event, async bool) {
	e.Call = fmt.Sprint("k", l.next.Add(1))
	payload, err := json.Marshal(e)
	if err != nil {
		panic(err) // an event is strings and numbers
	}
	in := &lambda.InvokeInput{FunctionName: &name, Payload: payload}
	ask := history.Event{Kind: history.Ask, Call: e.Call, Function: name, Node: node.Name, Async: async, Limit: l.config.Timeout.Milliseconds()}
	if async {
		in.InvocationType = types.InvocationTypeEvent
	}
	ctx, cancel := context.WithTimeout(ctx, l.config.Timeout+patience)
	defer cancel()
	l.config.Log.Add(ask)
	out, err := node.Client.Invoke(ctx, in)
	answer := history.Event{Kind: history.Answer, Call: e.Call}
	if answer.Status, answer.Error = outcome(err); err != nil {
		var response *smithyhttp.ResponseError
		if errors.As(err, &response) {
			answer.Request = response.Response.Header.Get("X-Amzn-Requestid")
		}
	} else {
		answer.Status = int(out.StatusCode)
		var said struct{ Call, Run, Pad string }
		switch {
		case async:
		case out.FunctionError != nil:
			answer.Failed, answer.Error = true, short(string(out.Payload))
		case json.Unmarshal(out.Payload, &said) != nil:
			answer.Of, answer.Error = "?", short(string(out.Payload))
		default:
			answer.Of, answer.Run = said.Call, said.Run
			if said.Pad != e.Pad {
				answer.Of, answer.Error = "?", "the payload is another"
			}
		}
	}
	l.config.Log.Add(answer)
}

// outcome is the status of an answer, or 0 and why there is none.
func outcome(err error) (int, string) {
	if err == nil {
		return http.StatusOK, ""
	}
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode(), short(response.Err.Error())
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner // the address and what was asked are known
	}
	return 0, short(err.Error())
}

func short(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}
