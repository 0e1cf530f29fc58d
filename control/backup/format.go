// Package backup is the file in which a cluster's truth is kept apart from it: the replicated state
// at one index, every code package that it names, and a proof of both.
//
// It is a tar archive, in this order: manifest.json, state.ndjson (a snapshot of the state as Raft's
// own), code/<SHA-256>.zip by hash, proof.json. Each part is checked as it comes, both ways, in memory
// for the state and not for the packages; a file without its proof is not whole. The package knows the
// form and the hashes. It must not know files, HTTP, the bus or who may ask for one.
package backup

import (
	"encoding/hex"
	"errors"

	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/control/quorum"
)

// Of the file. A released version keeps a file in testdata for ever.
const (
	Format  = "doze-backup"
	Version = 1
)

const (
	manifestName = "manifest.json"
	stateName    = "state.ndjson"
	codePrefix   = "code/"
	codeSuffix   = ".zip"
	proofName    = "proof.json"
)

// Bounds of a file's parts, in bytes. They guard against what is no backup, not against large clusters.
const (
	maxManifest = 64 << 10
	// maxProof holds the names of 100,000 packages that are missing.
	maxProof = 8 << 20
	// MaxState is the most that this form of archive allows in one part.
	MaxState = 8<<30 - 1
	// MaxPackage is that of the largest code package, as package bus has it.
	MaxPackage = 250 << 20
)

var (
	// ErrDamaged: the file is cut off, changed, or no backup.
	ErrDamaged = errors.New("not a whole backup")
	// ErrVersion: the file was written by a newer Doze.
	ErrVersion = errors.New("backup of another version")
)

// Manifest is what stands in front.
type Manifest struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	// MadeAt is in RFC 3339, in UTC, in seconds; By is the Doze that made it.
	MadeAt string `json:"madeAt"`
	By     string `json:"by"`
	// Cluster is the id of the cluster key, by which clusters are told apart. The key itself is in no
	// backup, and without it the access keys in this one cannot be used.
	Cluster string `json:"cluster"`
	// Index is the log index of the last command in the state.
	Index uint64 `json:"index"`
}

// Proof is what the file holds, in figures that a restored cluster must come to.
type Proof struct {
	Index uint64 `json:"index"`
	// StateHash is what `doze status` shows of the state, RegistryHash and LedgerHash its two parts.
	StateHash    string `json:"stateHash"`
	RegistryHash string `json:"registryHash"`
	LedgerHash   string `json:"ledgerHash"`
	Functions    int    `json:"functions"`
	Keys         int    `json:"keys"`
	// Packages are the code packages in the file, PackageBytes their sizes together.
	Packages     int   `json:"packages"`
	PackageBytes int64 `json:"packageBytes"`
	// Missing are the packages that the state names and the cluster had no more.
	Missing []string `json:"missing,omitempty"`
	// Totals are over all accounts and months.
	Totals Totals `json:"totals"`
}

// Totals are the ledger's.
type Totals struct {
	Requests uint64 `json:"requests"`
	MBMs     uint64 `json:"mbMs"`
	InitMs   uint64 `json:"initMs"`
	Errors   uint64 `json:"errors"`
}

// proofOf is the proof of a state alone.
func proofOf(s quorum.State) Proof {
	whole, registry, usage := s.Hash(), s.Registry.Hash(), s.Ledger.Hash()
	return Proof{
		Index: s.Index, StateHash: hex.EncodeToString(whole[:]), RegistryHash: hex.EncodeToString(registry[:]), LedgerHash: hex.EncodeToString(usage[:]),
		Functions: s.Registry.Len(), Keys: s.Registry.Keys(), Totals: totalsOf(s.Ledger.Total()),
	}
}

func totalsOf(t ledger.Totals) Totals { return Totals{t.Requests, t.MBMs, t.InitMs, t.Errors} }

func codeName(sha string) string { return codePrefix + sha + codeSuffix }
