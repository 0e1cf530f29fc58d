package registry

// Error is why a command or a name was refused. It is part of the replicated state's answer, so it
// must survive the way from the node that applied the command to the one that asked: Code is
// stable and never reused for another meaning, Detail is for people and may change.
type Error struct {
	Code   string `json:"code"`
	Detail string `json:"detail,omitempty"`
}

// Error says what was refused, for logs. AWS's texts are the gateway's.
func (e *Error) Error() string {
	if e.Detail == "" {
		return "registry: " + e.Code
	}
	return "registry: " + e.Code + ": " + e.Detail
}

// Is makes errors.Is(err, ErrNotFound) true for every error of that code, whatever its detail and
// whichever node it was made on.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Detail == "" || t.Detail == e.Detail)
}

// with is the same error with a detail.
func (e *Error) with(detail string) *Error { return &Error{Code: e.Code, Detail: detail} }

// What Apply and ParseFunctionName answer. Compare with errors.Is.
var (
	// ErrNotFound: no such function, no such version of it, or no such access key.
	ErrNotFound = &Error{Code: "NotFound"}
	// ErrExists: the account already has a function of that name, or there is a key of that id.
	ErrExists = &Error{Code: "Exists"}
	// ErrRevision: the caller's RevisionId is not the current one (AWS: 412).
	ErrRevision = &Error{Code: "Revision"}
	// ErrBusy: $LATEST is Pending or has an update InProgress (AWS: 409).
	ErrBusy = &Error{Code: "Busy"}
	// ErrStale: the gateway merged against a configuration that is no longer current; read again
	// and retry. Never shown to a client.
	ErrStale = &Error{Code: "Stale"}
	// ErrCodeMismatch: PublishVersion's CodeSha256 is not $LATEST's.
	ErrCodeMismatch = &Error{Code: "CodeMismatch"}
	// ErrUnreserved: the account would keep less than MinUnreserved.
	ErrUnreserved = &Error{Code: "Unreserved"}
	// ErrStatementExists: the policy already has a statement of that id.
	ErrStatementExists = &Error{Code: "StatementExists"}
	// ErrStatementNotFound: no policy, or no statement of that id in it.
	ErrStatementNotFound = &Error{Code: "StatementNotFound"}
	// ErrPolicyTooLong: the policy would pass MaxPolicyBytes.
	ErrPolicyTooLong = &Error{Code: "PolicyTooLong"}
	// ErrTooManyTags: the function would have more than MaxTags.
	ErrTooManyTags = &Error{Code: "TooManyTags"}
	// ErrTooManyKeys: there would be more than MaxKeys access keys.
	ErrTooManyKeys = &Error{Code: "TooManyKeys"}
	// ErrLatest: the operation is not possible on $LATEST (deleting it alone, a policy of it).
	ErrLatest = &Error{Code: "Latest"}
	// ErrVersionNotFound: an alias names a version that the function does not have.
	ErrVersionNotFound = &Error{Code: "VersionNotFound"}
	// ErrAliasExists: the function already has an alias of that name.
	ErrAliasExists = &Error{Code: "AliasExists"}
	// ErrAliasNotFound: the function has no such alias.
	ErrAliasNotFound = &Error{Code: "AliasNotFound"}
	// ErrAliasLatest: an alias of two versions where one is $LATEST.
	ErrAliasLatest = &Error{Code: "AliasLatest"}
	// ErrAliasTwice: an alias of two versions that are the same.
	ErrAliasTwice = &Error{Code: "AliasTwice"}
	// ErrAliased: the version cannot be deleted because aliases name it.
	ErrAliased = &Error{Code: "Aliased"}
	// ErrNoEventInvoke: the qualifier has no EventInvoke.
	ErrNoEventInvoke = &Error{Code: "NoEventInvoke"}
	// ErrName: not a function name, or not one of the forms of a FunctionName.
	ErrName = &Error{Code: "Name"}
	// ErrInvalid: a command that no correct gateway sends.
	ErrInvalid = &Error{Code: "Invalid"}
)
