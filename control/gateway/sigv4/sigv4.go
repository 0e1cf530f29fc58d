// Package sigv4 verifies AWS Signature Version 4, in the Authorization header or in the query of a
// presigned URL, as AWS's services other than S3 do.
//
// It knows requests, keys and clocks that it is given. It must not know who has which key, what a
// key may do, or how errors travel.
//
// The SDK's signer cannot be asked instead: it decides itself which headers it signs, where a
// verifier must follow the client. The tests hold the two against each other.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"net/http"
	"time"
)

const (
	// Algorithm is the only one there is.
	Algorithm = "AWS4-HMAC-SHA256"
	// Window is how far a request's time may be from the verifier's, either way (AWS).
	Window = 15 * time.Minute
	// MaxExpires is the longest life of a presigned URL (AWS).
	MaxExpires = 7 * 24 * time.Hour
	// UnsignedPayload stands for the hash of a body that is not signed. Whether that may be is the
	// caller's to say; Lambda takes none.
	UnsignedPayload = "UNSIGNED-PAYLOAD"

	terminator  = "aws4_request"
	stampFormat = "20060102T150405Z"
	// maxSigned bounds how many headers may be signed.
	maxSigned = 64
)

// Kind is what is wrong with a request.
type Kind int

const (
	// Missing: it has no signature at all.
	Missing Kind = iota + 1
	// Incomplete: it has one that cannot be read.
	Incomplete
	// Invalid: it has one that does not hold: of another time, place or request.
	Invalid
)

// Error says why a request is not taken, in AWS's words. It never has a signature in it.
type Error struct {
	Kind    Kind
	Message string
}

func (e *Error) Error() string { return "sigv4: " + e.Message }

func incomplete(format string, args ...any) *Error {
	return &Error{Incomplete, fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) *Error { return &Error{Invalid, fmt.Sprintf(format, args...)} }

// ErrMismatch is AWS's answer to a signature that is not the one that was calculated.
var ErrMismatch = &Error{Invalid, "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."}

// Request is what of a request can be signed.
type Request struct {
	Method string
	// Path is as it stood in the request, escapes and all.
	Path     string
	RawQuery string
	Host     string
	// Header has canonical names.
	Header http.Header
}

// Signature is what a request says about how it was signed; nothing of it is proven before Verify.
type Signature struct {
	// KeyID is of the access key.
	KeyID string
	// Date ("20240501"), Region and Service are the scope.
	Date, Region, Service string
	// PayloadHash is the X-Amz-Content-Sha256 header, "" for none.
	PayloadHash string
	// Token is whether a security token came along.
	Token bool

	presigned bool
	at        time.Time
	stamp     string // at, as it was signed
	expires   time.Duration
	headers   string // "host;x-amz-date"
	mac       [sha256.Size]byte
}

// SigningKey is what a secret comes to for one day, region and service.
type SigningKey [sha256.Size]byte

// DeriveKey derives it, in four HMACs: worth keeping for the day.
func DeriveKey(secret, date, region, service string) SigningKey {
	key := []byte("AWS4" + secret)
	for _, part := range [...]string{date, region, service, terminator} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return SigningKey(key)
}

// Check holds the scope and the time against where and when the verifier is. A signature is good
// for its whole window, however often it comes (AWS).
func (s *Signature) Check(now time.Time, region, service string) error {
	switch {
	case s.Region != region:
		return invalid("Credential should be scoped to a valid region. ")
	case s.Service != service:
		return invalid("Credential should be scoped to correct service: '%s'. ", service)
	}
	now = now.UTC()
	window, words := Window, "15 min."
	if s.presigned && s.expires > 0 {
		window, words = s.expires, fmt.Sprintf("%d sec.", int(s.expires.Seconds()))
	}
	if oldest := now.Add(-window); s.at.Before(oldest.Truncate(time.Second)) {
		return invalid("Signature expired: %s is now earlier than %s (%s - %s)", s.stamp, oldest.Format(stampFormat), now.Format(stampFormat), words)
	}
	if newest := now.Add(Window); s.at.After(newest) {
		return invalid("Signature not yet current: %s is still later than %s (%s + 15 min.)", s.stamp, newest.Format(stampFormat), now.Format(stampFormat))
	}
	return nil
}
