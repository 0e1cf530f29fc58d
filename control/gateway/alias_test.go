package gateway

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/google/go-cmp/cmp"
)

const aliasARN = "arn:aws:lambda:us-east-1:000000000000:function:f:live"

// withVersions is a world with the function f and its versions 1 to n.
func withVersions(t *testing.T, n int) *world {
	t.Helper()
	w := newWorld(t)
	w.create("f")
	for i := range n {
		must(w.client().UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{
			FunctionName: aws.String("f"), Description: aws.String(fmt.Sprint("v", i+1)),
		}))(t)
		must(w.client().PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: aws.String("f")}))(t)
	}
	return w
}

func createAlias(version string, weights map[string]float64) *lambda.CreateAliasInput {
	in := &lambda.CreateAliasInput{FunctionName: aws.String("f"), Name: aws.String("live"), FunctionVersion: &version}
	if weights != nil {
		in.RoutingConfig = &types.AliasRoutingConfiguration{AdditionalVersionWeights: weights}
	}
	return in
}

func TestAliasOperations(t *testing.T) {
	w := withVersions(t, 2)
	client, ctx := w.client(), t.Context()
	created := must(client.CreateAlias(ctx, createAlias("1", nil)))(t)
	if *created.AliasArn != aliasARN || *created.Name != "live" || *created.FunctionVersion != "1" || *created.Description != "" ||
		created.RoutingConfig != nil || len(*created.RevisionId) != 36 {
		t.Errorf("created %+v", created)
	}
	_, err := client.CreateAlias(ctx, createAlias("1", nil))
	wantFault(t, err, codeConflict, "Alias already exists: "+aliasARN)

	updated := must(client.UpdateAlias(ctx, &lambda.UpdateAliasInput{
		FunctionName: aws.String("f"), Name: aws.String("live"), Description: aws.String("for all"), RevisionId: created.RevisionId,
		RoutingConfig: &types.AliasRoutingConfiguration{AdditionalVersionWeights: map[string]float64{"2": 0.1}},
	}))(t)
	if *updated.FunctionVersion != "1" || *updated.Description != "for all" || *updated.RevisionId == *created.RevisionId ||
		!cmp.Equal(updated.RoutingConfig.AdditionalVersionWeights, map[string]float64{"2": 0.1}) {
		t.Errorf("updated %+v", updated)
	}
	_, err = client.UpdateAlias(ctx, &lambda.UpdateAliasInput{FunctionName: aws.String("f"), Name: aws.String("live"), RevisionId: created.RevisionId})
	wantFault(t, err, codePrecondition, "The Revision Id provided does not match the latest Revision Id.")
	got := must(client.GetAlias(ctx, &lambda.GetAliasInput{FunctionName: aws.String("f"), Name: aws.String("live")}))(t)
	if *got.RevisionId != *updated.RevisionId || got.RoutingConfig == nil {
		t.Errorf("got %+v", got)
	}
	whole := must(client.UpdateAlias(ctx, &lambda.UpdateAliasInput{
		FunctionName: aws.String("f"), Name: aws.String("live"), FunctionVersion: aws.String("2"), RoutingConfig: &types.AliasRoutingConfiguration{},
	}))(t)
	if *whole.FunctionVersion != "2" || whole.RoutingConfig != nil {
		t.Errorf("the split did not end: %+v", whole)
	}

	// What takes a qualifier takes an alias, and answers with it in the ARN.
	configuration := must(client.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f:live")}))(t)
	if *configuration.FunctionArn != aliasARN || *configuration.Version != "2" || *configuration.Description != "v2" {
		t.Errorf("configuration %s, version %s", *configuration.FunctionArn, *configuration.Version)
	}
	must(client.AddPermission(ctx, &lambda.AddPermissionInput{
		FunctionName: aws.String("f"), Qualifier: aws.String("live"), StatementId: aws.String("s"), Action: aws.String("lambda:InvokeFunction"), Principal: aws.String("*"),
	}))(t)
	policy := must(client.GetPolicy(ctx, &lambda.GetPolicyInput{FunctionName: aws.String("f"), Qualifier: aws.String("live")}))(t)
	if !strings.Contains(*policy.Policy, aliasARN) {
		t.Errorf("policy %s", *policy.Policy)
	}

	_, err = client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String("f"), Qualifier: aws.String("2")})
	wantFault(t, err, codeConflict, "Unable to delete function version because it is referenced by the following aliases: [live]")
	must(client.DeleteAlias(ctx, &lambda.DeleteAliasInput{FunctionName: aws.String("f"), Name: aws.String("live")}))(t)
	must(client.DeleteAlias(ctx, &lambda.DeleteAliasInput{FunctionName: aws.String("f"), Name: aws.String("live")}))(t)
	_, err = client.GetAlias(ctx, &lambda.GetAliasInput{FunctionName: aws.String("f"), Name: aws.String("live")})
	wantFault(t, err, codeNotFound, "Cannot find alias arn: "+aliasARN)
	_, err = client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Qualifier: aws.String("live")})
	wantFault(t, err, codeNotFound, "Function not found: "+aliasARN)
	must(client.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String("f"), Qualifier: aws.String("2")}))(t)
}

