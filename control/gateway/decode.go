package gateway

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// maxJSONDepth bounds nesting of request bodies; the model's deepest member is at five.
	maxJSONDepth = 64
	// maxJSONValues bounds how many values one body may hold, so that a small body cannot become
	// a large heap.
	maxJSONValues = 100_000
)

// decodeMessage reads a JSON object into m. It is strict about types (a string is not a number),
// ignores members it does not know and those that travel in path, query or headers, and takes
// null for absent. Its errors are SerializationException.
func decodeMessage(body []byte, m protoreflect.Message) error {
	d := decoder{in: body}
	d.space()
	if d.at == len(d.in) {
		return nil
	}
	if d.in[d.at] != '{' && !d.null() {
		return d.wrongType("a structure", "")
	}
	if d.at < len(d.in) && d.in[d.at] == '{' {
		if err := d.message(m, ""); err != nil {
			return err
		}
	}
	d.space()
	if d.at != len(d.in) {
		return d.malformed("more after the end of the object")
	}
	return nil
}

// decoder walks one JSON text. It keeps no reference to the text: what it stores is copied.
type decoder struct {
	in     []byte
	at     int
	depth  int
	values int
}

// wrongType says what stands at the cursor where something else belongs.
func (d *decoder) wrongType(want, path string) error {
	at := ""
	if path != "" {
		at = fmt.Sprintf(" (at '%s')", path)
	}
	if d.at >= len(d.in) {
		return d.malformed("unexpected end")
	}
	switch c := d.in[d.at]; {
	case c == '{':
		return faultf(codeSerialization, "Start of structure or map found where not expected%s", at)
	case c == '[':
		return faultf(codeSerialization, "Start of list found where not expected%s", at)
	case c == '"':
		return faultf(codeSerialization, "STRING_VALUE can not be converted to %s%s", want, at)
	case c == 't':
		return faultf(codeSerialization, "TRUE_VALUE can not be converted to %s%s", want, at)
	case c == 'f':
		return faultf(codeSerialization, "FALSE_VALUE can not be converted to %s%s", want, at)
	case c == '-' || c >= '0' && c <= '9':
		return faultf(codeSerialization, "NUMBER_VALUE can not be converted to %s%s", want, at)
	}
	return d.malformed("unexpected character")
}

func (d *decoder) message(m protoreflect.Message, path string) error {
	if inner := inlineField(m.Descriptor()); inner != nil {
		return d.field(m, inner, path)
	}
	if d.at >= len(d.in) || d.in[d.at] != '{' {
		return d.wrongType("a structure", path)
	}
	fields := m.Descriptor().Fields()
	return d.object(func(key string) error {
		fd := fields.ByJSONName(key)
		if fd == nil || memberOf(fd).GetLocation() != dozev1.Location_LOCATION_UNSPECIFIED {
			return d.skip()
		}
		// The last of repeated members counts, as a whole.
		m.Clear(fd)
		if d.null() {
			return nil
		}
		return d.field(m, fd, joinPath(path, memberName(fd)))
	})
}

func (d *decoder) field(m protoreflect.Message, fd protoreflect.FieldDescriptor, path string) error {
	switch {
	case fd.IsList():
		if d.at >= len(d.in) || d.in[d.at] != '[' {
			return d.wrongType("a list", path)
		}
		list := m.Mutable(fd).List()
		return d.array(func() error {
			if fd.Message() != nil {
				entry := list.NewElement()
				if err := d.message(entry.Message(), path); err != nil {
					return err
				}
				list.Append(entry)
				return nil
			}
			v, err := d.scalar(fd, path)
			if err != nil {
				return err
			}
			list.Append(v)
			return nil
		})
	case fd.IsMap():
		if d.at >= len(d.in) || d.in[d.at] != '{' {
			return d.wrongType("a map", path)
		}
		entries := m.Mutable(fd).Map()
		return d.object(func(key string) error {
			if d.null() {
				return nil
			}
			v, err := d.scalar(fd.MapValue(), path)
			if err != nil {
				return err
			}
			entries.Set(protoreflect.ValueOfString(key).MapKey(), v)
			return nil
		})
	case fd.Message() != nil:
		return d.message(m.Mutable(fd).Message(), path)
	default:
		v, err := d.scalar(fd, path)
		if err != nil {
			return err
		}
		m.Set(fd, v)
		return nil
	}
}

func (d *decoder) scalar(fd protoreflect.FieldDescriptor, path string) (protoreflect.Value, error) {
	var none protoreflect.Value
	if d.at >= len(d.in) {
		return none, d.malformed("unexpected end")
	}
	c := d.in[d.at]
	switch fd.Kind() {
	case protoreflect.StringKind:
		if c != '"' {
			return none, d.wrongType("a String", path)
		}
		s, err := d.str()
		return protoreflect.ValueOfString(s), err
	case protoreflect.BytesKind:
		if c != '"' {
			return none, d.wrongType("a Blob", path)
		}
		b, err := d.blob(path)
		return protoreflect.ValueOfBytes(b), err
	case protoreflect.BoolKind:
		switch {
		case d.literal("true"):
			return protoreflect.ValueOfBool(true), nil
		case d.literal("false"):
			return protoreflect.ValueOfBool(false), nil
		}
		return none, d.wrongType("a Boolean", path)
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		kind := "an Integer"
		if fd.Kind() == protoreflect.Int64Kind {
			kind = "a Long"
		}
		if c != '-' && (c < '0' || c > '9') {
			return none, d.wrongType(kind, path)
		}
		start := d.at
		whole, err := d.number()
		if err != nil {
			return none, err
		}
		if !whole {
			return none, faultf(codeSerialization, "DECIMAL_VALUE can not be converted to %s (at '%s')", kind, path)
		}
		n, err := strconv.ParseInt(string(d.in[start:d.at]), 10, 64)
		if err != nil || fd.Kind() == protoreflect.Int32Kind && (n < math.MinInt32 || n > math.MaxInt32) {
			return none, faultf(codeSerialization, "NUMBER_VALUE is out of range of %s (at '%s')", kind, path)
		}
		if fd.Kind() == protoreflect.Int32Kind {
			return protoreflect.ValueOfInt32(int32(n)), nil
		}
		return protoreflect.ValueOfInt64(n), nil
	case protoreflect.DoubleKind:
		if c != '-' && (c < '0' || c > '9') {
			return none, d.wrongType("a Double", path)
		}
		start := d.at
		if _, err := d.number(); err != nil {
			return none, err
		}
		f, err := strconv.ParseFloat(string(d.in[start:d.at]), 64)
		if err != nil {
			return none, faultf(codeSerialization, "NUMBER_VALUE is out of range of a Double (at '%s')", path)
		}
		return protoreflect.ValueOfFloat64(f), nil
	default:
		// No request has members of other kinds; a new one must be thought about here.
		return none, faultf(codeSerialization, "%s can not be given in JSON", path)
	}
}

// blob takes a base64 string.
func (d *decoder) blob(path string) ([]byte, error) {
	text, plain, err := d.raw()
	if err != nil {
		return nil, err
	}
	if !plain {
		// Some encoders write '/' as '\/'.
		var ok bool
		if text, ok = unescape(text); !ok {
			return nil, d.malformed("bad escape in a string")
		}
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(out, text)
	if err != nil {
		return nil, faultf(codeSerialization, "STRING_VALUE can not be converted to a Blob: it is not base64 (at '%s')", path)
	}
	return out[:n], nil
}
