package gateway

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// exchange is what is known of one request beside its message. It travels in the context from
// the edge to the operation.
type exchange struct {
	id     requestID
	caller Identity
	// proof is what is left to verify of who calls; nil when nothing is.
	proof Proof
	// baseURL is how the client reached us ("http://127.0.0.1:9000"), for links in answers.
	baseURL string
	// operation is the method's name.
	operation string
	// route, params and query are set over REST only.
	route  *route
	params map[string]string
	query  url.Values
}

// prove ends the verification of who calls, when the body is there.
func (x *exchange) prove(body []byte) error {
	if x.proof == nil {
		return nil
	}
	return x.proof(sha256.Sum256(body))
}

type exchangeKey struct{}

func withExchange(ctx context.Context, x *exchange) context.Context {
	return context.WithValue(ctx, exchangeKey{}, x)
}

// exchangeOf is the request's exchange. Every edge sets one before an operation runs.
func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// requestID is a version 4 UUID.
type requestID [16]byte

// newRequestID makes a random one. crypto/rand never fails.
func newRequestID() (id requestID) {
	_, _ = rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// String is the lower-case form with dashes.
func (id requestID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:36], id[10:16])
	return string(b[:])
}

// bind puts path parameters and query values into the request, by what options.proto says of its
// members. grpc-gateway's own binding is switched off: it knows neither the query beside a body
// (AddPermission's Qualifier) nor names that differ from the member's (tagKeys).
func (x *exchange) bind(m protoreflect.Message) error {
	fields := m.Descriptor().Fields()
	bound := 0
	for i := range fields.Len() {
		fd := fields.Get(i)
		rule := memberOf(fd)
		name := rule.GetName()
		if name == "" {
			name = fd.JSONName()
		}
		switch rule.GetLocation() {
		case dozev1.Location_LOCATION_PATH:
			if value, ok := x.params[name]; ok {
				m.Set(fd, protoreflect.ValueOfString(value))
			}
		case dozev1.Location_LOCATION_QUERY:
			values, ok := x.query[name]
			if !ok {
				continue
			}
			bound++
			if err := bindQuery(m, fd, values); err != nil {
				return err
			}
		}
	}
	// AWS ignores query keys it does not know. On Doze's own operations they are refused: a
	// mistyped one would otherwise answer something else than was asked.
	if x.route.own && bound != len(x.query) {
		for key := range x.query {
			return faultf(codeValidation, "This operation has no query parameter '%s', or a required one is spelled differently.", cut(key))
		}
	}
	return nil
}

func bindQuery(m protoreflect.Message, fd protoreflect.FieldDescriptor, values []string) error {
	if fd.IsList() {
		list := m.Mutable(fd).List()
		for _, v := range values {
			list.Append(protoreflect.ValueOfString(v))
		}
		return nil
	}
	text := values[len(values)-1]
	switch fd.Kind() {
	case protoreflect.Int32Kind:
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return faultf(codeSerialization, "STRING_VALUE can not be converted to an Integer (at '%s')", memberName(fd))
		}
		m.Set(fd, protoreflect.ValueOfInt32(int32(n)))
	case protoreflect.BoolKind:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return faultf(codeSerialization, "STRING_VALUE can not be converted to a Boolean (at '%s')", memberName(fd))
		}
		m.Set(fd, protoreflect.ValueOfBool(b))
	default:
		m.Set(fd, protoreflect.ValueOfString(text))
	}
	return nil
}
