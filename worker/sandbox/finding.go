package sandbox

// Finding is what one look at this machine has found.
type Finding struct {
	// Name is what was looked at, in a few words.
	Name  string `json:"name"`
	State State  `json:"state"`
	// Found is what there is: a version, a number, an error.
	Found string `json:"found"`
	// Means is what follows from it for functions, and Fix how to get what is missing; "" when all is there.
	Means string `json:"means,omitempty"`
	Fix   string `json:"fix,omitempty"`
	// Needed says that nothing runs in this sandbox while it is missing.
	Needed bool `json:"needed,omitempty"`
}

// State is how good a Finding is.
type State string

// States of a Finding.
const (
	OK       State = "ok"
	Degraded State = "degraded"
	Missing  State = "missing"
)
