package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// Account limits that GetAccountSettings shows (AWS's defaults), in bytes.
	maxTotalCode = 80530636800
	maxUnzipped  = 262144000
	maxZip       = 52428800

	// Bounds of tags, in characters.
	maxTagKey   = 128
	maxTagValue = 256
)

// PutFunctionConcurrency implements dozev1.LambdaServer.
func (s *service) PutFunctionConcurrency(ctx context.Context, r *dozev1.PutFunctionConcurrencyRequest) (*dozev1.Concurrency, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	reserved := int(r.GetReservedConcurrentExecutions())
	if _, err := s.function(target{account: t.account, name: t.name, qualifier: registry.Latest}); err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, t, registry.PutConcurrency{
		Account: t.account, Name: t.name, Reserved: &reserved, RevisionID: newRevision(),
	})
	if err != nil {
		return nil, err
	}
	return &dozev1.Concurrency{ReservedConcurrentExecutions: r.ReservedConcurrentExecutions}, nil
}

// GetFunctionConcurrency implements dozev1.LambdaServer.
func (s *service) GetFunctionConcurrency(ctx context.Context, r *dozev1.GetFunctionConcurrencyRequest) (*dozev1.GetFunctionConcurrencyResponse, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	f, err := s.function(t)
	if err != nil {
		return nil, err
	}
	out := &dozev1.GetFunctionConcurrencyResponse{}
	if f.Reserved != nil {
		out.ReservedConcurrentExecutions = ptr(int32(*f.Reserved))
	}
	return out, nil
}

// DeleteFunctionConcurrency implements dozev1.LambdaServer.
func (s *service) DeleteFunctionConcurrency(ctx context.Context, r *dozev1.DeleteFunctionConcurrencyRequest) (*dozev1.DeleteFunctionConcurrencyResponse, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, t, registry.PutConcurrency{Account: t.account, Name: t.name, RevisionID: newRevision()})
	if err != nil {
		return nil, err
	}
	return &dozev1.DeleteFunctionConcurrencyResponse{}, nil
}

// GetFunctionCodeSigningConfig implements dozev1.LambdaServer: no function has one.
func (s *service) GetFunctionCodeSigningConfig(ctx context.Context, r *dozev1.GetFunctionCodeSigningConfigRequest) (*dozev1.GetFunctionCodeSigningConfigResponse, error) {
	t, err := s.target(ctx, r.GetFunctionName(), "")
	if err != nil {
		return nil, err
	}
	f, err := s.function(t)
	if err != nil {
		return nil, err
	}
	return &dozev1.GetFunctionCodeSigningConfigResponse{FunctionName: &f.Name}, nil
}

// statement is one statement of a policy, members in AWS's order.
type statement struct {
	Sid       string                       `json:"Sid"`
	Effect    string                       `json:"Effect"`
	Principal any                          `json:"Principal"`
	Action    string                       `json:"Action"`
	Resource  string                       `json:"Resource"`
	Condition map[string]map[string]string `json:"Condition,omitempty"`
}

// AddPermission implements dozev1.LambdaServer.
func (s *service) AddPermission(ctx context.Context, r *dozev1.AddPermissionRequest) (*dozev1.AddPermissionResponse, error) {
	t, err := s.target(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	if t.qualifier == registry.Latest {
		return nil, &Fault{Code: codeInvalidParameter, Message: "We currently do not support adding policies for $LATEST."}
	}
	if _, _, err := s.version(t); err != nil {
		return nil, err
	}
	principal, err := principalOf(r.GetPrincipal())
	if err != nil {
		return nil, err
	}
	st := statement{
		Sid: r.GetStatementId(), Effect: "Allow", Principal: principal, Action: r.GetAction(),
		Resource: s.arn(t.account, t.name, t.qualifier), Condition: conditionOf(r),
	}
	text, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("write statement: %w", err)
	}
	_, err = s.propose(ctx, t, registry.AddPermission{
		Account: t.account, Name: t.name, Qualifier: t.qualifier,
		Statement:  registry.Statement{ID: st.Sid, JSON: string(text)},
		RevisionID: newRevision(), IfRevisionID: r.GetRevisionId(),
	})
	if err != nil {
		return nil, err
	}
	return &dozev1.AddPermissionResponse{Statement: ptr(string(text))}, nil
}

func principalOf(text string) (any, error) {
	switch {
	case text == "*":
		return text, nil
	case strings.HasPrefix(text, "arn:"):
		return map[string]string{"AWS": text}, nil
	case len(text) == 12 && strings.Trim(text, "0123456789") == "":
		return map[string]string{"AWS": "arn:aws:iam::" + text + ":root"}, nil
	case strings.Contains(text, "."):
		return map[string]string{"Service": text}, nil
	}
	return nil, &Fault{Code: codeInvalidParameter, Message: "The provided principal was invalid. Please check the principal and try again."}
}

func conditionOf(r *dozev1.AddPermissionRequest) map[string]map[string]string {
	condition := map[string]map[string]string{}
	add := func(operator, key string, value *string) {
		if value == nil {
			return
		}
		if condition[operator] == nil {
			condition[operator] = map[string]string{}
		}
		condition[operator][key] = *value
	}
	add("StringEquals", "lambda:FunctionUrlAuthType", r.FunctionUrlAuthType)
	add("StringEquals", "aws:PrincipalOrgID", r.PrincipalOrgId)
	add("StringEquals", "AWS:SourceAccount", r.SourceAccount)
	add("StringEquals", "lambda:EventSourceToken", r.EventSourceToken)
	add("ArnLike", "AWS:SourceArn", r.SourceArn)
	if r.InvokedViaFunctionUrl != nil {
		add("Bool", "lambda:InvokedViaFunctionUrl", ptr(fmt.Sprint(r.GetInvokedViaFunctionUrl())))
	}
	return condition
}

