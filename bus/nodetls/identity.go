// Package nodetls is how the nodes of a cluster know each other: a certificate authority of the
// cluster's own, certificates that say which node of which role one is, and TLS configurations in
// which both sides show one and look at the other's role.
//
// It knows certificates and files. It must not know what is sent over the connections, nor which
// nodes there are: both control nodes and workers use it, and so does the bus.
package nodetls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
)

// Role is what a node may be.
type Role string

// The roles of nodes. A client's certificate is no server's.
const (
	Control Role = "control"
	Worker  Role = "worker"
	Client  Role = "client"
)

// Identity is which node of which role.
type Identity struct {
	Role Role
	// Name is 1 to MaxName letters, digits, '-', '_' and '.', the first a letter or digit.
	Name string
}

// MaxName bounds the name of a node, in bytes.
const MaxName = 63

// scheme is of the URI in a certificate: doze://control/NAME.
const scheme = "doze"

// ErrIdentity is a name or role that no node can have, or a certificate that names no node.
var ErrIdentity = errors.New("nodetls: not a node's identity")

// String is the identity as certificates have it.
func (i Identity) String() string { return i.uri().String() }

func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: string(i.Role), Path: "/" + i.Name}
}

func (i Identity) check() error {
	switch i.Role {
	case Control, Worker, Client:
	default:
		return fmt.Errorf("%w: role %q: one of %s, %s, %s", ErrIdentity, i.Role, Control, Worker, Client)
	}
	ok := i.Name != "" && len(i.Name) <= MaxName
	for n, c := range []byte(i.Name) {
		word := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		ok = ok && (word || n > 0 && (c == '-' || c == '_' || c == '.'))
	}
	if !ok {
		return fmt.Errorf("%w: name %q: 1 to %d letters, digits, '-', '_' and '.'", ErrIdentity, i.Name, MaxName)
	}
	return nil
}

// identityOf is the identity that a certificate gives, which is one URI of ours.
func identityOf(c *x509.Certificate) (Identity, error) {
	var found []Identity
	for _, u := range c.URIs {
		if u.Scheme == scheme && len(u.Path) > 1 {
			found = append(found, Identity{Role(u.Host), u.Path[1:]})
		}
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("%w: the certificate of %q has %d", ErrIdentity, c.Subject.CommonName, len(found))
	}
	return found[0], found[0].check()
}
