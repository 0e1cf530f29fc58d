package registry

import (
	"fmt"
	"strings"
	"testing"
)

func TestAccessKeys(t *testing.T) {
	s := New()
	k := accessKey("AKIAIOSFODNN7EXAMPLE")
	if got := do(t, s, PutAccessKey{Key: k}).(*AccessKey); got.ID != k.ID || got.Role != RoleDeployer {
		t.Fatalf("%+v", got)
	}
	refused(t, s, PutAccessKey{Key: k}, ErrExists)
	k.Role = RoleAdmin
	do(t, s, PutAccessKey{Key: k, Replace: true})
	if got, ok := s.AccessKey(k.ID); !ok || got.Role != RoleAdmin {
		t.Fatalf("replaced: %+v", got)
	}
	other := accessKey("AKIA2222222222222222")
	other.Account = "222222222222"
	do(t, s, PutAccessKey{Key: other})
	if own, all := s.AccessKeys(acct), s.AccessKeys(""); len(own) != 1 || own[0].ID != k.ID || len(all) != 2 || all[0].ID != other.ID {
		t.Fatalf("own %v, all %v", own, all)
	}
	refused(t, s, DeleteAccessKey{Account: acct, ID: other.ID}, ErrNotFound)
	do(t, s, DeleteAccessKey{Account: other.Account, ID: other.ID}, DeleteAccessKey{ID: k.ID})
	refused(t, s, DeleteAccessKey{ID: k.ID}, ErrNotFound)
	if _, ok := s.AccessKey(k.ID); ok || len(s.AccessKeys("")) != 0 {
		t.Fatal("a revoked key is there")
	}
	for i := range MaxKeys {
		do(t, s, PutAccessKey{Key: accessKey(fmt.Sprintf("AKIA%016d", i))})
	}
	refused(t, s, PutAccessKey{Key: accessKey("AKIAIOSFODNN7EXAMPLE")}, ErrTooManyKeys)
	do(t, s, PutAccessKey{Key: accessKey("AKIA0000000000000007"), Replace: true})
}

func TestAccessKeyRefuses(t *testing.T) {
	for name, change := range map[string]func(*AccessKey){
		"short id":         func(k *AccessKey) { k.ID = "AKI" },
		"long id":          func(k *AccessKey) { k.ID = strings.Repeat("A", MaxKeyID+1) },
		"id with a slash":  func(k *AccessKey) { k.ID = "AKIA/2024" },
		"id with a dash":   func(k *AccessKey) { k.ID = "AKIA-2024" },
		"no account":       func(k *AccessKey) { k.Account = "" },
		"name for account": func(k *AccessKey) { k.Account = "account_name" },
		"no role":          func(k *AccessKey) { k.Role = "" },
		"no secret":        func(k *AccessKey) { k.Sealed = nil },
		"large secret":     func(k *AccessKey) { k.Sealed = make([]byte, MaxSealedSecret+1) },
		"long description": func(k *AccessKey) { k.Description = strings.Repeat("d", MaxKeyDescription+1) },
		"odd description":  func(k *AccessKey) { k.Description = "\xff" },
	} {
		k := accessKey("AKIAIOSFODNN7EXAMPLE")
		change(&k)
		t.Run(name, func(t *testing.T) { refused(t, New(), PutAccessKey{Key: k, Replace: true}, ErrInvalid) })
	}
}

func TestFindingAKeyAllocatesNothing(t *testing.T) {
	s := New()
	for i := range 100 {
		do(t, s, PutAccessKey{Key: accessKey(fmt.Sprintf("AKIA%016d", i))})
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := s.AccessKey("AKIA0000000000000042"); !ok {
			t.Fatal("gone")
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
