package instance

// State is where an instance is in its life. What is allowed stands in one table; everything else
// is refused.
type State uint8

const (
	// Starting: the process runs its init and has not asked for an event yet.
	Starting State = iota
	// Idle: the runtime waits for an event; Invoke may be called.
	Idle
	// Busy: an event was given to Invoke and has no answer yet.
	Busy
	// Answering: one connection is sending the answer's body. No other may answer this event.
	Answering
	// Settled: the event has come to its end and the runtime has not asked for the next one.
	Settled
	// Ending: the end was ordered, or seen; processes may still be there.
	Ending
	// Ended: every process is gone.
	Ended

	states = int(Ended) + 1
)

// steps[from] holds a bit for each state that may follow.
var steps = [states]uint16{
	Starting:  to(Idle, Ending, Ended),
	Idle:      to(Busy, Ending, Ended),
	Busy:      to(Answering, Ending, Ended),
	Answering: to(Busy, Settled, Ending, Ended),
	Settled:   to(Idle, Ending, Ended),
	Ending:    to(Ended),
	Ended:     to(),
}

func to(next ...State) (bits uint16) {
	for _, s := range next {
		bits |= 1 << s
	}
	return bits
}

// May says whether an instance in state s may go to next.
func (s State) May(next State) bool {
	return int(s) < states && steps[s]&(1<<next) != 0
}

// String is the state's own name, as logs and error bodies carry it.
func (s State) String() string {
	if int(s) >= states {
		return "unknown"
	}
	return [states]string{"starting", "idle", "busy", "answering", "settled", "ending", "ended"}[s]
}

// Public is the state as `doze ps` shows it: starting, idle or busy. An instance that is between
// two events or ending cannot take a call, so it is busy.
func (s State) Public() string {
	switch s {
	case Starting, Idle:
		return s.String()
	default:
		return Busy.String()
	}
}
