package bench

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestParseResponse(t *testing.T) {
	tests := []struct {
		name, in      string
		status        int
		body          string
		rest          string
		functionError bool
		close         bool
	}{
		{name: "length", in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP", status: 200, body: "hello", rest: "HTTP"},
		{name: "lower case", in: "HTTP/1.1 200 OK\r\ncontent-length:5\r\nx-amz-function-error: Unhandled\r\n\r\nhello", status: 200, body: "hello", functionError: true},
		{name: "no body", in: "HTTP/1.1 204 No Content\r\n\r\n", status: 204},
		{name: "close", in: "HTTP/1.1 429 Too Many\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", status: 429, close: true},
		{name: "old", in: "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", status: 200, close: true},
		{name: "chunks", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: x\r\n\r\nrest", status: 200, body: "hello", rest: "rest"},
		{name: "no chunk", in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", status: 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			whole := len(tt.in) - len(tt.rest)
			for cut := range whole { // in two reads, cut anywhere
				if _, n, err := parseResponse([]byte(tt.in[:cut])); n != 0 || err != nil {
					t.Fatalf("first %d bytes: took %d, %v", cut, n, err)
				}
			}
			r, n, err := parseResponse([]byte(tt.in))
			if err != nil || n != whole {
				t.Fatalf("took %d of %d, %v", n, whole, err)
			}
			if r.status != tt.status || string(r.body) != tt.body || r.functionError != tt.functionError || r.close != tt.close {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestParseResponseRefuses(t *testing.T) {
	for _, in := range []string{
		"SSH-2.0-OpenSSH\r\n\r\n",
		"HTTP/1.1 abc OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\n",
		strings.Repeat("x", maxResponseHead+1),
	} {
		if _, _, err := parseResponse([]byte(in)); !errors.Is(err, errResponse) {
			t.Errorf("%.60q: %v", in, err)
		}
	}
}

func FuzzParseResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, n, err := parseResponse(bytes.Clone(b))
		if n < 0 || n > len(b) || err != nil && n != 0 || len(whole.body) > len(b) {
			t.Fatalf("took %d of %d, body %d, %v", n, len(b), len(whole.body), err)
		}
		if n == 0 {
			return
		}
		// What follows an answer does not change it.
		again, m, err := parseResponse(append(bytes.Clone(b[:n]), "HTTP/1.1 500"...))
		if err != nil || m != n || again.status != whole.status || !bytes.Equal(again.body, whole.body) {
			t.Fatalf("with more behind it: took %d of %d, %v", m, n, err)
		}
	})
}
