package bus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// CallID is the request id of an invocation: the 16 bytes of a UUID.
type CallID [16]byte

// Call is one invocation on its way to an instance.
type Call struct {
	ID         CallID
	InvokedARN string
	TraceID    string
	// ClientContext is JSON, nil for none.
	ClientContext []byte
	// Tail asks for the end of the log with the answer.
	Tail bool
	// Body is the event, as its sender wrote it. Empty in a Delivery until granted when it was too
	// big to queue.
	Body []byte
}

// Answer is what came of a call.
type Answer struct {
	// Fault is set when the platform could not run the call or lost it; then nothing else is.
	Fault *Fault
	// FunctionError is "" or "Unhandled".
	FunctionError string
	Outcome       uint8
	// Cold says that the call waited for an instance to start.
	Cold bool
	Phases
	Instance, Worker string
	LogTail          []byte
	Payload          []byte
}

// Phases is where the time of a call went, from when it was published to the end of its handler. They
// follow one another; each is what it added.
type Phases struct {
	// Queue is the wait for an instance that was free, or for the turn of one to be started.
	Queue time.Duration
	// Claim is from asking the asker for the call to having all of it, unless other phases hid it.
	Claim time.Duration
	// Mount is making the instance or taking a parked one: memory, code, limits, mounts. Init is from
	// its start to its first request for an event. Both are 0 for a warm call.
	Mount, Init time.Duration
	// Handler is the handler's own time.
	Handler time.Duration
}

// Fault is a platform error. Ran says whether the handler may have seen the event: it decides
// whether a retry is safe.
type Fault struct {
	Code    FaultCode
	Message string
	Ran     bool
	// Left is how long the handler may go on running at most, though nobody hears of it; with Ran only.
	Left time.Duration
}

// FaultCode says what went wrong.
type FaultCode uint8

const (
	// FaultQueueFull: the home's queue takes no more.
	FaultQueueFull FaultCode = iota + 1
	// FaultNoCapacity: nobody took the call in time.
	FaultNoCapacity
	// FaultWorkerLost: the worker that was running the call is gone or silent.
	FaultWorkerLost
	// FaultStart: an instance could not be made, for a reason that is not the function's.
	FaultStart
	// FaultBroker: the broker refused or lost the call.
	FaultBroker
	// FaultNoEgress: the worker has no network that reaches outside, which the function is to have.
	FaultNoEgress
)

func (f *Fault) Error() string { return "bus: " + f.Message }

// Messages between askers and slots begin with one of these.
const (
	kindClaim    byte = 'c' // worker → asker: may I run this?
	kindGrant    byte = 'g' // asker → worker: yes
	kindRefuse   byte = 'r' // asker → worker: no (answered, moved or given up)
	kindStarting byte = 's' // worker → asker: an instance is being started for this call
	kindAnswer   byte = 'a' // worker → asker: the answer, or its head when chunks follow
	kindChunk    byte = 'b' // either way: a piece of a body
	kindCredit   byte = 'f' // the receiver of a chunk: send more
)

// maxPhase bounds a measured time: AWS's longest timeout is 15 minutes.
const maxPhase = 24 * time.Hour

const (
	envelopeVersion = 1
	flagTail        = 1 << 0
	flagDeferred    = 1 << 1
	flagCold        = 1 << 2
	flagFault       = 1 << 3
	flagRan         = 1 << 4
)

var errEnvelope = errors.New("bus: malformed message")

// address is where a message of a call goes back to: which asker, and which of its pending calls.
type address struct {
	asker string
	token uint64
}

// appendCall encodes a call for its queue. With deferred the body stays with the asker.
func appendCall(b []byte, from address, call *Call, deferred bool) []byte {
	flags := byte(0)
	if call.Tail {
		flags |= flagTail
	}
	if deferred {
		flags |= flagDeferred
	}
	b = append(b, envelopeVersion, flags)
	b = append(b, call.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, from.token)
	b = appendString(b, from.asker)
	b = appendString(b, call.InvokedARN)
	b = appendString(b, call.TraceID)
	b = appendBytes(b, call.ClientContext)
	if !deferred {
		b = append(b, call.Body...)
	}
	return b
}

