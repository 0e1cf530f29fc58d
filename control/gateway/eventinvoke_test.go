package gateway

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/google/go-cmp/cmp"
)

func TestEventInvokeConfig(t *testing.T) {
	w := withVersions(t, 1)
	client, ctx := w.client(), t.Context()
	must(client.CreateAlias(ctx, createAlias("1", nil)))(t)
	const latestARN = "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST"
	to := "arn:aws:lambda:us-east-1:000000000000:function:g"

	_, err := client.GetFunctionEventInvokeConfig(ctx, &lambda.GetFunctionEventInvokeConfigInput{FunctionName: aws.String("f")})
	wantFault(t, err, codeNotFound, "The function "+latestARN+" doesn't have an EventInvokeConfig")
	_, err = client.UpdateFunctionEventInvokeConfig(ctx, &lambda.UpdateFunctionEventInvokeConfigInput{FunctionName: aws.String("f"), MaximumRetryAttempts: aws.Int32(1)})
	wantFault(t, err, codeNotFound, "doesn't have an EventInvokeConfig")
	_, err = client.DeleteFunctionEventInvokeConfig(ctx, &lambda.DeleteFunctionEventInvokeConfigInput{FunctionName: aws.String("f")})
	wantFault(t, err, codeNotFound, "doesn't have an EventInvokeConfig")

	put := must(client.PutFunctionEventInvokeConfig(ctx, &lambda.PutFunctionEventInvokeConfigInput{
		FunctionName: aws.String("f"), MaximumRetryAttempts: aws.Int32(0), MaximumEventAgeInSeconds: aws.Int32(60),
		DestinationConfig: &types.DestinationConfig{OnFailure: &types.OnFailure{Destination: &to}},
	}))(t)
	if *put.FunctionArn != latestARN || *put.MaximumRetryAttempts != 0 || *put.MaximumEventAgeInSeconds != 60 || !put.LastModified.Equal(w.clock.Now()) ||
		put.DestinationConfig.OnSuccess == nil || put.DestinationConfig.OnSuccess.Destination != nil || *put.DestinationConfig.OnFailure.Destination != to {
		t.Errorf("put %+v", put)
	}
	updated := must(client.UpdateFunctionEventInvokeConfig(ctx, &lambda.UpdateFunctionEventInvokeConfigInput{
		FunctionName: aws.String("f"), DestinationConfig: &types.DestinationConfig{OnSuccess: &types.OnSuccess{Destination: &to}},
	}))(t)
	if *updated.MaximumRetryAttempts != 0 || *updated.DestinationConfig.OnSuccess.Destination != to || *updated.DestinationConfig.OnFailure.Destination != to {
		t.Errorf("updated %+v", updated)
	}
	again := must(client.PutFunctionEventInvokeConfig(ctx, &lambda.PutFunctionEventInvokeConfigInput{FunctionName: aws.String("f"), MaximumRetryAttempts: aws.Int32(1)}))(t)
	if again.MaximumEventAgeInSeconds != nil || again.DestinationConfig.OnFailure.Destination != nil {
		t.Errorf("put keeps what was there: %+v", again)
	}
	must(client.PutFunctionEventInvokeConfig(ctx, &lambda.PutFunctionEventInvokeConfigInput{FunctionName: aws.String("f"), Qualifier: aws.String("live"), MaximumRetryAttempts: aws.Int32(2)}))(t)
	must(client.PutFunctionEventInvokeConfig(ctx, &lambda.PutFunctionEventInvokeConfigInput{FunctionName: aws.String("f:1"), MaximumRetryAttempts: aws.Int32(2)}))(t)
	var arns []string
	for pages := lambda.NewListFunctionEventInvokeConfigsPaginator(client, &lambda.ListFunctionEventInvokeConfigsInput{FunctionName: aws.String("f"), MaxItems: aws.Int32(1)}); pages.HasMorePages(); {
		for _, c := range must(pages.NextPage(ctx))(t).FunctionEventInvokeConfigs {
			arns = append(arns, *c.FunctionArn)
		}
	}
	if diff := cmp.Diff([]string{latestARN, latestARN[:len(latestARN)-len("$LATEST")] + "1", aliasARN}, arns); diff != "" {
		t.Error(diff)
	}
	must(client.DeleteFunctionEventInvokeConfig(ctx, &lambda.DeleteFunctionEventInvokeConfigInput{FunctionName: aws.String("f")}))(t)
	_, err = client.GetFunctionEventInvokeConfig(ctx, &lambda.GetFunctionEventInvokeConfigInput{FunctionName: aws.String("f")})
	wantFault(t, err, codeNotFound, "doesn't have an EventInvokeConfig")
}

func TestEventInvokeConfigRefusals(t *testing.T) {
	w := withVersions(t, 1)
	success := func(arn string) *types.DestinationConfig {
		return &types.DestinationConfig{OnSuccess: &types.OnSuccess{Destination: &arn}}
	}
	for _, test := range []struct {
		name       string
		in         lambda.PutFunctionEventInvokeConfigInput
		code, text string
	}{
		{"nothing", lambda.PutFunctionEventInvokeConfigInput{}, codeInvalidParameter, "You must specify at least one of error handling or destination setting."},
		{"too many retries", lambda.PutFunctionEventInvokeConfigInput{MaximumRetryAttempts: aws.Int32(3)}, codeValidation, "Value '3' at 'maximumRetryAttempts' failed to satisfy constraint: Member must have value less than or equal to 2"},
		{"too young", lambda.PutFunctionEventInvokeConfigInput{MaximumEventAgeInSeconds: aws.Int32(59)}, codeValidation, "greater than or equal to 60"},
		{"itself", lambda.PutFunctionEventInvokeConfigInput{DestinationConfig: success("arn:aws:lambda:us-east-1:000000000000:function:f")}, codeInvalidParameter, "You can't specify the function as a destination for itself."},
		{"a queue", lambda.PutFunctionEventInvokeConfigInput{DestinationConfig: success("arn:aws:sqs:us-east-1:000000000000:q")}, codeInvalidParameter, "Doze offers functions"},
		{"of others", lambda.PutFunctionEventInvokeConfigInput{DestinationConfig: success("arn:aws:lambda:us-east-1:111111111111:function:g")}, codeInvalidParameter, "of the same account and region"},
		{"no ARN", lambda.PutFunctionEventInvokeConfigInput{DestinationConfig: success("g")}, codeValidation, "at 'destinationConfig.onSuccess.destination'"},
		{"no version", lambda.PutFunctionEventInvokeConfigInput{Qualifier: aws.String("7"), MaximumRetryAttempts: aws.Int32(1)}, codeNotFound, ":f:7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.in.FunctionName = aws.String("f")
			_, err := w.client().PutFunctionEventInvokeConfig(t.Context(), &test.in)
			wantFault(t, err, test.code, test.text)
		})
	}
}
