package sigv4

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	suiteSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	emptyHash   = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

var suiteTime = time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)

// Requests of AWS's Signature Version 4 test suite, of 2015-08-30 12:36:00 UTC, for us-east-1 and
// "service": method, target, further headers, and the signature of its answer sheet.
var suite = []struct {
	name, method, target string
	header               [][2]string
	signed, signature    string
}{
	{"get-vanilla", "GET", "/", nil, "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{"post-vanilla", "POST", "/", nil, "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
	{"post-header-key-sort", "POST", "/", [][2]string{{"My-Header1", "value1"}}, "host;my-header1;x-amz-date", "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
	{"get-header-key-duplicate", "GET", "/", [][2]string{{"My-Header1", "value2"}, {"My-Header1", "value2"}, {"My-Header1", "value1"}}, "host;my-header1;x-amz-date", "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
	{"get-header-value-order", "GET", "/", [][2]string{{"My-Header1", "value4"}, {"My-Header1", "value1"}, {"My-Header1", "value3"}, {"My-Header1", "value2"}}, "host;my-header1;x-amz-date", "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
	{"get-header-value-trim", "GET", "/", [][2]string{{"My-Header1", " value1"}, {"My-Header2", ` "a   b   c"`}}, "host;my-header1;my-header2;x-amz-date", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
	{"get-relative-relative-normalized", "GET", "/example1/example2/../..", nil, "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{"get-slash-pointless-dot-normalized", "GET", "/./example", nil, "host;x-amz-date", "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5"},
	{"get-slashes-normalized", "GET", "//example//", nil, "host;x-amz-date", "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"},
	{"get-slashes-unnormalized", "GET", "//example//", nil, "host;x-amz-date", "87cca117541a147f6df867677d98a7d80dff226d2bfca9e4ffa899665623c7e5"},
	{"get-space", "GET", "/example space/", nil, "host;x-amz-date", "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"},
	{"get-utf8", "GET", "/ሴ", nil, "host;x-amz-date", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
	{"get-vanilla-empty-query-key", "GET", "/?Param1=value1", nil, "host;x-amz-date", "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"},
	{"get-vanilla-query-order-key-case", "GET", "/?Param2=value2&Param1=value1", nil, "host;x-amz-date", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
	{"get-vanilla-query-order-encoded", "GET", "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1", nil, "host;x-amz-date", "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"},
	{"get-vanilla-query-unreserved", "GET", "/?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", nil, "host;x-amz-date", "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"},
	{"get-vanilla-utf8-query", "GET", "/?ሴ=bar", nil, "host;x-amz-date", "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
	{"get-vanilla-query, presigned", "GET", "/?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fservice%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-SignedHeaders=host&X-Amz-Expires=3600&X-Amz-Signature=e93c787ed7f371d5c6b165c1b38ede9550f4dce4144713e844b25b7192d3865d", nil, "", ""},
	{"get-unreserved, presigned", "GET", "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fservice%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-SignedHeaders=host&X-Amz-Expires=3600&X-Amz-Signature=95968482db1b9e0fadef6efc1bd24689f77c77d9ef56919c96a28cc92e0d6005", nil, "", ""},
}

func TestSuite(t *testing.T) {
	key := DeriveKey(suiteSecret, "20150830", "us-east-1", "service")
	for _, c := range suite {
		t.Run(c.name, func(t *testing.T) {
			path, query, _ := strings.Cut(c.target, "?")
			r := &Request{Method: c.method, Path: path, RawQuery: query, Host: "example.amazonaws.com", Header: http.Header{}}
			for _, h := range c.header {
				r.Header.Add(h[0], h[1])
			}
			if c.signature != "" {
				r.Header.Set("X-Amz-Date", "20150830T123600Z")
				r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="+c.signed+", Signature="+c.signature)
			}
			s, err := Read(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.Check(suiteTime.Add(time.Minute), "us-east-1", "service"), s.Verify(r, &key, emptyHash)); err != nil {
				t.Fatal(err)
			}
			if s.KeyID != "AKIDEXAMPLE" {
				t.Errorf("key %q", s.KeyID)
			}
			// Anything else does not hold.
			for what, change := range map[string]func(r *Request, hash *string){
				"method": func(r *Request, _ *string) { r.Method = "PUT" },
				"path":   func(r *Request, _ *string) { r.Path += "x" },
				"query":  func(r *Request, _ *string) { r.RawQuery += "&x=1" },
				"host":   func(r *Request, _ *string) { r.Host = "example.com" },
				"body":   func(_ *Request, hash *string) { *hash = UnsignedPayload },
			} {
				other, hash := *r, emptyHash
				change(&other, &hash)
				if err := s.Verify(&other, &key, hash); !errors.Is(err, ErrMismatch) {
					t.Errorf("another %s: %v", what, err)
				}
			}
			wrong := DeriveKey("x", "20150830", "us-east-1", "service")
			if err := s.Verify(r, &wrong, emptyHash); !errors.Is(err, ErrMismatch) {
				t.Errorf("another secret: %v", err)
			}
		})
	}
}

func TestDeriveKey(t *testing.T) {
	// The example of AWS's documentation.
	key := DeriveKey(suiteSecret, "20150830", "us-east-1", "iam")
	if got := hex.EncodeToString(key[:]); got != "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9" {
		t.Error(got)
	}
}

func TestWindow(t *testing.T) {
	s := Signature{Region: "r", Service: "s", at: suiteTime, stamp: "20150830T123600Z"}
	presigned := s
	presigned.presigned, presigned.expires = true, time.Hour
	for _, c := range []struct {
		s     Signature
		after time.Duration
		want  string
	}{
		{s, 0, ""},
		{s, Window, ""},
		{s, Window + time.Second, "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T125101Z - 15 min.)"},
		{s, -Window, ""},
		{s, -Window - time.Second, "Signature not yet current: 20150830T123600Z is still later than 20150830T123559Z (20150830T122059Z + 15 min.)"},
		{presigned, time.Hour, ""},
		{presigned, time.Hour + time.Second, "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T133601Z - 3600 sec.)"},
		{presigned, -Window - time.Second, "Signature not yet current: 20150830T123600Z is still later than 20150830T123559Z (20150830T122059Z + 15 min.)"},
	} {
		err := c.s.Check(suiteTime.Add(c.after), "r", "s")
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.(*Error).Message != c.want || err.(*Error).Kind != Invalid) {
			t.Errorf("after %v: %v, want %q", c.after, err, c.want)
		}
	}
	if err := s.Check(suiteTime, "other", "s"); err == nil || !strings.Contains(err.Error(), "valid region") {
		t.Error(err)
	}
	if err := s.Check(suiteTime, "r", "lambda"); err == nil || !strings.Contains(err.Error(), "correct service: 'lambda'") {
		t.Error(err)
	}
}

func TestReadRefuses(t *testing.T) {
	const good = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
	const query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A%2F20150830%2Fus-east-1%2Fservice%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-SignedHeaders=host&X-Amz-Signature=e93c787ed7f371d5c6b165c1b38ede9550f4dce4144713e844b25b7192d3865d"
	for _, c := range []struct {
		name, authorization, date, query string
		header                           [2]string
		kind                             Kind
		message                          string
	}{
		{name: "nothing", kind: Missing, message: "Missing Authentication Token"},
		{name: "another scheme", authorization: "Bearer x", date: "20150830T123600Z", kind: Incomplete, message: "requires 'Credential' parameter. Authorization header requires 'Signature' parameter."},
		{name: "no parts", authorization: "AWS4-HMAC-SHA256", kind: Incomplete, message: "'X-Amz-Date' or a 'Date' header. Authorization=AWS4-HMAC-SHA256"},
		{name: "not pairs", authorization: "AWS4-HMAC-SHA256 abc", date: "20150830T123600Z", kind: Incomplete, message: "'abc' not a valid key=value pair"},
		{name: "no date", authorization: good, kind: Incomplete, message: "requires existence of either"},
		{name: "odd date", authorization: good, date: "2015-08-30", kind: Incomplete, message: "Got '2015-08-30'"},
		{name: "date of another day", authorization: good, date: "20150831T123600Z", kind: Invalid, message: "'20150830' != '20150831', from '20150831T123600Z'"},
		{name: "short scope", authorization: strings.Replace(good, "/service", "", 1), date: "20150830T123600Z", kind: Incomplete, message: "exactly 5 slash-delimited"},
		{name: "long scope", authorization: strings.Replace(good, "/service", "/service/more", 1), date: "20150830T123600Z", kind: Incomplete, message: "exactly 5 slash-delimited"},
		{name: "other end", authorization: strings.Replace(good, "aws4_request", "aws5_request", 1), date: "20150830T123600Z", kind: Invalid, message: "valid terminator: 'aws4_request', not 'aws5_request'"},
		{name: "short signature", authorization: good[:len(good)-2], date: "20150830T123600Z", kind: Invalid, message: "does not match"},
		{name: "odd signature", authorization: good[:len(good)-1] + "g", date: "20150830T123600Z", kind: Invalid, message: "does not match"},
		{name: "host not signed", authorization: strings.Replace(good, "host;", "", 1), date: "20150830T123600Z", kind: Invalid, message: "'Host' or ':authority' must be a 'SignedHeader'"},
		{name: "header put in on the way", authorization: good, date: "20150830T123600Z", header: [2]string{"X-Amz-Invocation-Type", "Event"}, kind: Invalid, message: "'X-Amz-Invocation-Type' must be a 'SignedHeader'"},
		{name: "many headers", authorization: strings.Replace(good, "host;", "host"+strings.Repeat(";a", 100)+";", 1), date: "20150830T123600Z", kind: Incomplete, message: "More than 64"},
		{name: "query without date", query: strings.Replace(query, "X-Amz-Date", "X-Amz-Dat", 1), kind: Incomplete, message: "must include 'X-Amz-Date'"},
		{name: "query with other algorithm", query: strings.Replace(query, "SHA256", "SHA1", 1), kind: Incomplete, message: "Unsupported AWS 'algorithm': 'AWS4-HMAC-SHA1'"},
		{name: "query twice", query: query + "&X-Amz-Credential=B", kind: Incomplete, message: "must not be repeated"},
		{name: "query for ever", query: query + "&X-Amz-Expires=604801", kind: Incomplete, message: "between 1 and 604800"},
		{name: "query for never", query: query + "&X-Amz-Expires=0", kind: Incomplete, message: "between 1 and 604800"},
		{name: "query malformed", query: query + "&%zz=", kind: Incomplete, message: "malformed"},
	} {
		r := &Request{Method: "GET", Path: "/", RawQuery: c.query, Host: "h", Header: http.Header{}}
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		if c.date != "" {
			r.Header.Set("X-Amz-Date", c.date)
		}
		if c.header[0] != "" {
			r.Header.Set(c.header[0], c.header[1])
		}
		_, err := Read(r)
		var e *Error
		if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(e.Message, c.message) {
			t.Errorf("%s: %v, want kind %d and %q", c.name, err, c.kind, c.message)
		}
	}
	for _, name := range []string{"Authorization", "X-Amz-Date", "X-Amz-Content-Sha256"} {
		r := &Request{Header: http.Header{"Authorization": {good}, "X-Amz-Date": {"20150830T123600Z"}}}
		r.Header[name] = []string{good, good}
		if _, err := Read(r); err == nil || !strings.Contains(err.Error(), "more than one") {
			t.Errorf("two of %s: %v", name, err)
		}
	}
}

// A Date header stands in for X-Amz-Date.
func TestDateHeader(t *testing.T) {
	r := &Request{Header: http.Header{"Date": {"Sun, 30 Aug 2015 12:36:00 GMT"}, "Authorization": {
		"AWS4-HMAC-SHA256 Credential=A/20150830/us-east-1/service/aws4_request, SignedHeaders=date;host, Signature=" + strings.Repeat("0", 64)}}}
	if s, err := Read(r); err != nil || !s.at.Equal(suiteTime) || s.stamp != "20150830T123600Z" {
		t.Errorf("%+v, %v", s, err)
	}
}

// received is the request as a server would have it after it went over the wire.
func received(r *http.Request) (*Request, error) {
	var got *Request
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = &Request{Method: r.Method, Path: r.URL.EscapedPath(), RawQuery: r.URL.RawQuery, Host: r.Host, Header: r.Header}
	}))
	defer server.Close()
	target, err := url.Parse(server.URL)
	if err != nil {
		return nil, err
	}
	sent := r.Clone(r.Context())
	sent.URL.Scheme, sent.URL.Host, sent.RequestURI = "http", target.Host, ""
	sent.Host = r.URL.Host
	if r.Host != "" {
		sent.Host = r.Host
	}
	answer, err := http.DefaultClient.Do(sent)
	if err != nil {
		return nil, err
	}
	return got, answer.Body.Close()
}

// Whatever the SDK signs, of random requests, is verified after it went through a real server.
func TestAgreesWithTheSDK(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	alphabet := []rune("abzAZ09-._~ /:$%+=&?é漢;,'\"()")
	text := func(n int) string {
		out := make([]rune, random.IntN(n))
		for i := range out {
			out[i] = alphabet[random.IntN(len(alphabet))]
		}
		return string(out)
	}
	key := DeriveKey(suiteSecret, "20150830", "eu-west-1", "lambda")
	credentials := aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: suiteSecret}
	for i := range 300 {
		path := "/2015-03-31/functions/" + url.PathEscape("f"+text(12)) + "/invocations"
		query := url.Values{}
		for range random.IntN(4) {
			query.Add("k"+text(5), text(8))
		}
		body := []byte(text(40))
		r, err := http.NewRequest([]string{"POST", "PUT"}[random.IntN(2)], "http://127.0.0.1:9000"+path+"?"+strings.ReplaceAll(query.Encode(), "+", "%20"), bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Invocation-Type", "Event")
		r.Header.Set("X-Amz-Client-Context", fmt.Sprintf("a  b %d   c ", random.IntN(9)))
		sum := sha256.Sum256(body)
		hash := hex.EncodeToString(sum[:])
		if i%2 == 0 {
			err = v4.NewSigner().SignHTTP(t.Context(), credentials, r, hash, "lambda", "eu-west-1", suiteTime)
		} else {
			signer := v4.NewSigner()
			r.Header.Del("X-Amz-Invocation-Type")
			r.Header.Del("X-Amz-Client-Context")
			var uri string
			uri, _, err = signer.PresignHTTP(t.Context(), credentials, r, hash, "lambda", "eu-west-1", suiteTime)
			if err == nil {
				r.URL, err = url.Parse(uri)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := received(r)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Read(got)
		if err != nil {
			t.Fatalf("%d: %v\n%s", i, err, r.URL)
		}
		if err := s.Verify(got, &key, hash); err != nil {
			t.Fatalf("%d: %v\n%s %s\n%v", i, err, r.Method, r.URL, r.Header)
		}
		if err := s.Verify(got, &key, emptyHash); len(body) > 0 && err == nil {
			t.Fatalf("%d: another body is taken", i)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=A/20150830/r/s/aws4_request, SignedHeaders=host;x-amz-date, Signature="+strings.Repeat("0", 64), "20150830T123600Z", "/a//b/../c", "a=b&&c")
	f.Add("", "", "/", "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=A%2F20150830%2Fr%2Fs%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=9&X-Amz-SignedHeaders=host&X-Amz-Signature="+strings.Repeat("0", 64))
	f.Add("AWS4-HMAC-SHA256 =,==,Credential=/////,Signature=,SignedHeaders=;;;", "x", "..", "%")
	key := DeriveKey("s", "d", "r", "s")
	f.Fuzz(func(t *testing.T, authorization, date, path, query string) {
		r := &Request{Method: "POST", Path: path, RawQuery: query, Host: "h", Header: http.Header{"Authorization": {authorization}, "X-Amz-Date": {date}}}
		s, err := Read(r)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Kind == 0 {
				t.Fatalf("%v", err)
			}
			if len(e.Message) > 2000 {
				t.Fatalf("a message of %d bytes", len(e.Message))
			}
			return
		}
		if s.KeyID+s.Date+s.Region+s.Service == "" || strings.Contains(s.KeyID, "/") {
			t.Fatalf("%+v", s)
		}
		if err := s.Verify(r, &key, emptyHash); err == nil {
			t.Fatal("a signature was guessed")
		}
	})
}

func benchRequest(b testing.TB) (*Request, *SigningKey, string) {
	body := []byte(`{"name":"world"}`)
	r := httptest.NewRequest("POST", "http://127.0.0.1:9000/2015-03-31/functions/hello/invocations", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/octet-stream")
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	if err := v4.NewSigner().SignHTTP(b.Context(), aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: suiteSecret}, r, hash, "lambda", "us-east-1", suiteTime); err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Content-Length", "16") // as a server's request has it
	key := DeriveKey(suiteSecret, "20150830", "us-east-1", "lambda")
	return &Request{Method: r.Method, Path: r.URL.EscapedPath(), Host: r.Host, Header: r.Header}, &key, hash
}

func BenchmarkVerify(b *testing.B) {
	r, key, hash := benchRequest(b)
	b.ReportAllocs()
	for b.Loop() {
		s, err := Read(r)
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(s.Check(suiteTime, "us-east-1", "lambda"), s.Verify(r, key, hash)); err != nil {
			b.Fatal(err)
		}
	}
}