// parseCall decodes what appendCall made. The slices point into b.
func parseCall(b []byte) (call Call, from address, deferred bool, err error) {
	r := reader{b: b}
	if r.byte() != envelopeVersion {
		return call, from, false, fmt.Errorf("%w: call of another version", errEnvelope)
	}
	flags := r.byte()
	copy(call.ID[:], r.take(16))
	from.token = r.uint64()
	from.asker = string(r.bytes())
	call.InvokedARN = string(r.bytes())
	call.TraceID = string(r.bytes())
	if cc := r.bytes(); len(cc) > 0 {
		call.ClientContext = cc
	}
	call.Tail = flags&flagTail != 0
	if r.failed {
		return call, from, false, errEnvelope
	}
	call.Body = r.b
	return call, from, flags&flagDeferred != 0, nil
}

// appendHead begins every message about a call that is not the call itself.
func appendHead(b []byte, kind byte, token uint64, id CallID) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint64(b, token)
	return append(b, id[:]...)
}

func parseHead(b []byte) (kind byte, token uint64, id CallID, rest []byte, err error) {
	r := reader{b: b}
	kind, token = r.byte(), r.uint64()
	copy(id[:], r.take(16))
	if r.failed {
		return 0, 0, id, nil, errEnvelope
	}
	return kind, token, id, r.b, nil
}

// appendAnswer encodes an answer. With chunked its payload follows in pieces, total bytes of it.
func appendAnswer(b []byte, token uint64, id CallID, a *Answer, chunked bool) []byte {
	b = appendHead(b, kindAnswer, token, id)
	flags := byte(0)
	if a.Cold {
		flags |= flagCold
	}
	if chunked {
		flags |= flagDeferred
	}
	if a.Fault != nil {
		flags |= flagFault
		if a.Fault.Ran {
			flags |= flagRan
		}
		b = append(b, flags, byte(a.Fault.Code))
		b = appendString(b, a.Worker)
		return append(b, a.Fault.Message...)
	}
	b = append(b, flags, a.Outcome)
	b = appendString(b, a.Worker)
	b = appendString(b, a.Instance)
	b = appendString(b, a.FunctionError)
	for _, d := range [...]time.Duration{a.Queue, a.Claim, a.Mount, a.Init, a.Handler} {
		b = appendDuration(b, d)
	}
	b = appendBytes(b, a.LogTail)
	if chunked {
		return binary.BigEndian.AppendUint64(b, uint64(len(a.Payload)))
	}
	return append(b, a.Payload...)
}

// parseAnswer decodes what follows the head. Payload and LogTail point into b. total is the length
// of the payload that follows in chunks, or -1.
func parseAnswer(b []byte) (a *Answer, total int64, err error) {
	r := reader{b: b}
	flags, code := r.byte(), r.byte()
	a = &Answer{Outcome: code, Cold: flags&flagCold != 0, Worker: string(r.bytes())}
	if flags&flagFault != 0 {
		if r.failed {
			return nil, -1, errEnvelope
		}
		a.Fault = &Fault{Code: FaultCode(code), Message: string(r.b), Ran: flags&flagRan != 0}
		return a, -1, nil
	}
	a.Instance = string(r.bytes())
	a.FunctionError = string(r.bytes())
	for _, d := range [...]*time.Duration{&a.Queue, &a.Claim, &a.Mount, &a.Init, &a.Handler} {
		*d = r.duration()
	}
	if tail := r.bytes(); len(tail) > 0 {
		a.LogTail = tail
	}
	total = -1
	if flags&flagDeferred != 0 {
		total = int64(r.uint64())
	} else {
		a.Payload = r.b
	}
	if r.failed || total > maxBody || total < -1 {
		return nil, -1, errEnvelope
	}
	return a, total, nil
}

func appendDuration(b []byte, d time.Duration) []byte {
	return binary.AppendUvarint(b, uint64(min(max(0, d), maxPhase)))
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBytes(b, s []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// reader takes a message apart; after the first piece that is not there it is failed and gives
// zeros.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed = true
		return nil
	}
	piece := r.b[:n:n]
	r.b = r.b[n:]
	return piece
}

func (r *reader) byte() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if p := r.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// duration reads one that is neither negative nor overflows a sum.
func (r *reader) duration() time.Duration {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > uint64(maxPhase) {
		r.failed = true
		return 0
	}
	r.take(size)
	return time.Duration(n)
}

func (r *reader) bytes() []byte {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > uint64(len(r.b)-size) {
		r.failed = true
		return nil
	}
	r.take(size)
	return r.take(int(n))
}
