package gateway

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// service is the operations themselves, the same for both edges. A request that reaches it has
// passed the validator.
type service struct {
	dozev1.UnimplementedLambdaServer
	config Config
	// linkKey signs download links; they are as short-lived as this process.
	linkKey []byte
	// runtimes are the names that AWS knows.
	runtimes []string
}

// target is the function, and perhaps version, that a request names.
type target struct {
	account, name string
	// qualifier is "" when none was given.
	qualifier string
}

// target is named, and refuses other accounts' functions.
func (s *service) target(ctx context.Context, functionName, qualifier string) (target, error) {
	t, err := s.named(ctx, functionName, qualifier)
	if x := exchangeOf(ctx); err == nil && t.account != x.caller.Account {
		if x.caller.KeyID == "" {
			return t, s.notFound(t) // there are no other accounts
		}
		err = denied(x.caller, x.operation, s.arn(t.account, t.name, t.qualifier), "resource")
	}
	return t, err
}

// named takes apart a FunctionName and joins it with a Qualifier parameter ("" for none).
func (s *service) named(ctx context.Context, functionName, qualifier string) (target, error) {
	t := target{account: exchangeOf(ctx).caller.Account}
	account, region, name, derived, err := registry.ParseFunctionName(functionName)
	if err != nil {
		// It has the model's form, but no function can have this name.
		return t, &Fault{Code: codeNotFound, Message: "Function not found: " + s.arn(t.account, cut(functionName), qualifier)}
	}
	if region != "" && region != s.config.Region {
		return t, faultf(codeNotFound, "Functions from '%s' are not reachable in this region ('%s')", region, s.config.Region)
	}
	if derived != "" && qualifier != "" && derived != qualifier {
		return t, &Fault{Code: codeInvalidParameter, Message: "The derived qualifier from the function name does not match the specified qualifier."}
	}
	t.name = name
	t.qualifier = qualifier
	if derived != "" {
		t.qualifier = derived
	}
	if account != "" {
		t.account = account
	}
	return t, nil
}

// whole is target for operations on a function as a whole.
func (s *service) whole(ctx context.Context, functionName string) (target, error) {
	t, err := s.target(ctx, functionName, "")
	if err == nil && t.qualifier != "" {
		err = &Fault{Code: codeInvalidParameter, Message: "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. Please specify either a function name or an unqualified function ARN."}
	}
	return t, err
}

// function finds the function itself, whatever the qualifier.
func (s *service) function(t target) (*registry.Function, error) {
	f, ok := s.config.Registry.Function(t.account, t.name)
	if !ok {
		return nil, s.notFound(t)
	}
	return f, nil
}

// version finds the function and the version that the qualifier names.
func (s *service) version(t target) (*registry.Function, *registry.Version, error) {
	f, v, ok := s.config.Registry.Resolve(t.account, t.name, t.qualifier)
	if !ok {
		return nil, nil, s.notFound(t)
	}
	return f, v, nil
}

func (s *service) notFound(t target) *Fault {
	return &Fault{Code: codeNotFound, Message: "Function not found: " + s.arn(t.account, t.name, t.qualifier)}
}

func (s *service) arn(account, name, qualifier string) string {
	return registry.ARN(s.config.Region, account, name, qualifier)
}

// propose carries out a command and words the registry's refusals as AWS does.
func (s *service) propose(ctx context.Context, t target, command registry.Command) (any, error) {
	answer, err := s.config.Proposer.Propose(ctx, command)
	if err == nil {
		return answer, nil
	}
	return nil, s.refusal(t, err)
}

func (s *service) refusal(t target, err error) error {
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return s.notFound(t)
	case errors.Is(err, registry.ErrExists):
		return faultf(codeConflict, "Function already exist: %s", t.name)
	case errors.Is(err, registry.ErrRevision):
		return &Fault{Code: codePrecondition, Message: messageStaleRevision}
	case errors.Is(err, registry.ErrBusy):
		return s.busy(t)
	case errors.Is(err, registry.ErrStale):
		return &Fault{Code: codeConflict, Message: "The operation cannot be performed at this time. Other updates of the function keep coming first."}
	case errors.Is(err, registry.ErrUnreserved):
		return faultf(codeInvalidParameter, "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its minimum value of [%d].", registry.MinUnreserved)
	case errors.Is(err, registry.ErrStatementExists):
		return faultf(codeConflict, "The statement id (%s) provided already exists. Please provide a new statement id, or remove the existing statement.", detailOf(err))
	case errors.Is(err, registry.ErrStatementNotFound):
		return faultf(codeNotFound, "Statement %s is not found in resource policy.", detailOf(err))
	case errors.Is(err, registry.ErrPolicyTooLong):
		return faultf(codePolicyLength, "The final policy size is bigger than the limit (%d).", registry.MaxPolicyBytes)
	case errors.Is(err, registry.ErrVersionNotFound):
		return s.notFound(target{account: t.account, name: t.name, qualifier: detailOf(err)})
	case errors.Is(err, registry.ErrNoEventInvoke):
		return s.noEventInvoke(t)
	case errors.Is(err, registry.ErrAliasExists):
		return faultf(codeConflict, "Alias already exists: %s", s.arn(t.account, t.name, detailOf(err)))
	case errors.Is(err, registry.ErrAliasNotFound):
		return s.noAlias(t, detailOf(err))
	case errors.Is(err, registry.ErrAliasLatest):
		return &Fault{Code: codeInvalidParameter, Message: "$LATEST is not supported for an alias pointing to more than 1 version"}
	case errors.Is(err, registry.ErrAliasTwice):
		return faultf(codeInvalidParameter, "Invalid function version %[1]s. Function version %[1]s is already included in routing configuration.", detailOf(err))
	case errors.Is(err, registry.ErrAliased):
		return faultf(codeConflict, "Unable to delete function version because it is referenced by the following aliases: [%s]", detailOf(err))
	case errors.Is(err, registry.ErrTooManyTags):
		return &Fault{Code: codeInvalidParameter, Message: "Number of tags exceeds resource tag limit."}
	}
	return err
}

// busy words ErrBusy by what the function is waiting for.
func (s *service) busy(t target) error {
	if f, ok := s.config.Registry.Function(t.account, t.name); ok && f.Latest.State == registry.StatePending {
		return &Fault{Code: codeConflict, Message: "The operation cannot be performed at this time. The function is currently in the following state: Pending"}
	}
	return &Fault{Code: codeConflict, Message: "The operation cannot be performed at this time. An update is in progress for resource: " + s.arn(t.account, t.name, "")}
}

func detailOf(err error) string {
	var e *registry.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return ""
}

// nowMs is the wall clock in unix milliseconds.
func (s *service) nowMs() int64 { return s.config.Now().UnixMilli() }

// newRevision is a new RevisionId.
func newRevision() string { return uuid.NewString() }

func ptr[T any](v T) *T { return &v }
