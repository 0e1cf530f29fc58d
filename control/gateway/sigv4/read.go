package sigv4

import (
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Read takes the signature from a request. Its error is an *Error: Missing or Incomplete, or
// Invalid when a header that must be signed is not.
func Read(r *Request) (s Signature, err error) {
	authorization := r.Header["Authorization"]
	switch {
	case len(authorization) == 1 && authorization[0] != "":
		err = s.fromHeader(r, authorization[0])
	case len(authorization) > 1:
		err = incomplete("There is more than one Authorization header.")
	case strings.Contains(r.RawQuery, "X-Amz-Signature="):
		s.presigned = true
		err = s.fromQuery(r)
	default:
		err = &Error{Missing, "Missing Authentication Token"}
	}
	if err != nil {
		return s, err
	}
	if s.PayloadHash, err = single(r.Header, "X-Amz-Content-Sha256"); err != nil {
		return s, err
	}
	if len(r.Header["X-Amz-Security-Token"]) > 0 {
		s.Token = true
	}
	return s, s.covers(r)
}

// fromHeader reads "AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., Signature=...".
func (s *Signature) fromHeader(r *Request, authorization string) error {
	algorithm, rest, _ := strings.Cut(authorization, " ")
	var credential, signature string
	if algorithm == Algorithm {
		for part := range strings.SplitSeq(rest, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			name, value, ok := strings.Cut(part, "=")
			if !ok {
				return incomplete("'%s' not a valid key=value pair (missing equal-sign) in Authorization header.", cut(part))
			}
			switch name {
			case "Credential":
				credential = value
			case "SignedHeaders":
				s.headers = value
			case "Signature":
				signature = value
			}
		}
	}
	stamp, err := single(r.Header, "X-Amz-Date")
	if err != nil {
		return err
	}
	if stamp == "" {
		stamp = dateStamp(r.Header)
	}
	var missing strings.Builder
	for _, need := range [...]struct{ name, value string }{{"Credential", credential}, {"Signature", signature}, {"SignedHeaders", s.headers}} {
		if need.value == "" {
			missing.WriteString("Authorization header requires '" + need.name + "' parameter. ")
		}
	}
	if stamp == "" {
		missing.WriteString("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ")
	}
	if missing.Len() > 0 {
		return incomplete("%sAuthorization=%s", missing.String(), cut(algorithm))
	}
	return s.fill(credential, stamp, signature)
}

// dateStamp is a Date header in the form of X-Amz-Date, "" when there is none that can be read.
func dateStamp(h http.Header) string {
	at, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return ""
	}
	return at.UTC().Format(stampFormat)
}

// fromQuery reads the X-Amz-* parameters of a presigned URL.
func (s *Signature) fromQuery(r *Request) error {
	query, err := url.ParseQuery(r.RawQuery)
	if err != nil {
		return incomplete("The query string is malformed.")
	}
	for _, name := range [...]string{"Algorithm", "Credential", "Signature", "SignedHeaders", "Date", "Expires", "Security-Token"} {
		if len(query["X-Amz-"+name]) > 1 {
			return incomplete("AWS query-string parameters must not be repeated: 'X-Amz-%s'.", name)
		}
	}
	var missing strings.Builder
	for _, name := range [...]string{"Algorithm", "Credential", "Signature", "SignedHeaders", "Date"} {
		if query.Get("X-Amz-"+name) == "" {
			missing.WriteString("AWS query-string parameters must include 'X-Amz-" + name + "'. ")
		}
	}
	if missing.Len() > 0 {
		return incomplete("%sRe-examine the query-string parameters.", missing.String())
	}
	if algorithm := query.Get("X-Amz-Algorithm"); algorithm != Algorithm {
		return incomplete("Unsupported AWS 'algorithm': '%s'.", cut(algorithm))
	}
	if text := query.Get("X-Amz-Expires"); text != "" {
		seconds, err := strconv.ParseInt(text, 10, 32)
		if err != nil || seconds < 1 || time.Duration(seconds)*time.Second > MaxExpires {
			return incomplete("X-Amz-Expires must be between 1 and %d seconds.", int(MaxExpires.Seconds()))
		}
		s.expires = time.Duration(seconds) * time.Second
	}
	s.Token = query.Has("X-Amz-Security-Token")
	s.headers = query.Get("X-Amz-SignedHeaders")
	return s.fill(query.Get("X-Amz-Credential"), query.Get("X-Amz-Date"), query.Get("X-Amz-Signature"))
}

// fill takes apart what both forms have.
func (s *Signature) fill(credential, stamp, signature string) error {
	var scope [5]string
	n := 0
	for rest, more := credential, true; more; n++ {
		if n == len(scope) {
			n++
			break
		}
		scope[n], rest, more = strings.Cut(rest, "/")
	}
	if n != len(scope) {
		return incomplete("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '%s'", cut(credential))
	}
	s.KeyID, s.Date, s.Region, s.Service = scope[0], scope[1], scope[2], scope[3]
	if scope[4] != terminator {
		return invalid("Credential should be scoped with a valid terminator: '%s', not '%s'.", terminator, cut(scope[4]))
	}
	at, err := time.Parse(stampFormat, stamp)
	if err != nil || len(stamp) != len(stampFormat) {
		return incomplete("Date must be in ISO-8601 'basic format'. Got '%s'. See http://en.wikipedia.org/wiki/ISO_8601", cut(stamp))
	}
	if s.Date != stamp[:8] {
		return invalid("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.", cut(s.Date), stamp[:8], stamp)
	}
	s.at, s.stamp = at, stamp
	if len(signature) != hex.EncodedLen(len(s.mac)) {
		return ErrMismatch
	}
	var text [64]byte
	copy(text[:], signature)
	if _, err := hex.Decode(s.mac[:], text[:]); err != nil {
		return ErrMismatch
	}
	return nil
}

// covers refuses a request in which somebody on the way could have put a header that means
// something: the host and whatever is AWS's own must be signed.
func (s *Signature) covers(r *Request) error {
	if strings.Count(s.headers, ";") >= maxSigned {
		return incomplete("More than %d headers are signed.", maxSigned)
	}
	if !s.signs("Host") && !s.signs(":Authority") {
		return invalid("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	for name := range r.Header {
		if !strings.HasPrefix(name, "X-Amz-") || name == "X-Amz-Cf-Id" { // which CloudFront adds
			continue
		}
		if s.presigned && name == "X-Amz-Date" {
			continue // the one in the query counts
		}
		if !s.signs(name) {
			return invalid("'%s' must be a 'SignedHeader' in the AWS Authorization.", cut(name))
		}
	}
	return nil
}

// signs tells whether a header of this name, in any case, is signed.
func (s *Signature) signs(name string) bool {
	for signed := range strings.SplitSeq(s.headers, ";") {
		if len(signed) == len(name) && strings.EqualFold(signed, name) {
			return true
		}
	}
	return false
}

// single is the value of a header that may come once.
func single(h http.Header, name string) (string, error) {
	switch values := h[name]; len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	default:
		return "", incomplete("There is more than one %s header.", name)
	}
}

// cut keeps what is repeated to a client short and printable.
func cut(s string) string {
	if len(s) > 128 {
		s = s[:128]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
