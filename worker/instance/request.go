package instance

import (
	"bytes"
	"errors"
)

// Bounds on a request's head. AWS's own runtime clients send a few hundred bytes; the X-Ray cause
// of an error can take many times that.
const (
	maxHeadBytes = 128 << 10
	maxHeaders   = 64
)

// Errors of a request that cannot be read any further. The connection is closed after the answer.
var (
	errMalformed   = errors.New("instance: malformed request")
	errHeadTooBig  = errors.New("instance: request head too large")
	errUnsupported = errors.New("instance: unsupported transfer coding")
	errVersion     = errors.New("instance: unsupported HTTP version")
)

// route is an endpoint of the Runtime API.
type route uint8

const (
	routeUnknown route = iota
	routeNext
	routeResponse
	routeError
	routeInitError
)

// request is the head of one request. Its slices point into the connection's buffer and are valid
// until the next read.
type request struct {
	route route
	// id is the request id in the path of response and error.
	id []byte
	// length is Content-Length; 0 when there is none. Not valid when chunked.
	length    int64
	chunked   bool
	streaming bool // Lambda-Runtime-Function-Response-Mode: streaming
	// expect is set when the client waits for 100 Continue before it sends the body.
	expect bool
	// close is set when the client wants the connection closed after the answer.
	close     bool
	http10    bool
	errorType []byte
}

const apiPrefix = "/2018-06-01/runtime/"

// parse reads one head from the start of b. It returns how many bytes the head took, or 0 when it
// is not complete yet. It is strict where laxness lets two readers disagree about where a request
// ends: bare line feeds, folded headers, two lengths, a length beside a transfer coding.
func (r *request) parse(b []byte) (int, error) {
	skipped := 0
	for bytes.HasPrefix(b, crlf) { // RFC 9112 2.2: empty lines before a request are ignored
		b = b[2:]
		skipped += 2
	}
	end := bytes.Index(b, headEnd)
	if end < 0 {
		if len(b)+skipped > maxHeadBytes {
			return 0, errHeadTooBig
		}
		return 0, nil
	}
	if skipped+end+4 > maxHeadBytes {
		return 0, errHeadTooBig
	}
	*r = request{}
	head := b[:end+2] // every line with its CRLF
	line, rest := cutLine(head)
	if line == nil {
		return 0, errMalformed
	}
	if err := r.requestLine(line); err != nil {
		return 0, err
	}
	hasLength := false
	for n := 0; len(rest) > 0; n++ {
		if n == maxHeaders {
			return 0, errHeadTooBig
		}
		line, rest = cutLine(rest)
		name, value, ok := headerLine(line)
		if !ok {
			return 0, errMalformed
		}
		if err := r.header(name, value, &hasLength); err != nil {
			return 0, err
		}
	}
	if r.chunked && hasLength {
		return 0, errMalformed
	}
	return skipped + end + 4, nil
}

var (
	crlf    = []byte("\r\n")
	headEnd = []byte("\r\n\r\n")
)

// cutLine returns the first line without its CRLF; nil when there is a bare CR or LF in it.
func cutLine(b []byte) (line, rest []byte) {
	n := bytes.IndexByte(b, '\n')
	if n < 1 || b[n-1] != '\r' {
		return nil, nil
	}
	line = b[: n-1 : n-1]
	if bytes.IndexByte(line, '\r') >= 0 {
		return nil, nil
	}
	return line, b[n+1:]
}

func (r *request) requestLine(line []byte) error {
	method, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(method) == 0 || !isToken(method) {
		return errMalformed
	}
	target, version, ok := bytes.Cut(rest, []byte(" "))
	if !ok || len(target) == 0 || target[0] != '/' {
		return errMalformed
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f {
			return errMalformed
		}
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		r.close, r.http10 = true, true
	default:
		if bytes.HasPrefix(version, []byte("HTTP/")) && len(version) <= 10 {
			return errVersion
		}
		return errMalformed
	}
	if q := bytes.IndexByte(target, '?'); q >= 0 {
		target = target[:q]
	}
	r.routeTo(method, target)
	return nil
}

func (r *request) routeTo(method, target []byte) {
	path, ok := bytes.CutPrefix(target, []byte(apiPrefix))
	if !ok {
		return
	}
	post := string(method) == "POST"
	switch {
	case string(path) == "invocation/next" && string(method) == "GET":
		r.route = routeNext
	case string(path) == "init/error" && post:
		r.route = routeInitError
	case post:
		rest, ok := bytes.CutPrefix(path, []byte("invocation/"))
		if !ok {
			return
		}
		id, verb, ok := bytes.Cut(rest, []byte("/"))
		if !ok || len(id) == 0 {
			return
		}
		switch string(verb) {
		case "response":
			r.route, r.id = routeResponse, id
		case "error":
			r.route, r.id = routeError, id
		}
	}
}

// headerLine splits "Name: value"; ok is false for what no HTTP header may be.
func headerLine(line []byte) (name, value []byte, ok bool) {
	name, value, ok = bytes.Cut(line, []byte(":"))
	if !ok || len(name) == 0 || !isToken(name) {
		return nil, nil, false
	}
	value = bytes.Trim(value, " \t")
	for _, c := range value {
		if (c < ' ' && c != '\t') || c == 0x7f {
			return nil, nil, false
		}
	}
	return name, value, true
}

func (r *request) header(name, value []byte, hasLength *bool) error {
	// A switch on length first: most headers of a client are none of these.
	switch len(name) {
	case len("Expect"):
		if equalFold(name, "Expect") {
			if !equalFold(value, "100-continue") {
				return errMalformed
			}
			r.expect = !r.http10 // HTTP/1.0 knows no 100
		}
	case len("Connection"):
		if equalFold(name, "Connection") {
			for part := range bytes.SplitSeq(value, []byte(",")) {
				if equalFold(bytes.Trim(part, " \t"), "close") {
					r.close = true
				}
			}
		}
	case len("Content-Length"):
		if equalFold(name, "Content-Length") {
			n, ok := decimal(value)
			if !ok || (*hasLength && n != r.length) {
				return errMalformed
			}
			r.length, *hasLength = n, true
		}
	case len("Transfer-Encoding"):
		if equalFold(name, "Transfer-Encoding") {
			if r.chunked || !equalFold(value, "chunked") {
				return errUnsupported
			}
			r.chunked = true
		}
	case len("Lambda-Runtime-Function-Error-Type"):
		if equalFold(name, "Lambda-Runtime-Function-Error-Type") {
			r.errorType = value
		}
	case len("Lambda-Runtime-Function-Response-Mode"):
		if equalFold(name, "Lambda-Runtime-Function-Response-Mode") {
			r.streaming = equalFold(value, "streaming")
		}
	}
	return nil
}

// decimal reads digits only: no sign, no space, at most 18 of them, so that it cannot overflow.
func decimal(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range len(s) {
		if lower(b[i]) != lower(s[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// isToken says whether b is an RFC 9110 token, which methods and header names are.
func isToken(b []byte) bool {
	for _, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0:
		default:
			return false
		}
	}
	return true
}
