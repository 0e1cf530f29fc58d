package registry

import "unicode/utf8"

// What an access key may do. Package gateway has the table of operations.
const (
	// RoleRoot is an operator's: everything, and keys in every account.
	RoleRoot = "root"
	// RoleAdmin is everything in its account, its keys too.
	RoleAdmin = "admin"
	// RoleDeployer is everything about functions in its account.
	RoleDeployer = "deployer"
	// RoleInvoker is to call functions of its account.
	RoleInvoker = "invoker"
)

// Bounds of access keys.
const (
	// MaxKeys is how many there may be in all accounts together.
	MaxKeys = 10_000
	// MinKeyID and MaxKeyID bound an id in characters (AWS takes 16 to 128; its own have 20).
	MinKeyID, MaxKeyID = 4, 128
	// MaxSealedSecret bounds what is kept of a secret, in bytes.
	MaxSealedSecret = 1 << 10
	// MaxKeyDescription is in bytes.
	MaxKeyDescription = 256
)

// AccessKey is what a client signs its requests with, and what that gives it. One that a query
// returned never changes.
type AccessKey struct {
	ID string `json:"id"`
	// Account is the 12 digits whose functions it is for.
	Account string `json:"account"`
	// Role is one of the Role constants; one that this Doze does not know gives nothing.
	Role        string `json:"role"`
	Description string `json:"description,omitempty"`
	// CreatedAt is in unix milliseconds.
	CreatedAt int64 `json:"createdAt"`
	// Sealed is the secret, which to verify a signature takes in clear, encrypted with a key that
	// is neither in the log nor in a snapshot. What it means is its maker's business.
	Sealed []byte `json:"sealed"`
}

// AccessKey finds a key by its id.
func (s *State) AccessKey(id string) (*AccessKey, bool) {
	s.mu.RLock()
	keys := s.keys
	s.mu.RUnlock()
	return keys.Get(id)
}

// AccessKeys are the keys of an account, of all accounts for "", by id.
func (s *State) AccessKeys(account string) []*AccessKey {
	found := []*AccessKey{}
	for k := range s.Snapshot().accessKeys {
		if account == "" || k.Account == account {
			found = append(found, k)
		}
	}
	return found
}

// apply answers *AccessKey.
func (c PutAccessKey) apply(s *State) (any, error) {
	k := c.Key
	if !k.whole() {
		return nil, ErrInvalid.with("access key")
	}
	_, there := s.AccessKey(k.ID)
	switch {
	case there && !c.Replace:
		return nil, ErrExists.with(k.ID)
	case !there && s.keys.Len() >= MaxKeys:
		return nil, ErrTooManyKeys
	}
	k.Account, k.Role = same(k.Account), same(k.Role)
	s.swapKeys(s.keys.Set(k.ID, &k))
	return &k, nil
}

// apply answers the *AccessKey as it was.
func (c DeleteAccessKey) apply(s *State) (any, error) {
	k, ok := s.AccessKey(c.ID)
	if !ok || c.Account != "" && k.Account != c.Account {
		return nil, ErrNotFound.with(c.ID)
	}
	s.swapKeys(s.keys.Delete(c.ID))
	return k, nil
}

func (s *State) swapKeys(keys *tree[*AccessKey]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
}

// whole reports whether a key is one that queries can rely on.
func (k *AccessKey) whole() bool {
	return IsAccessKeyID(k.ID) && isAccount(k.Account) && len(k.Role) <= MaxName && isWord(k.Role) &&
		len(k.Description) <= MaxKeyDescription && utf8.ValidString(k.Description) &&
		len(k.Sealed) > 0 && len(k.Sealed) <= MaxSealedSecret
}

// IsAccessKeyID reports whether s can be the id of a key: letters, digits and '_' (AWS's own
// pattern), MinKeyID to MaxKeyID of them.
func IsAccessKeyID(s string) bool {
	if len(s) < MinKeyID || len(s) > MaxKeyID || !isWord(s) {
		return false
	}
	for i := range len(s) {
		if s[i] == '-' {
			return false
		}
	}
	return true
}

// IsAccount reports whether s is an account: 12 digits.
func IsAccount(s string) bool { return isAccount(s) }
