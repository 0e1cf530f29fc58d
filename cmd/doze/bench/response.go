package bench

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

const (
	maxResponseHead = 64 << 10
	maxResponseBody = 8 << 20
)

// response is one HTTP/1.1 answer. body points into the buffer that was parsed.
type response struct {
	status        int
	functionError bool
	cold          bool // it waited for an instance to start
	close         bool
	body          []byte
}

var (
	errResponse = errors.New("not an HTTP/1.1 response")
	crlf        = []byte("\r\n")
	headEnd     = []byte("\r\n\r\n")
)

// parseResponse reads one response from the beginning of b. n is how many bytes it took, 0 when b
// does not hold all of it yet. A chunked body is made whole in place.
func parseResponse(b []byte) (r response, n int, err error) {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		if len(b) > maxResponseHead {
			return r, 0, fmt.Errorf("%w: head over %d bytes", errResponse, maxResponseHead)
		}
		return r, 0, nil
	}
	head := b[:end]
	line, rest, _ := bytes.Cut(head, crlf)
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' {
		return r, 0, fmt.Errorf("%w: %.40q", errResponse, line)
	}
	r.status, err = strconv.Atoi(string(line[9:12]))
	if err != nil {
		return r, 0, fmt.Errorf("%w: %.40q", errResponse, line)
	}
	r.close = line[7] == '0'
	length, chunked := 0, false
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, crlf)
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return r, 0, fmt.Errorf("%w: header %.40q", errResponse, line)
		}
		switch len(name) { // few headers matter: look at the length before the letters
		case len("Content-Length"):
			if bytes.EqualFold(name, []byte("Content-Length")) {
				length, err = strconv.Atoi(string(bytes.TrimSpace(value)))
				if err != nil || length < 0 || length > maxResponseBody {
					return r, 0, fmt.Errorf("%w: Content-Length %.40q", errResponse, value)
				}
			}
		case len("Transfer-Encoding"):
			chunked = chunked || bytes.EqualFold(name, []byte("Transfer-Encoding")) && bytes.EqualFold(bytes.TrimSpace(value), []byte("chunked"))
		case len("X-Amz-Function-Error"):
			r.functionError = r.functionError || bytes.EqualFold(name, []byte("X-Amz-Function-Error"))
		case len("X-Doze-Cold"):
			r.cold = r.cold || bytes.EqualFold(name, []byte("X-Doze-Cold")) && bytes.EqualFold(bytes.TrimSpace(value), []byte("true"))
		case len("Connection"):
			r.close = r.close || bytes.EqualFold(name, []byte("Connection")) && bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
	start := end + len(headEnd)
	if r.status == 204 || r.status == 304 {
		return r, start, nil
	}
	if chunked {
		body, n, err := joinChunks(b[start:])
		if err != nil || n == 0 {
			return r, 0, err
		}
		r.body = body
		return r, start + n, nil
	}
	if len(b)-start < length {
		return r, 0, nil
	}
	r.body = b[start : start+length]
	return r, start + length, nil
}

// joinChunks returns a chunked body in one piece, and how many bytes it took; 0 when not all of it
// is there. It moves bytes only when the whole body is there, because a body that comes in several
// reads is looked at more than once.
func joinChunks(b []byte) (body []byte, n int, err error) {
	if _, n, err = scanChunks(b, false); err != nil || n == 0 {
		return nil, 0, err
	}
	length, n, err := scanChunks(b, true)
	return b[:length], n, err
}

// scanChunks walks over a chunked body, and with move pushes its chunks together at the beginning.
func scanChunks(b []byte, move bool) (length, n int, err error) {
	at := 0
	for {
		line, _, ok := bytes.Cut(b[at:], crlf)
		if !ok {
			if len(b)-at > 4096 {
				return 0, 0, fmt.Errorf("%w: chunk size", errResponse)
			}
			return 0, 0, nil
		}
		at += len(line) + 2
		digits, _, _ := bytes.Cut(line, []byte(";"))
		parsed, err := strconv.ParseUint(string(bytes.TrimSpace(digits)), 16, 31)
		size := int(parsed)
		if err != nil || length+size > maxResponseBody {
			return 0, 0, fmt.Errorf("%w: chunk size %.40q", errResponse, digits)
		}
		if size == 0 {
			break
		}
		if len(b)-at < size+2 {
			return 0, 0, nil
		}
		if !bytes.HasPrefix(b[at+size:], crlf) {
			return 0, 0, fmt.Errorf("%w: chunk end", errResponse)
		}
		if move {
			copy(b[length:], b[at:at+size])
		}
		length += size
		at += size + 2
	}
	for { // trailers, then an empty line
		line, _, ok := bytes.Cut(b[at:], crlf)
		if !ok {
			if len(b)-at > maxResponseHead {
				return 0, 0, fmt.Errorf("%w: trailers over %d bytes", errResponse, maxResponseHead)
			}
			return 0, 0, nil
		}
		at += len(line) + 2
		if len(line) == 0 {
			return length, at, nil
		}
	}
}
