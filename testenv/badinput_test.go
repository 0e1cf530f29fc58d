package testenv

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// hangLimit is how long any answer may take before the test calls it a hang. The one that has to
// wait for the server's patience with a half-sent request (20 s without a byte) has it twice.
const hangLimit = 20 * time.Second

// rawConn speaks HTTP byte by byte.
type rawConn struct {
	net.Conn
	t *testing.T
}

func (d *Dev) raw(t *testing.T) *rawConn {
	t.Helper()
	conn, err := net.Dial("tcp", d.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(hangLimit)); err != nil {
		t.Fatal(err)
	}
	return &rawConn{conn, t}
}

// send writes what the server may cut short by an answer and a close.
func (c *rawConn) send(text string) { _, _ = io.WriteString(c.Conn, text) }

// answer reads one answer to a request of this verb.
func (c *rawConn) answer(verb string) (*http.Response, []byte) {
	c.t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(c.Conn), &http.Request{Method: verb})
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatalf("half an answer: %v, %s", err, body)
	}
	return response, body
}

// wantFault holds an answer to the shape of AWS's errors: what an SDK parses, and never HTML.
func wantFault(t *testing.T, response *http.Response, body []byte, status int, code, text string) {
	t.Helper()
	var fault struct {
		Type    string
		Message string `json:"message"`
		Upper   string `json:"Message"`
	}
	kind, _, _ := strings.Cut(response.Header.Get("X-Amzn-Errortype"), ":")
	if response.StatusCode != status || kind != code {
		t.Errorf("answer %s, %s, want %d %s: %s", response.Status, kind, status, code, body)
	}
	if len(response.Header.Get("X-Amzn-Requestid")) != 36 {
		t.Errorf("no request id: %v", response.Header)
	}
	if got := response.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	if response.Request != nil && response.Request.Method == http.MethodHead {
		if len(body) != 0 {
			t.Errorf("a body after HEAD: %s", body)
		}
		return
	}
	if bytes.Contains(bytes.ToLower(body), []byte("<html")) || json.Unmarshal(body, &fault) != nil || fault.Message+fault.Upper == "" || !strings.Contains(fault.Message+fault.Upper, text) {
		t.Errorf("body lacks %q: %s", text, body)
	}
}

