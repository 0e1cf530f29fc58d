package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/doze-run/doze/control/clusterkey"
	"github.com/doze-run/doze/control/gateway"
	"github.com/doze-run/doze/control/registry"
)

const (
	// ClusterKeyFile is where the cluster key is by default, in the data folder.
	ClusterKeyFile = "cluster.key"
	// MinSecret and MaxSecret bound the secret of a root key that an operator chose, in characters.
	MinSecret, MaxSecret = 16, 128
)

// RootKey is the operator's access key.
type RootKey struct{ ID, Secret string }

// check refuses what could not be signed with.
func (k RootKey) check() error {
	if !registry.IsAccessKeyID(k.ID) {
		return fmt.Errorf("the id of the root key is not one: %d to %d letters, digits and '_'", registry.MinKeyID, registry.MaxKeyID)
	}
	if len(k.Secret) < MinSecret || len(k.Secret) > MaxSecret {
		return fmt.Errorf("the secret of the root key must have %d to %d characters", MinSecret, MaxSecret)
	}
	for _, c := range []byte(k.Secret) {
		if c <= ' ' || c > '~' {
			return errors.New("the secret of the root key has a character in it that cannot be typed")
		}
	}
	return nil
}

// openClusterKey reads the key that secrets in the state are sealed with, or makes it.
func (c *Control) openClusterKey() (*clusterkey.Key, error) {
	path := c.config.ClusterKeyFile
	if path == "" {
		if err := os.MkdirAll(c.config.DataDir, 0o700); err != nil {
			return nil, fmt.Errorf("control: data folder: %w", err)
		}
		path = filepath.Join(c.config.DataDir, ClusterKeyFile)
	}
	if _, err := os.Stat(path); c.config.Auth && errors.Is(err, fs.ErrNotExist) && len(c.quorum.Registry().AccessKeys("")) > 0 {
		return nil, fmt.Errorf("control: the cluster key file %s is missing, and the access keys in the data folder cannot be used without it: put it back (if it is lost, start without --auth on the loopback, revoke the keys and make new ones)", path)
	}
	return clusterkey.Open(path)
}

// authenticator is what tells who calls. With verified keys there is a root key afterwards.
func (c *Control) authenticator(ctx context.Context, key *clusterkey.Key) (gateway.Authenticator, error) {
	if !c.config.Auth {
		tcp, ok := c.config.HTTP.Addr().(*net.TCPAddr)
		return gateway.Anyone{Account: DevAccount, Loopback: ok && tcp.IP.IsLoopback()}, nil
	}
	if err := c.ensureRoot(ctx, key); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	return gateway.NewKeys(c.quorum.Registry().AccessKey, key, c.config.Region, nil), nil
}

// ensureRoot makes the root key that the configuration names, or, where it names none and the state
// has none, a new one, which Control.NewRootKey then shows.
func (c *Control) ensureRoot(ctx context.Context, key *clusterkey.Key) error {
	want, there := c.config.RootKey, false
	if want != (RootKey{}) {
		if err := want.check(); err != nil {
			return err
		}
	}
	for _, k := range c.quorum.Registry().AccessKeys("") {
		secret, err := key.Open(k.Sealed, gateway.KeyPurpose(k.ID))
		if err != nil {
			return fmt.Errorf("access key %s: %w: this data was written with another cluster key file, which is needed", k.ID, err)
		}
		if k.Role == registry.RoleRoot && (want == RootKey{} || want == RootKey{k.ID, string(secret)}) {
			there = true
		}
	}
	if there || want == (RootKey{}) && c.members != nil && !c.quorum.IsLeader() {
		return nil // of several nodes that begin a cluster one makes the key
	}
	if want == (RootKey{}) {
		want.ID, want.Secret = gateway.NewSecret()
		c.newRoot = want
	}
	_, err := c.quorum.Propose(ctx, registry.PutAccessKey{Replace: true, Key: registry.AccessKey{
		ID: want.ID, Account: DevAccount, Role: registry.RoleRoot, CreatedAt: time.Now().UnixMilli(),
		Sealed: key.Seal([]byte(want.Secret), gateway.KeyPurpose(want.ID)),
	}})
	if err != nil {
		return fmt.Errorf("make the root key: %w", err)
	}
	return nil
}

// NewRootKey is the root key that this start made, the zero one if it made none. Nobody else can
// tell its secret later.
func (c *Control) NewRootKey() RootKey { return c.newRoot }
