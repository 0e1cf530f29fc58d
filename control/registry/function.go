// Package registry is the replicated state of functions: what exists, in which versions, with
// which limits, policies and tags; and the access keys that may work with them.
//
// It is pure: time, ids and hashes arrive inside the commands, so that the same log gives
// byte-equal state on every node. It must not know Raft, the network, the disk or the clock, nor
// AWS's wire shapes; the gateway translates.
package registry

// Latest is the qualifier of the unpublished version.
const Latest = "$LATEST"

// Function is one function with all its versions. A *Function that a query returned never
// changes: Apply replaces it.
type Function struct {
	Account string `json:"account"`
	Name    string `json:"name"`
	// Latest is $LATEST; Versions are the published ones, ascending.
	Latest   *Version   `json:"latest"`
	Versions []*Version `json:"versions,omitempty"`
	// Aliases by name.
	Aliases []*Alias `json:"aliases,omitempty"`
	// NextVersion is the number the next publish takes; numbers are never reused.
	NextVersion int `json:"nextVersion"`
	// Reserved is the reserved concurrency, nil for none.
	Reserved *int `json:"reserved,omitempty"`
	// Policies by qualifier; "" is the unqualified one.
	Policies map[string]*Policy `json:"policies,omitempty"`
	// EventInvokes by qualifier; "$LATEST" is spelled out.
	EventInvokes map[string]*EventInvoke `json:"eventInvokes,omitempty"`
	Tags         map[string]string       `json:"tags,omitempty"`
}

// Version is one immutable snapshot of code and configuration, or $LATEST.
type Version struct {
	// Version is "$LATEST" or a number.
	Version string `json:"version"`
	// Incarnation changes whenever an instance must be started anew to see this version as it is:
	// on every change of code or configuration. It is the RevisionID of that change. A published
	// version keeps that of the $LATEST it was made from, so only version and incarnation together
	// name what an instance runs.
	Incarnation string `json:"incarnation"`
	// RevisionID changes on every change of any kind, as AWS's RevisionId.
	RevisionID   string `json:"revisionId"`
	LastModified int64  `json:"lastModified"` // unix milliseconds

	Config Config `json:"config"`
	Code   Code   `json:"code"`

	State            string `json:"state"` // Pending, Active, Failed
	StateReason      string `json:"stateReason,omitempty"`
	StateReasonCode  string `json:"stateReasonCode,omitempty"`
	UpdateStatus     string `json:"updateStatus,omitempty"` // Successful, InProgress, Failed
	UpdateReason     string `json:"updateReason,omitempty"`
	UpdateReasonCode string `json:"updateReasonCode,omitempty"`
}

// Code names a package in the object store.
type Code struct {
	SHA256 string `json:"sha256"` // lower-case hex of the zip
	Size   int64  `json:"size"`   // bytes of the zip
}

// Config is what UpdateFunctionConfiguration can change, defaults filled in.
type Config struct {
	Description   string            `json:"description"`
	Runtime       string            `json:"runtime,omitempty"`
	Role          string            `json:"role"`
	Handler       string            `json:"handler,omitempty"`
	Timeout       int               `json:"timeout"`    // seconds
	MemorySize    int               `json:"memorySize"` // MB
	EphemeralSize int               `json:"ephemeralSize"`
	Environment   map[string]string `json:"environment,omitempty"`
	HasEnv        bool              `json:"hasEnv,omitempty"` // Environment was given, even if empty
	PackageType   string            `json:"packageType"`
	Architectures []string          `json:"architectures"`
	TracingMode   string            `json:"tracingMode"`
	SnapStart     string            `json:"snapStart"` // ApplyOn
	LogFormat     string            `json:"logFormat"`
	LogGroup      string            `json:"logGroup"`
	AppLogLevel   string            `json:"appLogLevel,omitempty"`
	SysLogLevel   string            `json:"sysLogLevel,omitempty"`
	DeadLetterARN string            `json:"deadLetterArn,omitempty"`
	KMSKeyARN     string            `json:"kmsKeyArn,omitempty"`
	Layers        []string          `json:"layers,omitempty"`
	Network       string            `json:"network,omitempty"` // none, egress, or "" for the platform's default
	// Echo holds members that Doze stores and answers without acting on them (VpcConfig,
	// ImageConfig, FileSystemConfigs, ...): serialised doze.v1 messages by member name.
	Echo map[string][]byte `json:"echo,omitempty"`
}

// Egress tells whether the function reaches outside, where that is the platform's default.
func (c *Config) Egress(byDefault bool) bool {
	return c.Network == "egress" || c.Network == "" && byDefault
}

// Policy is a resource policy: its statements in the order they were added.
type Policy struct {
	RevisionID string      `json:"revisionId"`
	Statements []Statement `json:"statements"`
}

// Statement is one statement of a policy: its id and its JSON as AWS writes it.
type Statement struct {
	ID   string `json:"id"`
	JSON string `json:"json"`
}
