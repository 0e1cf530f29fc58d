package gateway

import (
	"context"
	"errors"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// CreateAlias implements dozev1.LambdaServer.
func (s *service) CreateAlias(ctx context.Context, r *dozev1.CreateAliasRequest) (*dozev1.AliasConfiguration, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	routing, err := readRouting(r.RoutingConfig)
	if err != nil {
		return nil, err
	}
	a := registry.Alias{
		Name: r.GetName(), Version: r.GetFunctionVersion(), Description: r.GetDescription(), RevisionID: newRevision(),
	}
	if routing != nil {
		a.Additional, a.Weight = routing.Version, routing.Weight
	}
	answer, err := s.propose(ctx, t, registry.CreateAlias{Account: t.account, Name: t.name, Alias: a})
	return s.answeredAlias(t, answer, err)
}

// UpdateAlias implements dozev1.LambdaServer.
func (s *service) UpdateAlias(ctx context.Context, r *dozev1.UpdateAliasRequest) (*dozev1.AliasConfiguration, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	routing, err := readRouting(r.RoutingConfig)
	if err != nil {
		return nil, err
	}
	answer, err := s.propose(ctx, t, registry.UpdateAlias{
		Account: t.account, Name: t.name, Alias: r.GetName(), Version: r.FunctionVersion, Description: r.Description,
		Routing: routing, RevisionID: newRevision(), IfRevisionID: r.GetRevisionId(),
	})
	return s.answeredAlias(t, answer, err)
}

// GetAlias implements dozev1.LambdaServer.
func (s *service) GetAlias(ctx context.Context, r *dozev1.GetAliasRequest) (*dozev1.AliasConfiguration, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	f, err := s.function(t)
	if err != nil {
		return nil, err
	}
	a, ok := f.Alias(r.GetName())
	if !ok {
		return nil, s.noAlias(t, r.GetName())
	}
	return s.alias(t, a), nil
}

// ListAliases implements dozev1.LambdaServer.
func (s *service) ListAliases(ctx context.Context, r *dozev1.ListAliasesRequest) (*dozev1.ListAliasesResponse, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
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
	out := &dozev1.ListAliasesResponse{}
	size := pageSize(r.MaxItems)
	for _, a := range f.Aliases {
		if a.Name <= after || r.FunctionVersion != nil && a.Version != *r.FunctionVersion && a.Additional != *r.FunctionVersion {
			continue
		}
		if len(out.Aliases) == size {
			out.NextMarker = newMarker(f.Name, out.Aliases[size-1].GetName())
			break
		}
		out.Aliases = append(out.Aliases, s.alias(t, a))
	}
	return out, nil
}

// DeleteAlias implements dozev1.LambdaServer.
func (s *service) DeleteAlias(ctx context.Context, r *dozev1.DeleteAliasRequest) (*dozev1.DeleteAliasResponse, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, t, registry.DeleteAlias{Account: t.account, Name: t.name, Alias: r.GetName()}); err != nil {
		return nil, err
	}
	return &dozev1.DeleteAliasResponse{}, nil
}

// readRouting takes a RoutingConfig apart; nil when it is absent. One without weights ends the split.
func readRouting(config *dozev1.AliasRoutingConfiguration) (*registry.Routing, error) {
	if config == nil {
		return nil, nil
	}
	routing := &registry.Routing{}
	if len(config.AdditionalVersionWeights) > 1 {
		return nil, &Fault{Code: codeInvalidParameter, Message: "Number of items in AdditionalVersionWeights cannot be greater than 1"}
	}
	for version, weight := range config.AdditionalVersionWeights {
		routing.Version, routing.Weight = version, weight
	}
	return routing, nil
}

func (s *service) answeredAlias(t target, answer any, err error) (*dozev1.AliasConfiguration, error) {
	if err != nil {
		return nil, err
	}
	a, ok := answer.(*registry.Alias)
	if !ok {
		return nil, errors.New("the registry answered something else than an alias")
	}
	return s.alias(t, a), nil
}

// alias is an alias as AWS shows it.
func (s *service) alias(t target, a *registry.Alias) *dozev1.AliasConfiguration {
	out := &dozev1.AliasConfiguration{
		AliasArn: ptr(s.arn(t.account, t.name, a.Name)), Name: &a.Name, FunctionVersion: &a.Version,
		Description: &a.Description, RevisionId: &a.RevisionID,
	}
	if a.Additional != "" {
		out.RoutingConfig = &dozev1.AliasRoutingConfiguration{AdditionalVersionWeights: map[string]float64{a.Additional: a.Weight}}
	}
	return out
}

func (s *service) noAlias(t target, name string) *Fault {
	return &Fault{Code: codeNotFound, Message: "Cannot find alias arn: " + s.arn(t.account, t.name, name)}
}
