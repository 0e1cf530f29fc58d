package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	maxRuntimeHead = 16 << 10
	maxRuntimeBody = 8 << 20
)

type runtimeKind uint8

const (
	runtimeNext runtimeKind = iota + 1
	runtimeResponse
	runtimeError
)

// runtimeRequest is one request of a function's client. body is valid until the next read.
type runtimeRequest struct {
	kind runtimeKind
	body []byte
}

// readRuntimeRequest reads one request, whose body may be chunked: aws-lambda-go's is.
func readRuntimeRequest(in *bufio.Reader) (r runtimeRequest, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return r, err
	}
	method, rest, _ := bytes.Cut(line, []byte(" "))
	path, _, ok := bytes.Cut(rest, []byte(" "))
	switch {
	case !ok:
		return r, fmt.Errorf("request line %.60q", line)
	case string(method) == "GET" && bytes.HasSuffix(path, []byte("/invocation/next")):
		r.kind = runtimeNext
	case string(method) == "POST" && bytes.HasSuffix(path, []byte("/response")):
		r.kind = runtimeResponse
	case string(method) == "POST" && bytes.HasSuffix(path, []byte("/error")):
		r.kind = runtimeError
	default:
		return r, fmt.Errorf("unknown request %.60q", line)
	}
	length, chunked, head := 0, false, len(line)
	for {
		if line, err = in.ReadSlice('\n'); err != nil {
			return r, noEOF(err)
		}
		if head += len(line); head > maxRuntimeHead {
			return r, errors.New("request head too long")
		}
		name, value, ok := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(":"))
		if !ok {
			break
		}
		switch {
		case len(name) == 14 && bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil || length < 0 || length > maxRuntimeBody {
				return r, fmt.Errorf("Content-Length %.40q", value)
			}
		case len(name) == 17 && bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		}
	}
	switch {
	case chunked:
		r.body, err = readChunked(in)
	case length > 0 && length <= in.Size():
		if r.body, err = in.Peek(length); err == nil {
			_, err = in.Discard(length)
		}
	case length > 0:
		r.body = make([]byte, length)
		_, err = io.ReadFull(in, r.body)
	}
	return r, noEOF(err)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func readChunked(in *bufio.Reader) ([]byte, error) {
	var body []byte
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		digits, _, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(";"))
		size, err := strconv.ParseUint(string(digits), 16, 31)
		if err != nil || len(body)+int(size) > maxRuntimeBody {
			return nil, fmt.Errorf("chunk size %.40q", digits)
		}
		if size == 0 {
			break
		}
		at := len(body)
		body = append(body, make([]byte, size)...)
		if _, err := io.ReadFull(in, body[at:]); err != nil {
			return nil, err
		}
		if end, err := in.ReadSlice('\n'); err != nil || len(bytes.TrimRight(end, "\r\n")) != 0 {
			return nil, errors.Join(errors.New("chunk end"), err)
		}
	}
	for head := 0; ; { // trailers
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if head += len(line); head > maxRuntimeHead {
			return nil, errors.New("trailers too long")
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return body, nil
		}
	}
}
