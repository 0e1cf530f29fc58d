package gateway

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"time"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// NewSecret makes the id and the secret of an access key, of the form that AWS's have.
func NewSecret() (id, secret string) {
	var random [10 + 30]byte
	_, _ = rand.Read(random[:])
	return "AKIA" + base32.StdEncoding.EncodeToString(random[:10]), base64.StdEncoding.EncodeToString(random[10:])
}

// CreateKey implements dozev1.LambdaServer.
func (s *service) CreateKey(ctx context.Context, r *dozev1.CreateKeyRequest) (*dozev1.AccessKey, error) {
	caller := exchangeOf(ctx).caller
	account := r.GetAccount()
	if account == "" {
		account = caller.Account
	}
	if caller.Role != registry.RoleRoot && (account != caller.Account || r.GetRole() == registry.RoleRoot) {
		return nil, denied(caller, "CreateKey", "arn:aws:iam::"+account+":user/"+r.GetRole()+"/*", "identity")
	}
	id, secret := NewSecret()
	key := registry.AccessKey{
		ID: id, Account: account, Role: r.GetRole(), Description: r.GetDescription(), CreatedAt: s.nowMs(),
		Sealed: s.config.Cipher.Seal([]byte(secret), KeyPurpose(id)),
	}
	switch _, err := s.config.Proposer.Propose(ctx, registry.PutAccessKey{Key: key}); {
	case errors.Is(err, registry.ErrTooManyKeys):
		return nil, faultf(codeLimitExceeded, "There are %d access keys, which is as many as there can be. Revoke some.", registry.MaxKeys)
	case err != nil:
		return nil, err
	}
	out := shownKey(&key)
	out.SecretAccessKey = &secret
	return out, nil
}

// ListKeys implements dozev1.LambdaServer.
func (s *service) ListKeys(ctx context.Context, r *dozev1.ListKeysRequest) (*dozev1.ListKeysResponse, error) {
	caller := exchangeOf(ctx).caller
	account := r.GetAccount()
	if caller.Role != registry.RoleRoot {
		if account == "" {
			account = caller.Account
		}
		if account != caller.Account {
			return nil, denied(caller, "ListKeys", "arn:aws:iam::"+account+":user/*", "identity")
		}
	}
	out := &dozev1.ListKeysResponse{}
	for _, k := range s.config.Registry.AccessKeys(account) {
		if manages(caller, k) {
			out.Keys = append(out.Keys, shownKey(k))
		}
	}
	return out, nil
}

// RevokeKey implements dozev1.LambdaServer. Calls that run go on; one that comes after the answer
// is refused.
func (s *service) RevokeKey(ctx context.Context, r *dozev1.RevokeKeyRequest) (*dozev1.RevokeKeyResponse, error) {
	caller := exchangeOf(ctx).caller
	missing := faultf(codeNotFound, "The Access Key with id %s cannot be found.", cut(r.GetAccessKeyId()))
	k, ok := s.config.Registry.AccessKey(r.GetAccessKeyId())
	if !ok || !manages(caller, k) {
		return nil, missing
	}
	if k.Role == registry.RoleRoot && s.lastRoot(k.ID) {
		return nil, faultf(codeConflict, "The Access Key with id %s is the last one with the role root; without it nobody could make another. Create one first.", k.ID)
	}
	switch _, err := s.config.Proposer.Propose(ctx, registry.DeleteAccessKey{ID: k.ID, Account: k.Account}); {
	case errors.Is(err, registry.ErrNotFound):
		return nil, missing
	case err != nil:
		return nil, err
	}
	return &dozev1.RevokeKeyResponse{}, nil
}

// lastRoot tells whether no root key but this one is left. Of two that revoke each other at the same
// time both may go: a start with a root key in its environment mends that.
func (s *service) lastRoot(id string) bool {
	for _, k := range s.config.Registry.AccessKeys("") {
		if k.Role == registry.RoleRoot && k.ID != id {
			return false
		}
	}
	return true
}

// manages tells whether a key is the caller's to see and to revoke: an operator's is another
// operator's only.
func manages(caller Identity, k *registry.AccessKey) bool {
	return caller.Role == registry.RoleRoot || k.Account == caller.Account && k.Role != registry.RoleRoot
}

func shownKey(k *registry.AccessKey) *dozev1.AccessKey {
	return &dozev1.AccessKey{
		AccessKeyId: k.ID, Account: k.Account, Role: k.Role, Description: optional(k.Description),
		CreatedAt: time.UnixMilli(k.CreatedAt).UTC().Format("2006-01-02T15:04:05.000Z07:00"),
	}
}
