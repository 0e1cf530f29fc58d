package delivery

import (
	"math"
	"time"
)

const (
	// A lane that was throttled pauses, from laneRest doubling to laneRestMax while it goes on.
	laneRest    = 100 * time.Millisecond
	laneRestMax = 5 * time.Second
	// An event without room in its lane is given back for putOffMin at least, doubled with each
	// time that it came in vain, so that what waits long costs little, and at most for putOffMax.
	putOffMin = 250 * time.Millisecond
	putOffMax = time.Minute
	// serviceGuess is how long an attempt is taken to last before one has been seen.
	serviceGuess = 10 * time.Millisecond
)

// laneKey is whose events a lane holds.
type laneKey struct{ account, function string }

// lane holds the events of one function that are in memory, so that a function that is slow, fails
// or is throttled fills its own lane and no other's. The poller's mutex guards it.
//
// How much a lane may hold is a moving bound: as much as is free in the whole poller. One busy
// function gets half of everything, n of them 1/(n+1) each, and there is always something free for
// one that was quiet. What does not fit goes back to the store for a while.
type lane struct {
	key     laneKey
	queue   []*held
	running int
	bytes   int64 // of queue and running

	// limit is how many may run at once: halved when the call path refuses, one more with each
	// attempt that ran, up to max.
	limit, max int
	rests      int         // pauses without an attempt that ran in between
	resting    *time.Timer // set during a pause

	service time.Duration // moving average of an attempt
	turn    time.Time     // when the next event that is put off is expected to find room
}

func newLane(key laneKey, most int) *lane {
	return &lane{key: key, limit: most, max: most, service: serviceGuess}
}

func (l *lane) held() int { return len(l.queue) + l.running }

// next takes the event that is to run now, nil when there is none or none may.
func (l *lane) next() *held {
	if len(l.queue) == 0 || l.running >= l.limit || l.resting != nil {
		return nil
	}
	h := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	l.running++
	return h
}

// ran learns from an attempt that ran.
func (l *lane) ran(took time.Duration) {
	l.rests = 0
	l.limit = min(l.limit+1, l.max)
	l.service += (took - l.service) / 8
}

// refused learns from a throttle, and returns how long to pause; 0 when it pauses already.
func (l *lane) refused() time.Duration {
	if l.resting != nil {
		return 0
	}
	l.limit = max(l.running/2, 1)
	rest := min(laneRest<<min(l.rests, 10), laneRestMax)
	l.rests++
	return rest
}

// putOff is for how long an event is given back that has no room: about until its turn comes, at
// the lane's rate, and rather too early than too late.
func (l *lane) putOff(now time.Time, deliveries uint64, jitter float64) time.Duration {
	if l.turn.Before(now) {
		l.turn = now
	}
	if l.turn.Sub(now) < time.Hour {
		l.turn = l.turn.Add(l.service / time.Duration(max(l.limit, 1)))
	}
	least := putOffMin << (min(max(deliveries, 1), 16) - 1)
	wait := min(max(l.turn.Sub(now)/2, least), putOffMax)
	// Spread, so that what was put off together does not come together.
	return time.Duration(math.Round(float64(wait) * (0.5 + jitter)))
}
