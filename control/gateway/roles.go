package gateway

import (
	"google.golang.org/protobuf/proto"

	"github.com/doze-run/doze/control/registry"
)

// What each role may do includes what those before it may.
const (
	mayNothing = iota
	mayInvoke
	mayDeploy
	mayAdmin
	mayAll
)

func rankOf(role string) int {
	switch role {
	case registry.RoleInvoker:
		return mayInvoke
	case registry.RoleDeployer:
		return mayDeploy
	case registry.RoleAdmin:
		return mayAdmin
	case registry.RoleRoot:
		return mayAll
	}
	return mayNothing
}

// neededFor is the least rank that an operation takes. What shows code, environment variables or
// log lines is not an invoker's: there may be secrets in all of them. An operation that is not
// named here is about functions.
func neededFor(operation string) int {
	switch operation {
	case "Invoke", "GetAccountSettings", "ListRuntimes", "GetStatus":
		return mayInvoke
	case "CreateKey", "ListKeys", "RevokeKey":
		return mayAdmin
	case "ListNodes", "DrainNode", "RemoveNode", "Backup", "Restore":
		return mayAll
	}
	return mayDeploy
}

// authorize answers nil when the caller's role allows the operation, else AWS's AccessDenied. The
// request is for the text; nil when it is not known yet.
func (s *service) authorize(caller Identity, operation string, request proto.Message) error {
	if rankOf(caller.Role) >= neededFor(operation) {
		return nil
	}
	resource := "*"
	if named, ok := request.(interface{ GetFunctionName() string }); ok {
		if account, _, name, qualifier, err := registry.ParseFunctionName(named.GetFunctionName()); err == nil {
			if account == "" {
				account = caller.Account
			}
			resource = s.arn(account, name, qualifier)
		}
	}
	return denied(caller, operation, resource, "identity")
}

// denied is AWS's AccessDenied; basis is the kind of policy that would have to allow it.
func denied(caller Identity, operation, resource, basis string) *Fault {
	action := "lambda:" + operation
	switch operation {
	case "Invoke":
		action = actionInvoke
	case "ListInstances", "ListRuntimes", "GetBill", "GetStatus", "TailLogs", "CreateKey", "ListKeys", "RevokeKey",
		"ListNodes", "DrainNode", "RemoveNode", "Backup", "Restore":
		action = "doze:" + operation
	}
	return faultf(codeAccessDenied, "User: %s is not authorized to perform: %s on resource: %s because no %s-based policy allows the %s action",
		caller.ARN(), action, resource, basis, action)
}