// Requests that no SDK sends.
func TestBadInput(t *testing.T) {
	t.Parallel() // with the one that waits
	ctx := t.Context()
	d := StartDev(t)
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, "def handler(event, context):\n    return 1\n"))
	const (
		functions = "/2015-03-31/functions"
		invoke    = functions + "/f/invocations"
		configure = functions + "/f/configuration"

		unknown    = "UnknownOperationException"
		validation = "ValidationException"
		shape      = "SerializationException"
		notFound   = "ResourceNotFoundException"
		tooLarge   = "RequestEntityTooLargeException"
		content    = "InvalidRequestContentException"
	)
	request := func(verb, path, body string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: doze\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", verb, path, len(body), body)
	}
	for _, test := range []struct {
		name, verb, path, body string
		status                 int
		code, text             string
	}{
		{"no JSON", "POST", functions, `{"FunctionName":`, 400, shape, ""},
		{"a text for a body", "POST", functions, `hello`, 400, shape, ""},
		{"a list for an object", "POST", functions, `[]`, 400, shape, ""},
		{"two values", "PUT", configure, `{"Timeout":1} {"Timeout":2}`, 400, shape, ""},
		{"not UTF-8", "PUT", configure, "{\"Description\":\"\xff\xfe\"}", 400, shape, ""},
		{"a number for a name", "POST", functions, `{"FunctionName":7}`, 400, shape, "NUMBER_VALUE can not be converted to a String"},
		{"a text for a number", "PUT", configure, `{"Timeout":"10"}`, 400, shape, "STRING_VALUE can not be converted to an Integer"},
		{"a number too large", "PUT", configure, `{"Timeout":99999999999}`, 400, shape, "out of range"},
		{"not base64", "PUT", functions + "/f/code", `{"ZipFile":"***"}`, 400, shape, "base64"},
		{"no zip", "PUT", functions + "/f/code", `{"ZipFile":"aGVsbG8="}`, 400, "InvalidParameterValueException", "zip"},
		{"deep", "PUT", configure, `{"Environment":` + strings.Repeat(`{"a":`, 100000) + strings.Repeat("}", 100000) + `}`, 400, shape, ""},
		{"out of bounds", "PUT", configure, `{"Timeout":901}`, 400, validation, "901"},
		{"members missing", "POST", functions, `{}`, 400, validation, "functionName"},
		{"payload no JSON", "POST", invoke, `{"a":`, 400, content, ""},
		{"payload of stray bytes", "POST", invoke, "\xff\xfe", 400, content, ""},
		{"unknown path", "GET", "/", "", 404, unknown, ""},
		{"unknown path below", "GET", "/2015-03-31/nothing", "", 404, unknown, ""},
		{"unknown date", "GET", "/1999-01-01/functions", "", 404, unknown, ""},
		{"an operation not offered yet", "GET", "/2018-10-31/layers", "", 404, unknown, "ListLayers"},
		{"another verb", "PATCH", functions, "", 404, unknown, "PATCH"},
		{"HEAD", "HEAD", functions, "", 404, unknown, ""},
		{"OPTIONS", "OPTIONS", functions, "", 404, unknown, "OPTIONS"},
		{"OPTIONS *", "OPTIONS", "*", "", 404, unknown, ""},
		{"a form for a GET", "POST", functions + "/f", "", 404, unknown, ""},
		{"an escaped slash", "GET", functions + "/a%2Fb", "", 400, validation, "a/b"},
		{"an escaped climb", "GET", functions + "/..%2F..%2Fetc", "", 400, validation, "../../etc"},
		// The model's pattern of a name to look up has dots, the one of a name to create has not.
		{"a dot", "GET", functions + "/.", "", 404, notFound, "function:."},
		{"two dots", "GET", functions + "/..", "", 404, notFound, "function:.."},
		{"a name with dots", "GET", functions + "/a.b", "", 404, notFound, "function:a.b"},
		{"create with dots", "POST", functions, `{"FunctionName":"a.b","Role":"` + Role + `","Code":{"ZipFile":"aGVsbG8="}}`, 400, validation, "a.b"},
		{"invoke with an escaped slash", "POST", functions + "/a%2Fb/invocations", "{}", 400, validation, ""},
		{"invoke with a zero byte", "POST", functions + "/a%00b/invocations", "{}", 400, validation, ""},
		{"no name", "GET", functions + "//configuration", "", 400, validation, "functionName"},
		{"a name too long", "GET", functions + "/" + strings.Repeat("n", 2000), "", 400, validation, ""},
		{"somebody else's ARN", "GET", functions + "/arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Afunction%3Af", "", 404, notFound, ""},
		{"nobody", "POST", functions + "/nobody/invocations", "{}", 404, notFound, "Function not found"},
		{"nobody, with a trailing slash", "GET", functions + "/nobody/", "", 404, notFound, ""},
		{"a bad escape in the query", "POST", invoke + "?Qualifier=%zz", "{}", 400, validation, ""},
		{"a link to no code", "GET", "/doze/v1/code/" + strings.Repeat("0", 64), "", 403, "AccessDeniedException", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := d.raw(t)
			c.send(request(test.verb, test.path, test.body))
			response, body := c.answer(test.verb)
			wantFault(t, response, body, test.status, test.code, test.text)
		})
	}

	// Refused before it is sent, or when the bound is passed; nobody waits for the rest.
	t.Run("too large by Content-Length", func(t *testing.T) {
		for path, length := range map[string]int64{invoke: 6291457, functions + "/f/policy": 1<<20 + 1, functions: 70167212, invoke + "?Qualifier=1": 1 << 50} {
			c := d.raw(t)
			c.send(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: doze\r\nContent-Length: %d\r\n\r\n", path, length))
			response, body := c.answer("POST")
			wantFault(t, response, body, 413, tooLarge, "Request must be smaller than")
		}
	})
	t.Run("too large by chunks", func(t *testing.T) {
		for _, path := range []string{invoke, functions + "/f/policy"} {
			c := d.raw(t)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				c.send("POST " + path + " HTTP/1.1\r\nHost: doze\r\nTransfer-Encoding: chunked\r\n\r\n")
				chunk := "10000\r\n" + strings.Repeat(" ", 0x10000) + "\r\n"
				for range 7 << 20 / 0x10000 { // and no end
					c.send(chunk)
				}
			}()
			response, body := c.answer("POST")
			wantFault(t, response, body, 413, tooLarge, "Request must be smaller than")
			_ = c.Close()
			<-sent
		}
	})

	t.Run("half sent and closed", func(t *testing.T) {
		for _, path := range []string{invoke, functions} {
			c := d.raw(t)
			c.send("POST " + path + " HTTP/1.1\r\nHost: doze\r\nContent-Length: 100\r\n\r\n{\"half\":")
			if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			response, body := c.answer("POST")
			wantFault(t, response, body, 400, shape, "ended before its Content-Length")
		}
	})
	t.Run("broken chunks", func(t *testing.T) {
		c := d.raw(t)
		c.send("POST " + invoke + " HTTP/1.1\r\nHost: doze\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")
		response, body := c.answer("POST")
		if response.StatusCode/100 != 4 {
			t.Errorf("status %s", response.Status)
		}
		wantFault(t, response, body, response.StatusCode, strings.Split(response.Header.Get("X-Amzn-Errortype"), ":")[0], "")
	})
	t.Run("not HTTP", func(t *testing.T) {
		for _, text := range []string{"hello\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", "GET / HTTP/1.1\r\n\r\n", "POST " + invoke + " HTTP/1.1\r\nHost: doze\r\nContent-Length: -1\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: doze\r\nX: " + strings.Repeat("x", 2<<20)} {
			c := d.raw(t)
			go c.send(text + "\r\n\r\n")
			answer, err := io.ReadAll(c.Conn)
			if bytes.Contains(bytes.ToLower(answer), []byte("<html")) {
				t.Errorf("%.20q: HTML: %s", text, answer)
			}
			if len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 4")) && !bytes.HasPrefix(answer, []byte("HTTP/1.1 505")) {
				t.Errorf("%.20q: answered %s", text, answer)
			}
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				t.Errorf("%.20q: a hang", text)
			}
		}
	})

	// After all of it, one that is as it should be.
	if out := d.Invoke(ctx, "f", "{}"); string(out.Payload) != "1" {
		t.Errorf("answer %s", out.Payload)
	}
	d.Eventually(10*time.Second, "that one call is billed", func() bool {
		n, _ := d.Requests(ctx, "f")
		if n > 1 {
			t.Fatalf("%d calls are billed", n)
		}
		return n == 1
	})
}

