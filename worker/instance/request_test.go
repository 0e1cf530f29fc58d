package instance

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const id = "00000000-0000-4000-8000-000000000001"
	for _, c := range []struct {
		name, head string
		want       request
		err        error
		more       bool
	}{
		{"next", getNext, request{route: routeNext}, nil, false},
		{"query", "GET /2018-06-01/runtime/invocation/next?x=1 HTTP/1.1\r\n\r\n", request{route: routeNext}, nil, false},
		{"empty lines before", "\r\n\r\n" + getNext, request{route: routeNext}, nil, false},
		{"HTTP/1.0", "GET /2018-06-01/runtime/invocation/next HTTP/1.0\r\n\r\n", request{route: routeNext, close: true, http10: true}, nil, false},
		{"close", "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nconnection: keep-alive, Close\r\n\r\n", request{route: routeNext, close: true}, nil, false},
		{"response", "POST /2018-06-01/runtime/invocation/" + id + "/response HTTP/1.1\r\nCONTENT-LENGTH: 5\r\n\r\n", request{route: routeResponse, id: []byte(id), length: 5}, nil, false},
		{"same length twice", "POST /2018-06-01/runtime/invocation/" + id + "/response HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", request{route: routeResponse, id: []byte(id), length: 5}, nil, false},
		{"error", "POST /2018-06-01/runtime/invocation/" + id + "/error HTTP/1.1\r\nLambda-Runtime-Function-Error-Type:  A.B \r\n\r\n", request{route: routeError, id: []byte(id), errorType: []byte("A.B")}, nil, false},
		{"stream", "POST /2018-06-01/runtime/invocation/" + id + "/response HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nLambda-Runtime-Function-Response-Mode: streaming\r\n\r\n", request{route: routeResponse, id: []byte(id), chunked: true, streaming: true}, nil, false},
		{"expect", "POST /2018-06-01/runtime/init/error HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n", request{route: routeInitError, expect: true, length: 1}, nil, false},
		{"other", "GET / HTTP/1.1\r\n\r\n", request{}, nil, false},
		{"more verbs", "POST /2018-06-01/runtime/invocation/a/b/response HTTP/1.1\r\n\r\n", request{}, nil, false},
		{"no id", "POST /2018-06-01/runtime/invocation//response HTTP/1.1\r\n\r\n", request{}, nil, false},
		{"half", "GET / HTTP/1.1\r\nHost: x\r\n", request{}, nil, true},
		{"nothing", "", request{}, nil, true},
		{"two lengths", "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", request{}, errMalformed, false},
		{"length and coding", "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", request{}, errMalformed, false},
		{"coding and length", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", request{}, errMalformed, false},
		{"two codings", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", request{}, errUnsupported, false},
		{"signed length", "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", request{}, errMalformed, false},
		{"huge length", "POST / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n", request{}, errMalformed, false},
		{"space before colon", "POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n", request{}, errMalformed, false},
		{"folded", "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", request{}, errMalformed, false},
		{"bare line feed", "GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", request{}, errMalformed, false},
		{"bare return", "GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n", request{}, errMalformed, false},
		{"control", "GET / HTTP/1.1\r\nA: b\x00\r\n\r\n", request{}, errMalformed, false},
		{"no version", "GET /\r\n\r\n", request{}, errMalformed, false},
		{"two spaces", "GET  / HTTP/1.1\r\n\r\n", request{}, errMalformed, false},
		{"absolute form", "GET http://x/ HTTP/1.1\r\n\r\n", request{}, errMalformed, false},
		{"expect something else", "POST / HTTP/1.1\r\nExpect: cake\r\n\r\n", request{}, errMalformed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r request
			n, err := r.parse([]byte(c.head))
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if c.more {
				if n != 0 {
					t.Errorf("took %d of half a head", n)
				}
				return
			}
			if n != len(c.head) {
				t.Errorf("took %d of %d", n, len(c.head))
			}
			if r.route != c.want.route || !bytes.Equal(r.id, c.want.id) || r.length != c.want.length || r.chunked != c.want.chunked ||
				r.streaming != c.want.streaming || r.expect != c.want.expect || r.close != c.want.close || r.http10 != c.want.http10 || !bytes.Equal(r.errorType, c.want.errorType) {
				t.Errorf("got %+v, want %+v", r, c.want)
			}
		})
	}
}

// reader is a connection that gives bytes in pieces and then ends.
type reader struct {
	net.Conn
	b     []byte
	piece int
}

func (r *reader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.piece)], r.b)
	r.b = r.b[n:]
	return n, nil
}

// drive reads requests and their bodies as a connection does, and says what came of it.
func drive(t *testing.T, input_ []byte, piece int) (out []string) {
	in := input{nc: &reader{b: input_, piece: piece}}
	var r request
	for {
		n, err := r.parse(in.pending())
		if err != nil {
			return append(out, "error "+err.Error())
		}
		if n == 0 {
			if in.fill() != nil {
				return append(out, "end")
			}
			if len(in.buf) > 4*maxHeadBytes {
				t.Fatalf("buffer of %d bytes", len(in.buf))
			}
			continue
		}
		head := string(append(append([]byte{byte(r.route)}, r.id...), r.errorType...))
		in.skip(n)
		var b body
		b.reset(&in, &r)
		const limit = 1 << 10
		whole, err := b.collect(limit)
		if len(whole) > limit {
			t.Fatalf("body of %d bytes", len(whole))
		}
		if errors.Is(err, errTooLarge) {
			err = b.discard(func() {})
			whole = []byte("too large")
		}
		if err != nil {
			return append(out, head, "body: "+err.Error())
		}
		out = append(out, head, string(whole), string(b.errorType), string(b.errorBody))
		if len(out) > 4096 {
			return out
		}
	}
}

// However the bytes are cut into segments, the same requests come out, in bounded memory.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		getNext, getNext + getNext,
		post("invocation/a/response", "hello") + getNext,
		"POST /2018-06-01/runtime/invocation/a/response HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nLambda-Runtime-Function-Error-Type: t\r\n\r\n" + getNext,
		post("init/error", strings.Repeat("x", 2000), "Expect: 100-continue"),
		"POST / HTTP/1.1\r\nContent-Length: 999999999999999999\r\n\r\nx",
		"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\nx",
		"GET / HTTP/1.0\r\n\r\n", "\r\n\r\n\r\n", "GET / HTTP/1.1\r\nA: b\n\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4<<10 { // pieces of one byte take quadratic time
			return
		}
		whole := drive(t, b, 1<<20)
		for _, piece := range []int{1, 7} {
			if got := drive(t, b, piece); strings.Join(got, "\x00") != strings.Join(whole, "\x00") {
				t.Fatalf("in pieces of %d: %q, in one: %q", piece, got, whole)
			}
		}
	})
}

func TestAlarmRingsOnceForTheEarliest(t *testing.T) {
	rang := make(chan time.Time, 10)
	var a alarm
	a.fire = func() { rang <- time.Now() }
	start := time.Now()
	a.by(start.Add(time.Hour))
	a.by(start.Add(5 * time.Millisecond))
	a.by(start.Add(time.Minute)) // later: nothing to do
	<-rang
	a.by(start.Add(time.Hour))
	a.close()
	a.by(start)
	if len(rang) != 0 {
		t.Error("rang again")
	}
}
