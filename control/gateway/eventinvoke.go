package gateway

import (
	"context"
	"errors"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// eventInvokeBody is what Put- and UpdateFunctionEventInvokeConfig have in common.
type eventInvokeBody interface {
	GetFunctionName() string
	GetQualifier() string
	GetDestinationConfig() *dozev1.DestinationConfig
}

// PutFunctionEventInvokeConfig implements dozev1.LambdaServer.
func (s *service) PutFunctionEventInvokeConfig(ctx context.Context, r *dozev1.PutFunctionEventInvokeConfigRequest) (*dozev1.FunctionEventInvokeConfig, error) {
	return s.setEventInvoke(ctx, r, r.MaximumRetryAttempts, r.MaximumEventAgeInSeconds, false)
}

// UpdateFunctionEventInvokeConfig implements dozev1.LambdaServer.
func (s *service) UpdateFunctionEventInvokeConfig(ctx context.Context, r *dozev1.UpdateFunctionEventInvokeConfigRequest) (*dozev1.FunctionEventInvokeConfig, error) {
	return s.setEventInvoke(ctx, r, r.MaximumRetryAttempts, r.MaximumEventAgeInSeconds, true)
}

func (s *service) setEventInvoke(ctx context.Context, r eventInvokeBody, retries, age *int32, merge bool) (*dozev1.FunctionEventInvokeConfig, error) {
	t, err := s.qualified(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	command := registry.PutEventInvoke{
		Account: t.account, Name: t.name, Qualifier: t.qualifier, MaxRetries: toInt(retries), MaxAge: toInt(age), Merge: merge, At: s.nowMs(),
	}
	if d := r.GetDestinationConfig(); d != nil {
		if d.OnSuccess != nil {
			command.OnSuccess = ptr(d.OnSuccess.GetDestination())
		}
		if d.OnFailure != nil {
			command.OnFailure = ptr(d.OnFailure.GetDestination())
		}
	} else if retries == nil && age == nil {
		return nil, &Fault{Code: codeInvalidParameter, Message: "You must specify at least one of error handling or destination setting."}
	}
	for _, arn := range []*string{command.OnSuccess, command.OnFailure} {
		if arn != nil {
			if err := s.checkDestination(t, *arn); err != nil {
				return nil, err
			}
		}
	}
	answer, err := s.propose(ctx, t, command)
	if err != nil {
		return nil, err
	}
	e, ok := answer.(*registry.EventInvoke)
	if !ok {
		return nil, errors.New("the registry answered something else than an event invoke config")
	}
	return s.eventInvoke(t, e), nil
}

// checkDestination refuses what records cannot be sent to.
func (s *service) checkDestination(t target, arn string) error {
	if arn == "" {
		return nil
	}
	account, region, name, _, err := registry.ParseFunctionName(arn)
	switch {
	case err != nil || region == "":
		return faultf(codeInvalidParameter, "Records can not be sent to %s: Doze offers functions (arn:aws:lambda:%s:ACCOUNT:function:NAME) as destinations.", cut(arn), s.config.Region)
	case region != s.config.Region || account != t.account:
		return faultf(codeInvalidParameter, "Records can not be sent to %s: a destination must be a function of the same account and region.", cut(arn))
	case name == t.name:
		return &Fault{Code: codeInvalidParameter, Message: "You can't specify the function as a destination for itself."}
	}
	return nil
}

// GetFunctionEventInvokeConfig implements dozev1.LambdaServer.
func (s *service) GetFunctionEventInvokeConfig(ctx context.Context, r *dozev1.GetFunctionEventInvokeConfigRequest) (*dozev1.FunctionEventInvokeConfig, error) {
	t, err := s.qualified(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	f, ok := s.config.Registry.Function(t.account, t.name)
	if !ok {
		return nil, s.noEventInvoke(t)
	}
	e, ok := f.EventInvokeFor(t.qualifier)
	if !ok {
		return nil, s.noEventInvoke(t)
	}
	return s.eventInvoke(t, e), nil
}

// DeleteFunctionEventInvokeConfig implements dozev1.LambdaServer.
func (s *service) DeleteFunctionEventInvokeConfig(ctx context.Context, r *dozev1.DeleteFunctionEventInvokeConfigRequest) (*dozev1.DeleteFunctionEventInvokeConfigResponse, error) {
	t, err := s.qualified(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, t, registry.DeleteEventInvoke{Account: t.account, Name: t.name, Qualifier: t.qualifier}); err != nil {
		return nil, err
	}
	return &dozev1.DeleteFunctionEventInvokeConfigResponse{}, nil
}

// ListFunctionEventInvokeConfigs implements dozev1.LambdaServer.
func (s *service) ListFunctionEventInvokeConfigs(ctx context.Context, r *dozev1.ListFunctionEventInvokeConfigsRequest) (*dozev1.ListFunctionEventInvokeConfigsResponse, error) {
	t, err := s.target(ctx, r.GetFunctionName(), "")
	if err != nil {
		return nil, err
	}
	f, err := s.function(t)
	if err != nil {
		return nil, err
	}
	_, after, err := readMarker(r.Marker)
	if err != nil {
		return nil, err
	}
	out := &dozev1.ListFunctionEventInvokeConfigsResponse{}
	size := pageSize(r.MaxItems)
	last := ""
	for _, qualifier := range f.QualifiersWithEventInvoke() {
		if qualifier <= after {
			continue
		}
		if len(out.FunctionEventInvokeConfigs) == size {
			out.NextMarker = newMarker(f.Name, last)
			break
		}
		t.qualifier, last = qualifier, qualifier
		out.FunctionEventInvokeConfigs = append(out.FunctionEventInvokeConfigs, s.eventInvoke(t, f.EventInvokes[qualifier]))
	}
	return out, nil
}

// qualified is target with $LATEST spelled out.
func (s *service) qualified(ctx context.Context, functionName, qualifier string) (target, error) {
	t, err := s.target(ctx, functionName, qualifier)
	if t.qualifier == "" {
		t.qualifier = registry.Latest
	}
	return t, err
}

// eventInvoke is an EventInvoke as AWS shows it: both destinations are there, empty or not.
func (s *service) eventInvoke(t target, e *registry.EventInvoke) *dozev1.FunctionEventInvokeConfig {
	out := &dozev1.FunctionEventInvokeConfig{
		LastModified: ptr(float64(e.LastModified) / 1000), FunctionArn: ptr(s.arn(t.account, t.name, t.qualifier)),
		MaximumRetryAttempts: toInt32(e.MaxRetries), MaximumEventAgeInSeconds: toInt32(e.MaxAge),
		DestinationConfig: &dozev1.DestinationConfig{OnSuccess: &dozev1.OnSuccess{}, OnFailure: &dozev1.OnFailure{}},
	}
	out.DestinationConfig.OnSuccess.Destination = optional(e.OnSuccess)
	out.DestinationConfig.OnFailure.Destination = optional(e.OnFailure)
	return out
}

func (s *service) noEventInvoke(t target) *Fault {
	return faultf(codeNotFound, "The function %s doesn't have an EventInvokeConfig", s.arn(t.account, t.name, t.qualifier))
}

func toInt(n *int32) *int {
	if n == nil {
		return nil
	}
	return ptr(int(*n))
}

func toInt32(n *int) *int32 {
	if n == nil {
		return nil
	}
	return ptr(int32(*n))
}
