package registry

// A Command is one change of the state, as it stands in the Raft log. Its number is never reused
// and its fields are only ever added to. Apply answers one of the package's errors or the
// *Function (or *Version, *Policy, *AccessKey) as it is after the change.
//
// Everything that depends on time or chance (ids, timestamps) is in the command: it is made once,
// by the node that proposes it.

// CreateFunction fails with ErrExists. Version.State arrives as Pending.
type CreateFunction struct {
	Account string
	Name    string
	Version Version
	Tags    map[string]string
	// Publish also publishes version 1, under this revision id; "" does not.
	PublishRevisionID string
}

// UpdateCode replaces $LATEST's code. Answers *Version ($LATEST, or the one published).
// ErrNotFound, ErrRevision (IfRevisionID given and stale), ErrBusy (an update is in progress).
type UpdateCode struct {
	Account, Name     string
	Code              Code
	Architectures     []string // nil: unchanged
	RevisionID        string
	At                int64
	IfRevisionID      string
	PublishRevisionID string
}

// UpdateConfig replaces $LATEST's configuration as a whole: the gateway merged it, against the
// revision it read (BaseRevisionID), and tries again when that is no longer the current one
// (ErrStale). Other errors as UpdateCode.
type UpdateConfig struct {
	Account, Name  string
	Config         Config
	BaseRevisionID string
	RevisionID     string
	At             int64
	IfRevisionID   string
}

// Settle moves $LATEST (and versions published from it) from Pending/InProgress to
// Active/Successful, or to Failed with a reason. It does nothing if the incarnation has moved on.
type Settle struct {
	Account, Name, Version string
	Incarnation            string
	RevisionID             string
	Failed                 bool
	Reason, ReasonCode     string
}

// PublishVersion snapshots $LATEST. If nothing changed since the newest version it answers that.
// IfCodeSHA256 (base64 as AWS's CodeSha256): ErrCodeMismatch. ErrRevision, ErrBusy, ErrNotFound.
type PublishVersion struct {
	Account, Name string
	Description   *string
	RevisionID    string
	At            int64
	IfCodeSHA256  string
	IfRevisionID  string
}

// DeleteFunction removes the function, or only one published version when Version is given:
// ErrAliased when aliases name it.
type DeleteFunction struct {
	Account, Name, Version string
}

// PutConcurrency sets (or, with nil, removes) the reserved concurrency. ErrUnreserved when the
// account would keep less than MinUnreserved unreserved.
type PutConcurrency struct {
	Account, Name string
	Reserved      *int
	RevisionID    string
}

// AddPermission appends a statement. ErrStatementExists, ErrRevision, ErrNotFound.
type AddPermission struct {
	Account, Name, Qualifier string
	Statement                Statement
	RevisionID               string
	IfRevisionID             string
}

// RemovePermission removes one. ErrStatementNotFound, ErrRevision, ErrNotFound.
type RemovePermission struct {
	Account, Name, Qualifier, StatementID string
	RevisionID                            string
	IfRevisionID                          string
}

// Tag adds or replaces tags; Untag removes. ErrTooManyTags.
type Tag struct {
	Account, Name string
	Tags          map[string]string
	RevisionID    string
}

type Untag struct {
	Account, Name string
	Keys          []string
	RevisionID    string
}

// PutAccessKey adds a key, or, with Replace, puts it in the place of one of the same id. ErrExists,
// ErrTooManyKeys.
type PutAccessKey struct {
	Key     AccessKey
	Replace bool
}

// DeleteAccessKey revokes a key. With an Account it must be that account's. ErrNotFound.
type DeleteAccessKey struct {
	Account, ID string
}
