package gateway

import (
	"context"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Limits that GetAccountSettings shows (AWS's defaults), in bytes.
const (
	maxTotalCode = 80530636800
	maxUnzipped  = 262144000
	maxZip       = 52428800
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

// GetAccountSettings implements dozev1.LambdaServer.
func (s *service) GetAccountSettings(ctx context.Context, _ *dozev1.GetAccountSettingsRequest) (*dozev1.GetAccountSettingsResponse, error) {
	account := exchangeOf(ctx).caller.Account
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
