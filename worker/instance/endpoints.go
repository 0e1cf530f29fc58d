package instance

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"
)

// handle answers the request in c.req. It reports false when the connection is to be closed; what
// is owed was written then.
func (c *conn) handle() bool {
	r := &c.req
	closing := r.close
	c.bod.reset(&c.in, r)
	switch r.route {
	case routeNext:
		if !c.rest(false) {
			return false
		}
		c.waiting = true
		return c.i.park(c, closing)
	case routeResponse, routeError:
		c.result(r, &closing)
	case routeInitError:
		c.initError(r, &closing)
	default:
		c.error(statusNotFound, "NotFound", "No such operation of the Runtime API", &closing)
	}
	if closing {
		c.flush()
		c.closeWrite()
	}
	return !closing
}

// rest reads what the request's body has left. Where the client waits for leave to send it, it is
// not asked to, and the connection cannot go on.
func (c *conn) rest(expect bool) bool {
	if expect && !c.bod.ended && len(c.in.pending()) == 0 {
		return false
	}
	return c.bod.discard(c.i.server.attempted) == nil
}

// error owes an error answer and skips the body.
func (c *conn) error(status, errorType, message string, closing *bool) {
	c.i.server.attempted()
	// Answered after the body was skipped: a client that writes first and reads then gets it.
	if !c.rest(c.req.expect) {
		*closing = true
	}
	c.out = appendError(c.out, status, errorType, message, *closing)
}

// body collects the request's body, giving leave to send it where the client waits for that.
func (c *conn) body() ([]byte, error) {
	over := !c.bod.chunked && c.bod.remain > MaxResponseBytes
	if c.req.expect && !c.bod.ended && !over && len(c.in.pending()) == 0 {
		c.out = append(c.out, replyContinue...)
		c.req.expect = false
		if !c.flush() {
			return nil, errMalformed
		}
	}
	return c.bod.collect(MaxResponseBytes)
}

// result takes invocation/{id}/response and invocation/{id}/error.
func (c *conn) result(r *request, closing *bool) {
	i := c.i
	i.mu.Lock()
	current := i.lastID != "" && string(r.id) == i.lastID
	mine := current && i.state == Busy && i.step(Answering)
	state := i.state
	i.mu.Unlock()
	switch {
	case !current:
		c.error(statusBadRequest, "InvalidRequestID", "Invalid request ID", closing)
		return
	case !mine:
		c.invalidTransition(state, "InvocationResponse", closing)
		return
	}
	unread := c.unread()
	outcome := OK
	var errorType string
	if r.route == routeError {
		outcome, errorType = HandlerError, string(r.errorType)
	}
	payload, err := c.body()
	switch {
	case errors.Is(err, errTooLarge):
		i.settle(TooLarge, responseTooLarge(), unread)
		c.error(statusTooLarge, "RequestEntityTooLarge", "Exceeded maximum allowed payload size (6291556 bytes).", closing)
		return
	case err != nil:
		// The body broke off: the event is still open, and the client may answer it again.
		i.mu.Lock()
		if i.state == Answering {
			i.step(Busy)
		}
		i.mu.Unlock()
		*closing = true
		c.out = appendError(c.out, statusBadRequest, "InvalidRequest", err.Error(), true)
		return
	}
	if c.bod.errorType != nil || c.bod.errorBody != nil { // a stream that failed midway
		outcome, errorType, payload = HandlerError, string(c.bod.errorType), decodeErrorBody(c.bod.errorBody)
	}
	if outcome == HandlerError && len(payload) == 0 {
		payload = errorObject(errorType, "")
	}
	if !i.settle(outcome, payload, unread) { // its time ran out while the body came
		c.invalidTransition(i.State(), "InvocationResponse", closing)
		return
	}
	c.out = append(c.out, replyAccepted...)
}

func (c *conn) invalidTransition(from State, to string, closing *bool) {
	c.error(statusForbidden, "InvalidStateTransition",
		"State transition from "+from.String()+" to "+to+" failed for runtime. Error: State transition is not allowed", closing)
}

// settle is answer with turn taken.
func (i *Instance) settle(o Outcome, payload []byte, unread time.Duration) bool {
	i.turn.Lock()
	defer i.turn.Unlock()
	return i.answer(o, payload, unread)
}

// initError takes init/error. Its payload becomes the answer of the call that caused the start.
func (c *conn) initError(r *request, closing *bool) {
	i := c.i
	errorType := string(r.errorType)
	i.mu.Lock()
	mine := i.state == Starting && !i.initFailing
	if mine {
		i.initFailing = true // one body at a time is held in memory
	}
	state := i.state
	i.mu.Unlock()
	if !mine {
		c.invalidTransition(state, "InitError", closing)
		return
	}
	payload, err := c.body()
	switch {
	case errors.Is(err, errTooLarge):
		payload = responseTooLarge()
	case err != nil:
		i.mu.Lock()
		i.initFailing = false
		i.mu.Unlock()
		*closing = true
		c.out = appendError(c.out, statusBadRequest, "InvalidRequest", err.Error(), true)
		return
	}
	if len(payload) == 0 {
		payload = errorObject(errorType, "")
	}
	if errorType == "" {
		errorType = typeOf(payload)
	}
	i.turn.Lock()
	ok := i.failInit(&fault{outcome: InitError, errorType: errorType, status: "error"}, payload, Ending)
	i.turn.Unlock()
	switch {
	case !ok:
		c.invalidTransition(i.State(), "InitError", closing)
		return
	case err != nil:
		c.error(statusTooLarge, "RequestEntityTooLarge", "Exceeded maximum allowed payload size (6291556 bytes).", closing)
	default:
		c.out = append(c.out, replyAccepted...)
	}
	c.flush()
	i.kill()
}

// typeOf reads errorType out of an error object, for the log.
func typeOf(payload []byte) string {
	var object struct{ ErrorType string }
	if json.Unmarshal(payload, &object) != nil || !isToken([]byte(object.ErrorType)) {
		return "Runtime.Unknown"
	}
	return object.ErrorType
}

// decodeErrorBody reads the error object that a failed stream has in its trailer.
func decodeErrorBody(b []byte) []byte {
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	n, err := base64.StdEncoding.Decode(out, b)
	if err != nil {
		return nil
	}
	return out[:n]
}
