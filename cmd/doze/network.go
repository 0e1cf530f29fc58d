package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Network is Doze's own member of AWS's operations, which the SDK does not know: it is put into the request that the
// SDK has made, and found in the answer before the SDK reads it.

// sendNetwork adds the member to a request. "" adds none.
func sendNetwork(network string) func(*lambda.Options) {
	return func(o *lambda.Options) {
		if network == "" {
			return
		}
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Build.Add(middleware.BuildMiddlewareFunc("DozeNetwork",
				func(ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler) (out middleware.BuildOutput, m middleware.Metadata, err error) {
					request, ok := in.Request.(*smithyhttp.Request)
					if !ok {
						return out, m, fmt.Errorf("add Network to a %T", in.Request)
					}
					if in.Request, err = withMember(request, "Network", network); err != nil {
						return out, m, err
					}
					return next.HandleBuild(ctx, in)
				}), middleware.Before)
		})
	}
}

// withMember is the request with one more member in front of those of its JSON object.
func withMember(request *smithyhttp.Request, name, value string) (*smithyhttp.Request, error) {
	body, err := io.ReadAll(request.GetStream())
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(body, []byte("{"))
	if !ok {
		return nil, fmt.Errorf("the request has no JSON object to add %s to", name)
	}
	member, err := json.Marshal(map[string]string{name: value})
	if err != nil {
		return nil, err
	}
	member = member[:len(member)-1]
	if !bytes.HasPrefix(bytes.TrimSpace(rest), []byte("}")) {
		member = append(member, ',')
	}
	return request.SetStream(bytes.NewReader(append(member, rest...)))
}

// readNetwork puts the member of the answer into to; "" where there is none.
func readNetwork(to *string) func(*lambda.Options) {
	return func(o *lambda.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("DozeNetwork",
				func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
					out, m, err := next.HandleDeserialize(ctx, in)
					response, ok := out.RawResponse.(*smithyhttp.Response)
					if err != nil || !ok {
						return out, m, err
					}
					body, err := io.ReadAll(io.LimitReader(response.Body, maxReplyBytes))
					if err != nil {
						return out, m, err
					}
					rest := response.Body
					response.Body = struct {
						io.Reader
						io.Closer
					}{io.MultiReader(bytes.NewReader(body), rest), rest}
					var members struct{ Network string }
					if json.Unmarshal(body, &members) == nil { // what is no JSON the SDK says better
						*to = members.Network
					}
					return out, m, nil
				}), middleware.After)
		})
	}
}
