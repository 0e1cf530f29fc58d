package bus

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
)

// Every subject of the call plane is spelled here, once. What a worker sends has its name in the subject, so
// that a certificate can be held to it (permit.go).
const (
	// callShards is the number of call streams on each home. Settling a message walks the consumers
	// of its stream, so that many awake functions are spread over several.
	callShards = 8

	subjectCall   = "c" // c.<shard>.<queue>: a call, stored in the home's call stream
	subjectAsker  = "a" // a.<node>.<asker>.<worker>: claims and answers of one worker
	subjectSlot   = "s" // s.<worker>.<n>: pulled calls, grants and refusals for one slot
	subjectWorker = "w" // w.<worker>.<verb>: requests to one worker
	subjectProbe  = "p" // p.<node>.<asker>.<worker>: a worker's word that it is there
	subjectReply  = "i" // i.<worker>.<n>: a worker's answer to a request
	subjectQueue  = "q" // q.<worker>: to one home, a worker wants to pull from a queue
	subjectPull   = "g" // g.<worker>.<queue>: to one home, a worker's pull (relay.go)
	subjectSettle = "z" // z.<worker>.<ack>: to one home, a worker settles a message (relay.go)
	subjectHint   = "h" // h: to one home, calls wait in a queue of its
	subjectRetire = "x" // x: to every worker, what has been replaced or deleted
	subjectReport = "r" // r.<worker>: a worker's heartbeat
	subjectInUse  = "u" // u: the runtimes that functions have, for all workers
	consumerGroup = "p" // the one priority group of a call queue's consumer
	pullAPI       = "$JS.API.CONSUMER.MSG.NEXT."
)

// QueueID names the call queue of one incarnation. It is a hash, because it stands in every
// subject of every call and because names from outside do not belong in subjects.
type QueueID string

// NewQueueID derives the id from what makes an incarnation: all four, so that new code has a new
// queue and the old one drains. Its first half is the same for all queues of a function.
func NewQueueID(account, function, version, incarnation string) QueueID {
	whose := sha256.Sum256([]byte(account + "\x00" + function))
	which := sha256.Sum256([]byte(strings.Join([]string{account, function, version, incarnation}, "\x00")))
	return QueueID(strings.ToLower(queueEncoding.EncodeToString(append(whose[:10], which[:10]...))))
}

// function is the half that stands for the function: its queues have one home.
func (q QueueID) function() string { return string(q[:len(q)/2]) }

// Function is the half of the id that stands for the function, whatever its version.
func (q QueueID) Function() string { return q.function() }

var queueEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// valid tells whether an id from outside is one.
func (q QueueID) valid() bool {
	if len(q) != queueIDLen {
		return false
	}
	for i := 0; i < len(q); i++ {
		if c := q[i]; !(c >= 'a' && c <= 'z' || c >= '2' && c <= '7') {
			return false
		}
	}
	return true
}

// queueIDLen is of 20 bytes in base32.
const queueIDLen = 32

func (q QueueID) shard() int {
	return int(q[0]+q[1]*31) % callShards
}

func callStream(shard int) string              { return fmt.Sprintf("CALLS_%d", shard) }
func (q QueueID) stream() string               { return callStream(q.shard()) }
func (q QueueID) subject() string              { return fmt.Sprintf("%s.%d.%s", subjectCall, q.shard(), q) }
func (q QueueID) pullTo() string               { return pullAPI + q.stream() + "." + string(q) }
func workerSubject(worker, verb string) string { return subjectWorker + "." + worker + "." + verb }
