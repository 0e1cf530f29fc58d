package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/doze-run/doze/testenv/history"
)

const (
	// registers is how many functions operators have.
	registers = 2
	// operateLimit is how long an operator waits for an answer.
	operateLimit = 30 * time.Second
	// settleLimit is how long an update may take.
	settleLimit = 60 * time.Second
	// settleEvery is how often somebody looks whether it has.
	settleEvery = 20 * time.Millisecond
)

// operate does one operation on a function that is a register: what it holds is its description.
func (l *Load) operate(ctx context.Context, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(ctx, operateLimit)
	defer cancel()
	node, name := l.node(r), fmt.Sprint("r", r.IntN(registers))
	op := history.Event{Kind: history.Operate, Op: fmt.Sprint("o", l.next.Add(1)), Function: name, Node: node.Name}
	done := history.Event{Kind: history.Done, Op: op.Op}
	var err error
	success := http.StatusOK
	switch n := r.IntN(100); {
	case n < 50:
		op.Does = "get"
		l.config.Log.Add(op)
		var out *lambda.GetFunctionConfigurationOutput
		if out, err = node.Client.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: &name}); err == nil {
			done.Value = aws.ToString(out.Description)
		}
	case n < 80:
		op.Does, op.Value = "update", op.Op
		l.config.Log.Add(op)
		_, err = node.Client.UpdateFunctionConfiguration(ctx, &lambda.UpdateFunctionConfigurationInput{FunctionName: &name, Description: &op.Value})
	case n < 94:
		op.Does, op.Value, success = "create", op.Op, http.StatusCreated
		var code []byte
		if code, err = pack(0); err != nil {
			panic(err) // it is packed in memory
		}
		l.config.Log.Add(op)
		_, err = node.Client.CreateFunction(ctx, l.create(name, op.Value, code))
	default:
		op.Does, success = "delete", http.StatusNoContent
		l.config.Log.Add(op)
		_, err = node.Client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: &name})
	}
	if done.Status, done.Error = outcome(err); err == nil {
		done.Status = success
	}
	l.config.Log.Add(done)
}

// update changes a function's code and waits until somebody says that it is so. An update whose answer was lost is
// not known to be one.
func (l *Load) update(ctx context.Context, r *rand.Rand, name string, number int64) {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	code, err := pack(number)
	if err != nil {
		panic(err) // it is packed in memory
	}
	node := l.node(r)
	op := fmt.Sprint("o", l.next.Add(1))
	l.config.Log.Add(history.Event{Kind: history.Operate, Op: op, Does: "code", Function: name, Code: number, Node: node.Name})
	_, err = node.Client.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: &name, ZipFile: code})
	if err == nil {
		err = l.settled(ctx, r, name)
	}
	done := history.Event{Kind: history.Done, Op: op}
	done.Status, done.Error = outcome(err)
	l.config.Log.Add(done)
	select {
	case <-ctx.Done():
	case <-l.stop:
	case <-time.After(time.Duration(500+r.IntN(1000)) * time.Millisecond):
	}
}

// settled waits until a node says that the last change of a function is complete.
func (l *Load) settled(ctx context.Context, r *rand.Rand, name string) error {
	for {
		node := l.node(r)
		asked, cancel := context.WithTimeout(ctx, operateLimit)
		out, err := node.Client.GetFunctionConfiguration(asked, &lambda.GetFunctionConfigurationInput{FunctionName: &name})
		cancel()
		switch {
		case err != nil:
		case out.LastUpdateStatus == types.LastUpdateStatusFailed || out.State == types.StateFailed:
			return fmt.Errorf("failed: %s%s", aws.ToString(out.LastUpdateStatusReason), aws.ToString(out.StateReason))
		case out.State == types.StateActive && out.LastUpdateStatus == types.LastUpdateStatusSuccessful:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no node says that it is complete: %w", ctx.Err())
		case <-time.After(settleEvery):
		}
	}
}