func TestAliasRefusals(t *testing.T) {
	w := withVersions(t, 2)
	for _, test := range []struct {
		name       string
		in         *lambda.CreateAliasInput
		code, text string
	}{
		{"no version", createAlias("7", nil), codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:7"},
		{"no second version", createAlias("1", map[string]float64{"7": 0.5}), codeNotFound, ":f:7"},
		{"$LATEST and another", createAlias("$LATEST", map[string]float64{"1": 0.5}), codeInvalidParameter, "$LATEST is not supported for an alias pointing to more than 1 version"},
		{"twice the same", createAlias("1", map[string]float64{"1": 0.5}), codeInvalidParameter, "Invalid function version 1. Function version 1 is already included in routing configuration."},
		{"three versions", createAlias("1", map[string]float64{"1": 0.5, "2": 0.1}), codeInvalidParameter, "Number of items in AdditionalVersionWeights cannot be greater than 1"},
		{"heavy", createAlias("1", map[string]float64{"2": 1.5}), codeValidation, "at 'routingConfig.additionalVersionWeights' failed to satisfy constraint: Map value must satisfy constraint: [Member must have value less than or equal to 1, Member must have value greater than or equal to 0]"},
		{"weightless", createAlias("1", map[string]float64{"2": -0.5}), codeValidation, "Map value must satisfy constraint"},
		{"a name for a version", createAlias("1", map[string]float64{"two": 0.5}), codeValidation, "Map keys must satisfy constraint"},
		{"a number", func() *lambda.CreateAliasInput { in := createAlias("1", nil); in.Name = aws.String("12"); return in }(), codeValidation, "Value '12' at 'name'"},
		{"qualified", func() *lambda.CreateAliasInput {
			in := createAlias("1", nil)
			in.FunctionName = aws.String("f:1")
			return in
		}(), codeInvalidParameter, "do not support this operation"},
		{"no function", func() *lambda.CreateAliasInput {
			in := createAlias("1", nil)
			in.FunctionName = aws.String("g")
			return in
		}(), codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := w.client().CreateAlias(t.Context(), test.in)
			wantFault(t, err, test.code, test.text)
		})
	}
}

func TestListAliases(t *testing.T) {
	w := withVersions(t, 2)
	for i := range 5 {
		in := createAlias(fmt.Sprint(1+i%2), nil)
		in.Name = aws.String(strings.Repeat("x", 100) + fmt.Sprint(i)) // longer than a function's name may be
		must(w.client().CreateAlias(t.Context(), in))(t)
	}
	list := func(in *lambda.ListAliasesInput) (names []string) {
		in.FunctionName = aws.String("f")
		for pages := lambda.NewListAliasesPaginator(w.client(), in); pages.HasMorePages(); {
			for _, a := range must(pages.NextPage(t.Context()))(t).Aliases {
				names = append(names, (*a.Name)[100:])
			}
		}
		return names
	}
	if got := list(&lambda.ListAliasesInput{MaxItems: aws.Int32(2)}); !cmp.Equal(got, []string{"0", "1", "2", "3", "4"}) {
		t.Errorf("listed %v", got)
	}
	if got := list(&lambda.ListAliasesInput{FunctionVersion: aws.String("2"), MaxItems: aws.Int32(1)}); !cmp.Equal(got, []string{"1", "3"}) {
		t.Errorf("of version 2: %v", got)
	}
}

// Over 10,000 calls the versions of an alias get their shares within what chance allows.
func TestAliasWeights(t *testing.T) {
	w := withVersions(t, 2)
	const calls, weight = 10_000, 0.1
	must(w.client().CreateAlias(t.Context(), createAlias("1", map[string]float64{"2": weight})))(t)
	second := 0
	for range calls {
		answer, _ := w.do("POST", invokeF+"?Qualifier=live", "{}")
		switch version := answer.Header.Get("X-Amz-Executed-Version"); version {
		case "2":
			second++
		case "1":
		default:
			t.Fatalf("%s, version %q", answer.Status, version)
		}
	}
	if arn := w.invoker.lastCall(t).InvokedARN; arn != aliasARN {
		t.Errorf("the function is told %s", arn)
	}
	// Six standard deviations: wrong once in five hundred million runs.
	if off := math.Abs(float64(second) - calls*weight); off > 6*math.Sqrt(calls*weight*(1-weight)) {
		t.Errorf("%d of %d calls ran the second version, want about %v", second, calls, calls*weight)
	}
}
