package gateway

import (
	"context"
	"net/http"

	"github.com/doze-run/doze/control/registry"
)

// Identity is who calls.
type Identity struct {
	// Account is the 12 digits whose functions the caller sees and pays for.
	Account string
	// Role is one of package registry's; one that is not known there may do nothing.
	Role string
	// KeyID is of the access key; "" where callers are not told apart.
	KeyID string
}

// ARN is the caller's name in AWS's texts, in policies and in GetCallerIdentity.
func (i Identity) ARN() string {
	if i.Role == registry.RoleRoot {
		return "arn:aws:iam::" + i.Account + ":root"
	}
	return "arn:aws:iam::" + i.Account + ":user/" + i.Role + "/" + i.KeyID
}

// Proof is what is left to verify of a request when its body is there, nil when nothing is. Until
// it has answered nil the caller is only who it says.
type Proof func(body []byte) error

// Authenticator tells who calls. Its errors should be *Fault; any other is an internal error.
type Authenticator interface {
	// HTTP looks at a request's head. service is whose request it is, by its name in signatures.
	HTTP(r *http.Request, service string) (Identity, Proof, error)
	// GRPC looks at a request's metadata. method is its full name, "/doze.v1.Lambda/Invoke".
	GRPC(ctx context.Context, method string) (Identity, error)
}

// Anyone accepts whatever credentials come, or none, as the operator of one account: for `doze dev`
// on loopback.
type Anyone struct {
	Account string
}

// HTTP implements Authenticator.
func (a Anyone) HTTP(*http.Request, string) (Identity, Proof, error) { return a.identity(), nil, nil }

// GRPC implements Authenticator.
func (a Anyone) GRPC(context.Context, string) (Identity, error) { return a.identity(), nil }

func (a Anyone) identity() Identity { return Identity{Account: a.Account, Role: registry.RoleRoot} }
