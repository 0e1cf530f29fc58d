package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

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
	text, err := st.json()
	if err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, t, registry.AddPermission{
		Account: t.account, Name: t.name, Qualifier: t.qualifier,
		Statement:  registry.Statement{ID: st.Sid, JSON: text},
		RevisionID: newRevision(), IfRevisionID: r.GetRevisionId(),
	})
	if err != nil {
		return nil, err
	}
	return &dozev1.AddPermissionResponse{Statement: &text}, nil
}

// json is the statement's text. It has '&' and '<' as they are, as AWS's.
func (st statement) json() (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(st); err != nil {
		return "", fmt.Errorf("write statement: %w", err)
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
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
