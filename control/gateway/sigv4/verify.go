package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// buffers are for canonical requests.
var buffers = sync.Pool{New: func() any { return new(make([]byte, 0, 2048)) }}

// maxKept is how large a buffer may have grown, in bytes, to be kept.
const maxKept = 32 << 10

// Verify answers nil when the holder of the key signed this request with a body of this hash (hex
// of its SHA-256, or UnsignedPayload), else ErrMismatch. It takes the same time wherever two
// signatures differ.
func (s *Signature) Verify(r *Request, key *SigningKey, payloadHash string) error {
	buf := buffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= maxKept {
			buffers.Put(buf)
		}
	}()
	plain := isPlain(r.Path)
	if s.matches(buf, r, key, payloadHash, !plain) {
		return nil
	}
	// AWS signs a path without its dots and double slashes; some signers sign it as it is.
	if !plain && s.matches(buf, r, key, payloadHash, false) {
		return nil
	}
	return ErrMismatch
}

func (s *Signature) matches(buf *[]byte, r *Request, key *SigningKey, payloadHash string, normalize bool) bool {
	b := (*buf)[:0]
	b = append(append(b, r.Method...), '\n')
	path := r.Path
	if normalize {
		path = normalized(path)
	}
	b = append(appendEscaped(b, path, '/'), '\n')
	b = append(appendQuery(b, r.RawQuery, s.presigned), '\n')
	b = s.appendHeaders(b, r)
	b = append(append(b, s.headers...), '\n')
	b = append(b, payloadHash...)
	canonical := sha256.Sum256(b)

	b = append(append(b[:0], Algorithm...), '\n')
	b = append(append(b, s.stamp...), '\n')
	b = append(append(append(b, s.Date...), '/'), s.Region...)
	b = append(append(append(b, '/'), s.Service...), "/"+terminator+"\n"...)
	b = hex.AppendEncode(b, canonical[:])
	*buf = b

	mac := hmac.New(sha256.New, key[:])
	mac.Write(b)
	var sum [sha256.Size]byte
	return hmac.Equal(mac.Sum(sum[:0]), s.mac[:])
}

// appendHeaders appends the signed headers, one a line, and an empty line, in the client's order.
func (s *Signature) appendHeaders(b []byte, r *Request) []byte {
	for name := range strings.SplitSeq(s.headers, ";") {
		b = append(append(b, name...), ':')
		switch name {
		case "host", ":authority":
			b = appendTrimmed(b, r.Host)
		default:
			for i, value := range header(r.Header, name) {
				if i > 0 {
					b = append(b, ',')
				}
				b = appendTrimmed(b, value)
			}
		}
		b = append(b, '\n')
	}
	return append(b, '\n')
}

// header finds a header by its lower-case name without making the canonical one anew.
func header(h http.Header, name string) []string {
	var canonical [64]byte
	if len(name) > len(canonical) {
		return h.Values(name)
	}
	upper := true
	for i := range len(name) {
		c := name[i]
		if upper && 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		canonical[i], upper = c, c == '-'
	}
	return h[string(canonical[:len(name)])]
}

// appendTrimmed appends a value without spaces around it, and one where there are several.
func appendTrimmed(b []byte, value string) []byte {
	value = strings.Trim(value, " \t")
	if !strings.Contains(value, "  ") {
		return append(b, value...)
	}
	for i := range len(value) {
		if value[i] == ' ' && value[i-1] == ' ' {
			continue
		}
		b = append(b, value[i])
	}
	return b
}

// appendQuery appends the parameters, escaped anew and then sorted, without the signature of a
// presigned URL.
func appendQuery(b []byte, raw string, presigned bool) []byte {
	if raw == "" {
		return b
	}
	type parameter struct{ name, value string }
	parameters := make([]parameter, 0, 8)
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		if name = reescaped(name); presigned && name == "X-Amz-Signature" {
			continue
		}
		parameters = append(parameters, parameter{name, reescaped(value)})
	}
	slices.SortStableFunc(parameters, func(a, b parameter) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		return strings.Compare(a.value, b.value)
	})
	for i, p := range parameters {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(append(append(b, p.name...), '='), p.value...)
	}
	return b
}

// reescaped escapes part of a query as AWS does, however it was escaped. What has a bad escape
// stays as it is: the operation refuses it.
func reescaped(s string) string {
	plain := true
	for i := range len(s) {
		if !unreserved(s[i]) {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	if decoded, err := url.QueryUnescape(s); err == nil {
		s = decoded
	}
	return string(appendEscaped(make([]byte, 0, 3*len(s)), s, 0))
}

// appendEscaped escapes everything but RFC 3986's unreserved characters and the one that is kept.
func appendEscaped(b []byte, s string, keep byte) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; unreserved(c) || c == keep && keep != 0 {
			b = append(b, c)
		} else {
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return b
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// isPlain tells whether a path has nothing to normalize.
func isPlain(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.Contains(path, "//") && !strings.Contains(path, "/.")
}

// normalized is a path without ".", ".." and empty parts (RFC 3986, section 6).
func normalized(path string) string {
	var kept []string
	last := ""
	for part := range strings.SplitSeq(path, "/") {
		switch last = part; part {
		case "", ".":
		case "..":
			kept = kept[:max(0, len(kept)-1)]
		default:
			kept = append(kept, part)
		}
	}
	out := "/" + strings.Join(kept, "/")
	if last == "" && len(kept) > 0 {
		out += "/"
	}
	return out
}