// GetPolicy implements dozev1.LambdaServer.
func (s *service) GetPolicy(ctx context.Context, r *dozev1.GetPolicyRequest) (*dozev1.GetPolicyResponse, error) {
	t, err := s.target(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	f, _, err := s.version(t)
	if err != nil {
		return nil, err
	}
	policy := f.Policies[t.qualifier]
	if policy == nil {
		return nil, &Fault{Code: codeNotFound, Message: messageNoSuchResource}
	}
	text := []byte(`{"Version":"2012-10-17","Id":"default","Statement":[`)
	for i, st := range policy.Statements {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(text, st.JSON...)
	}
	return &dozev1.GetPolicyResponse{Policy: ptr(string(append(text, "]}"...))), RevisionId: &policy.RevisionID}, nil
}

// RemovePermission implements dozev1.LambdaServer.
func (s *service) RemovePermission(ctx context.Context, r *dozev1.RemovePermissionRequest) (*dozev1.RemovePermissionResponse, error) {
	t, err := s.target(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	f, _, err := s.version(t)
	if err != nil {
		return nil, err
	}
	if f.Policies[t.qualifier] == nil {
		return nil, &Fault{Code: codeNotFound, Message: "No policy is associated with the given resource."}
	}
	_, err = s.propose(ctx, t, registry.RemovePermission{
		Account: t.account, Name: t.name, Qualifier: t.qualifier, StatementID: r.GetStatementId(),
		RevisionID: newRevision(), IfRevisionID: r.GetRevisionId(),
	})
	if err != nil {
		return nil, err
	}
	return &dozev1.RemovePermissionResponse{}, nil
}

// tagged is the function that a tag operation's ARN names.
func (s *service) tagged(ctx context.Context, resource string) (target, *registry.Function, error) {
	if !strings.Contains(resource, ":function:") {
		return target{}, nil, &Fault{Code: codeNotFound, Message: messageNoSuchResource}
	}
	t, err := s.target(ctx, resource, "")
	if err != nil {
		return t, nil, err
	}
	if t.qualifier != "" {
		return t, nil, &Fault{Code: codeInvalidParameter, Message: "Tags on function aliases and versions are not supported. Please specify a function ARN."}
	}
	f, err := s.function(t)
	return t, f, err
}

// TagResource implements dozev1.LambdaServer.
func (s *service) TagResource(ctx context.Context, r *dozev1.TagResourceRequest) (*dozev1.TagResourceResponse, error) {
	if err := checkTags(r.Tags); err != nil {
		return nil, err
	}
	t, _, err := s.tagged(ctx, r.GetResource())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, t, registry.Tag{Account: t.account, Name: t.name, Tags: r.Tags, RevisionID: newRevision()}); err != nil {
		return nil, err
	}
	return &dozev1.TagResourceResponse{}, nil
}

// UntagResource implements dozev1.LambdaServer.
func (s *service) UntagResource(ctx context.Context, r *dozev1.UntagResourceRequest) (*dozev1.UntagResourceResponse, error) {
	t, _, err := s.tagged(ctx, r.GetResource())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, t, registry.Untag{Account: t.account, Name: t.name, Keys: r.TagKeys, RevisionID: newRevision()}); err != nil {
		return nil, err
	}
	return &dozev1.UntagResourceResponse{}, nil
}

// ListTags implements dozev1.LambdaServer.
func (s *service) ListTags(ctx context.Context, r *dozev1.ListTagsRequest) (*dozev1.ListTagsResponse, error) {
	_, f, err := s.tagged(ctx, r.GetResource())
	if err != nil {
		return nil, err
	}
	return &dozev1.ListTagsResponse{Tags: f.Tags}, nil
}

func checkTags(tags map[string]string) error {
	for key, value := range tags {
		switch {
		case key == "" || utf8.RuneCountInString(key) > maxTagKey:
			return faultf(codeInvalidParameter, "Tag keys must have 1 to %d characters.", maxTagKey)
		case utf8.RuneCountInString(value) > maxTagValue:
			return faultf(codeInvalidParameter, "The value of tag %s has more than %d characters.", key, maxTagValue)
		case strings.HasPrefix(strings.ToLower(key), "aws:"):
			return faultf(codeInvalidParameter, "Tag keys starting with aws: are reserved: %s", key)
		}
	}
	return nil
}

// GetAccountSettings implements dozev1.LambdaServer.
func (s *service) GetAccountSettings(ctx context.Context, _ *dozev1.GetAccountSettingsRequest) (*dozev1.GetAccountSettingsResponse, error) {
	account := exchangeOf(ctx).account
	usage := s.config.Registry.Usage(account)
	return &dozev1.GetAccountSettingsResponse{
		AccountLimit: &dozev1.AccountLimit{
			TotalCodeSize:                  ptr(int64(maxTotalCode)),
			CodeSizeUnzipped:               ptr(int64(maxUnzipped)),
			CodeSizeZipped:                 ptr(int64(maxZip)),
			ConcurrentExecutions:           ptr(int32(registry.AccountConcurrency)),
			UnreservedConcurrentExecutions: ptr(int32(s.config.Registry.UnreservedConcurrency(account))),
		},
		AccountUsage: &dozev1.AccountUsage{
			TotalCodeSize: &usage.TotalCodeSize,
			FunctionCount: ptr(int64(usage.FunctionCount)),
		},
	}, nil
}
