package control

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/backup"
	"github.com/doze-run/doze/control/gateway"
	"github.com/doze-run/doze/control/quorum"
	"github.com/doze-run/doze/control/registry"
)

const (
	// leadLimit bounds how long a node that is to restore waits to be the leader.
	leadLimit = 10 * time.Second
	// restoreLimit bounds the change of the state itself, when all of a backup is there.
	restoreLimit = 5 * time.Minute
)

// The largest package is the same to both.
var _ [backup.MaxPackage - bus.MaxObjectBytes]struct{} = [bus.MaxObjectBytes - backup.MaxPackage]struct{}{}

// archive makes and takes backups; it implements gateway.Archive.
type archive Control

// Backup implements gateway.Archive. What was acknowledged before the call is in it.
func (a *archive) Backup(ctx context.Context, w io.Writer) error {
	if err := (*Control)(a).confirm(ctx); err != nil {
		return err
	}
	begun := time.Now()
	proof, err := backup.Write(ctx, w, a.config.Version, a.clusterKey.ID(), begun, a.quorum.State(), packages{a.conn.Objects()})
	if err != nil {
		return err
	}
	a.config.Logger.Info("backup taken", "index", proof.Index, "functions", proof.Functions, "packages", proof.Packages,
		"bytes", proof.PackageBytes, "missing", len(proof.Missing), "took", time.Since(begun).Round(time.Millisecond))
	return nil
}

// packages are the code store as package backup sees it.
type packages struct{ *bus.Objects }

// Get implements backup.Packages.
func (p packages) Get(ctx context.Context, sha256 string) (io.ReadCloser, int64, error) {
	zip, size, err := p.Objects.Get(ctx, sha256)
	if errors.Is(err, bus.ErrObjectNotFound) {
		return nil, 0, fs.ErrNotExist
	}
	return zip, size, err
}

// Restore implements gateway.Archive: code first, which nothing names yet, then all of the state at once.
func (a *archive) Restore(ctx context.Context, r io.Reader, withoutKey bool) (any, error) {
	if !a.restoring.TryLock() {
		return nil, &gateway.ArchiveRefusal{Message: "Another backup is being restored by this node."}
	}
	defer a.restoring.Unlock()
	if err := (*Control)(a).confirm(ctx); err != nil {
		return nil, err
	}
	var state quorum.State
	_, proof, err := backup.Read(r, backup.Into{
		State: func(m backup.Manifest, s quorum.State) error {
			state = s
			if err := mustBeEmpty(a.quorum.State()); err != nil {
				return err
			}
			return a.checkKeys(m, s, withoutKey)
		},
		Package: func(sha256 string, size int64, zip io.Reader) error {
			if err := a.storage.admit(size); err != nil {
				return err
			}
			return a.storage.explain(a.conn.Objects().Put(ctx, sha256, zip))
		},
	})
	switch {
	case errors.Is(err, backup.ErrDamaged), errors.Is(err, backup.ErrVersion):
		return nil, &gateway.ArchiveRefusal{Message: fmt.Sprintf("Nothing was restored: %v.", err)}
	case err != nil:
		return nil, err
	}
	// The client may go now: half of this would be worse than all.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreLimit)
	defer cancel()
	if err := (*Control)(a).takeLead(ctx); err != nil {
		return nil, err
	}
	now, err := a.quorum.Restore(ctx, state, mustBeEmpty)
	if err != nil {
		var refused *gateway.ArchiveRefusal
		if errors.As(err, &refused) {
			return nil, err
		}
		return nil, &gateway.Outage{Message: "The state could not be replaced. Look with `doze list` whether it was, and try again if not.", Err: err}
	}
	hash := now.Hash()
	if got := hex.EncodeToString(hash[:]); got != proof.StateHash {
		return nil, fmt.Errorf("control: the restored state has hash %s, the backup's proof says %s", got, proof.StateHash)
	}
	(*Control)(a).waitAppliedEverywhere(ctx)
	proof.Index = now.Index
	a.config.Logger.Info("a backup was restored", "index", now.Index, "functions", proof.Functions, "packages", proof.Packages, "state", proof.StateHash)
	return proof, nil
}

// mustBeEmpty refuses to replace a state that somebody may miss.
func mustBeEmpty(now quorum.State) error {
	has := ""
	switch n := now.Registry.Len(); {
	case n == 1:
		has = "a function"
	case n > 1:
		has = fmt.Sprintf("%d functions", n)
	case !now.Ledger.Empty():
		has = "a bill"
	}
	for k := range now.Registry.AccessKeys {
		if k.Role != registry.RoleRoot {
			has = "access keys"
		}
	}
	if has == "" {
		return nil
	}
	return &gateway.ArchiveRefusal{Message: "A backup is restored into an empty cluster only, and this one has " + has +
		": begin a new one with empty data folders, and restore into that."}
}

// checkKeys refuses access keys that this cluster's key does not open.
func (a *archive) checkKeys(m backup.Manifest, s quorum.State, withoutKey bool) error {
	for k := range s.Registry.AccessKeys {
		if _, err := a.clusterKey.Open(k.Sealed, gateway.KeyPurpose(k.ID)); err == nil {
			continue
		}
		if withoutKey && !a.config.Auth {
			a.config.Logger.Warn("the backup's access keys cannot be used with this cluster key: revoke them", "keys", s.Registry.Keys(), "backup", m.Cluster, "here", a.clusterKey.ID())
			return nil
		}
		return &gateway.ArchiveRefusal{Message: fmt.Sprintf("The backup's access keys (%d) are sealed with the cluster key %.32s, and this cluster has the key %s: "+
			"start it with that key's file (--cluster-key-file). If that is lost, start it without --auth, restore with --without-cluster-key, revoke the keys and make new ones.",
			s.Registry.Keys(), m.Cluster, a.clusterKey.ID())}
	}
	return nil
}

// takeLead makes this node the leader, which alone can replace the state.
func (c *Control) takeLead(ctx context.Context) error {
	if c.quorum.IsLeader() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leadLimit)
	defer cancel()
	leader, _ := c.quorum.Leader()
	if leader != "" && c.members != nil {
		if _, err := c.mesh.AskNode(ctx, leader, verbLead, []byte(c.Name())); err != nil {
			return &gateway.Outage{Message: "The leader could not hand over to this node. Try again.", Err: err}
		}
	}
	leads := false
	c.quorum.Lead(ctx, func(context.Context) { leads = true; cancel() })
	if !leads {
		return &gateway.Outage{Message: "This node could not become the leader. Try again.", Err: ctx.Err()}
	}
	return nil
}
