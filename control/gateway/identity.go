package gateway

import (
	"context"
	"crypto/sha256"
	"net"
	"net/http"
	"strings"

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

// Proof is what is left to verify of a request when its body is there, by the body's SHA-256; nil when
// nothing is. Until it has answered nil the caller is only who it says.
type Proof func(sum [sha256.Size]byte) error

// Authenticator tells who calls. Its errors should be *Fault; any other is an internal error.
type Authenticator interface {
	// HTTP looks at a request's head. service is whose request it is, by its name in signatures.
	HTTP(r *http.Request, service string) (Identity, Proof, error)
	// GRPC looks at a request's metadata. method is its full name, "/doze.v1.Lambda/Invoke".
	GRPC(ctx context.Context, method string) (Identity, error)
}

// Anyone accepts whatever credentials come, or none, as the operator of one account: for `doze dev`
// on loopback. Browsers reach the loopback too, for any page that somebody looks at, and send no
// credentials that would tell: what they send for the page of another origin is refused.
type Anyone struct {
	Account string
	// Loopback is that only this machine reaches the gateway. It is then called by an address or as
	// localhost: a page whose own name was made to lead here (DNS rebinding) calls by that name.
	Loopback bool
}

// crossOrigin knows browsers' requests for pages of other origins by Sec-Fetch-Site and Origin.
// What does not change anything passes, as no browser shows the answer to such a page.
var crossOrigin = http.NewCrossOriginProtection()

// HTTP implements Authenticator.
func (a Anyone) HTTP(r *http.Request, _ string) (Identity, Proof, error) {
	if err := crossOrigin.Check(r); err != nil {
		return Identity{}, nil, faultf(codeAccessDenied, "A web page of another origin may not send requests here: without --auth anybody who is let in can run code.")
	}
	if a.Loopback && !isLocalName(r.Host) {
		return Identity{}, nil, faultf(codeAccessDenied, "Without --auth Doze is called by an address or as localhost, and not as %.255q, which could be a web page's name for this machine: start it with --auth to call it so.", r.Host)
	}
	return a.identity(), nil, nil
}

// isLocalName tells whether a Host header names what no stranger's web page is served as: an
// address, localhost, or a name without a dot, as hosts files and containers give.
func isLocalName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(host)
	return !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost") || net.ParseIP(strings.Trim(host, "[]")) != nil
}

// GRPC implements Authenticator. Browsers do not speak it.
func (a Anyone) GRPC(context.Context, string) (Identity, error) { return a.identity(), nil }

func (a Anyone) identity() Identity { return Identity{Account: a.Account, Role: registry.RoleRoot} }
