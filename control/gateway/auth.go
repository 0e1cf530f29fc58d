package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/doze-run/doze/control/gateway/sigv4"
	"github.com/doze-run/doze/control/registry"
)

// Names of services in signatures.
const (
	serviceLambda = "lambda"
	serviceSTS    = "sts"
)

// stsRegion is what clients sign with that use the global endpoint of STS.
const stsRegion = "us-east-1"

// Keys tells who calls by signatures made with the access keys of the state.
type Keys struct {
	find   func(id string) (*registry.AccessKey, bool)
	cipher Cipher
	region string
	now    func() time.Time

	mu sync.RWMutex
	// signing keeps what secrets come to. A key that is revoked or replaced is another pointer, and
	// what it came to is not found any more.
	signing map[signingScope]*sigv4.SigningKey
}

// Cipher encrypts what the state keeps of a secret; *clusterkey.Key is one.
type Cipher interface {
	Seal(plain []byte, purpose string) []byte
	Open(sealed []byte, purpose string) ([]byte, error)
}

// signingScope is what a signing key is for; there is one region.
type signingScope struct {
	key                   *registry.AccessKey
	date, region, service string
}

// maxSigning bounds how many signing keys are kept. When there are more all are made anew.
const maxSigning = 4096

// NewKeys makes an Authenticator. find is the local copy of the state; now is time.Now when nil.
func NewKeys(find func(id string) (*registry.AccessKey, bool), cipher Cipher, region string, now func() time.Time) *Keys {
	if now == nil {
		now = time.Now
	}
	return &Keys{find: find, cipher: cipher, region: region, now: now, signing: map[signingScope]*sigv4.SigningKey{}}
}

// HTTP implements Authenticator: a signature in the Authorization header or in the query. A client
// that names its body's hash is verified before its body is read.
func (k *Keys) HTTP(r *http.Request, service string) (Identity, Proof, error) {
	request := &sigv4.Request{Method: r.Method, Path: r.URL.EscapedPath(), RawQuery: r.URL.RawQuery, Host: r.Host, Header: r.Header}
	region := k.region
	signature, err := sigv4.Read(request)
	if err == nil && service == serviceSTS && signature.Region == stsRegion {
		region = stsRegion
	}
	identity, key, err := k.look(&signature, err, region, service)
	if err != nil {
		return identity, nil, err
	}
	claimed := signature.PayloadHash
	if claimed != "" {
		if err := fault(signature.Verify(request, key, claimed)); err != nil {
			return identity, nil, err
		}
	}
	return identity, func(sum [sha256.Size]byte) error {
		var text [2 * sha256.Size]byte
		hex.Encode(text[:], sum[:])
		hash := string(text[:])
		if claimed == "" {
			return fault(signature.Verify(request, key, hash))
		}
		// Lambda takes no unsigned bodies.
		if claimed != hash {
			return fault(sigv4.ErrMismatch)
		}
		return nil
	}, nil
}

// GRPC implements Authenticator. A call is signed as a POST of its method's name would be, with the
// metadata authorization, x-amz-date and x-amz-content-sha256. The last is UNSIGNED-PAYLOAD: one
// message has many encodings, so that its hash could not be told before it is on the wire. So the
// secret never travels, a signature serves one method only, and what keeps a message from being
// changed on the way is TLS.
func (k *Keys) GRPC(ctx context.Context, method string) (Identity, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	request := &sigv4.Request{Method: http.MethodPost, Path: method, Header: make(http.Header, len(md))}
	for name, values := range md {
		switch name {
		case ":authority":
			if len(values) > 0 {
				request.Host = strings.TrimSuffix(values[0], ":443") // as signers leave it out
			}
		default:
			request.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	signature, err := sigv4.Read(request)
	identity, key, err := k.look(&signature, err, k.region, serviceLambda)
	if err != nil {
		return identity, err
	}
	if signature.PayloadHash != sigv4.UnsignedPayload {
		return identity, faultf(codeInvalidSignature, "A gRPC call is signed with x-amz-content-sha256: %s.", sigv4.UnsignedPayload)
	}
	return identity, fault(signature.Verify(request, key, sigv4.UnsignedPayload))
}

// look finds the key of a signature that was read, and checks its scope and time.
func (k *Keys) look(signature *sigv4.Signature, err error, region, service string) (Identity, *sigv4.SigningKey, error) {
	if err == nil {
		err = signature.Check(k.now(), region, service)
	}
	if err != nil {
		return Identity{}, nil, fault(err)
	}
	key, ok := k.find(signature.KeyID)
	// Keys here are lasting ones, which have no token. AWS does not take one that has.
	if !ok || signature.Token {
		return Identity{}, nil, &Fault{Code: codeUnrecognized, Message: "The security token included in the request is invalid."}
	}
	signing, err := k.derive(signingScope{key, signature.Date, region, service})
	return Identity{Account: key.Account, Role: key.Role, KeyID: key.ID}, signing, err
}

func (k *Keys) derive(scope signingScope) (*sigv4.SigningKey, error) {
	k.mu.RLock()
	signing := k.signing[scope]
	k.mu.RUnlock()
	if signing != nil {
		return signing, nil
	}
	secret, err := k.cipher.Open(scope.key.Sealed, KeyPurpose(scope.key.ID))
	if err != nil {
		return nil, fmt.Errorf("access key %s: %w", scope.key.ID, err)
	}
	signing = new(sigv4.DeriveKey(string(secret), scope.date, scope.region, scope.service))
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.signing) >= maxSigning {
		clear(k.signing)
	}
	k.signing[scope] = signing
	return signing, nil
}

// KeyPurpose is what the secret of an access key is sealed for.
func KeyPurpose(id string) string { return "access key " + id }

// fault is an error of package sigv4 as AWS's clients see it, nil for nil.
func fault(err error) error {
	var e *sigv4.Error
	if !errors.As(err, &e) {
		return err
	}
	code := codeInvalidSignature
	switch e.Kind {
	case sigv4.Missing:
		code = codeMissingAuth
	case sigv4.Incomplete:
		code = codeIncomplete
	}
	return &Fault{Code: code, Message: e.Message}
}