// Clients that stop in the middle of a request are told so, and hold nobody else up.
func TestHalfSentRequestsTimeOut(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	d := StartDev(t)
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, "def handler(event, context):\n    return 1\n"))
	var halves sync.WaitGroup
	for n := range 8 {
		c := d.raw(t)
		if err := c.SetDeadline(time.Now().Add(2 * hangLimit)); err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			c.send("POST /2015-03-31/functions/f/invocations HTTP/1.1\r\nHost: doze\r\nContent-Length: 100\r\n\r\n{\"half\":")
		} else {
			c.send("POST /2015-03-31/functions HTTP/1.1\r\nHost: doze\r\nContent-Len")
		}
		halves.Go(func() {
			answer, err := io.ReadAll(c.Conn)
			if err != nil {
				t.Errorf("half %d: %v", n, err)
			}
			if n%2 == 0 && (!bytes.HasPrefix(answer, []byte("HTTP/1.1 408 ")) || !bytes.Contains(answer, []byte("RequestTimeoutException"))) {
				t.Errorf("half %d: answered %q", n, answer)
			}
			if bytes.Contains(answer, []byte("<html")) {
				t.Errorf("half %d: HTML: %s", n, answer)
			}
		})
	}
	if out := d.Invoke(ctx, "f", "{}"); string(out.Payload) != "1" {
		t.Errorf("beside them: %s", out.Payload)
	}
	halves.Wait()
}

// A client that goes while its call runs does not make it run again, nor for free.
func TestClientGoneMidCall(t *testing.T) {
	ctx := t.Context()
	d := StartDev(t)
	d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, `
import time
def handler(event, context):
    print("running")
    time.sleep(event["sleep"])
    return 1
`))
	c := d.raw(t)
	c.send("POST /2015-03-31/functions/f/invocations HTTP/1.1\r\nHost: doze\r\nContent-Length: 11\r\n\r\n{\"sleep\":1}")
	d.Eventually(10*time.Second, "the call runs", func() bool {
		some := d.Instances(ctx, "f")
		return len(some) == 1 && some[0].State == "busy"
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	d.Eventually(10*time.Second, "it is billed, for all of its second", func() bool {
		n, mbMs := d.Requests(ctx, "f")
		return n == 1 && mbMs >= 128*1000
	})
	if out := d.Invoke(ctx, "f", `{"sleep":0}`); string(out.Payload) != "1" {
		t.Errorf("the next call: %s", out.Payload)
	}
	d.Eventually(10*time.Second, "two billed", func() bool { n, _ := d.Requests(ctx, "f"); return n == 2 })
	if some := d.Instances(ctx, "f"); len(some) != 1 || some[0].Calls != 2 {
		t.Errorf("instances %+v", some)
	}
}
