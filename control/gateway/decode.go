package gateway

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

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

func (d *decoder) malformed(what string) error {
	return faultf(codeSerialization, "Could not parse request body into json: %s at offset %d", what, d.at)
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

func (d *decoder) space() {
	for d.at < len(d.in) {
		switch d.in[d.at] {
		case ' ', '\t', '\n', '\r':
			d.at++
		default:
			return
		}
	}
}

// literal takes word if it stands at the cursor.
func (d *decoder) literal(word string) bool {
	if len(d.in)-d.at < len(word) || string(d.in[d.at:d.at+len(word)]) != word {
		return false
	}
	d.at += len(word)
	return true
}

func (d *decoder) null() bool { return d.literal("null") }

// enter counts a value and one level of nesting; the caller leaves with depth--.
func (d *decoder) enter() error {
	d.depth++
	if d.depth > maxJSONDepth {
		return d.malformed("nested too deeply")
	}
	return d.count()
}

func (d *decoder) count() error {
	d.values++
	if d.values > maxJSONValues {
		return d.malformed("too many values")
	}
	return nil
}

// object walks an object's members; each must consume the value.
func (d *decoder) object(each func(key string) error) error {
	if err := d.enter(); err != nil {
		return err
	}
	d.at++ // {
	d.space()
	if d.literal("}") {
		d.depth--
		return nil
	}
	for {
		d.space()
		if d.at >= len(d.in) || d.in[d.at] != '"' {
			return d.malformed("expected a member name")
		}
		key, err := d.str()
		if err != nil {
			return err
		}
		d.space()
		if !d.literal(":") {
			return d.malformed("expected ':'")
		}
		d.space()
		if err := d.count(); err != nil {
			return err
		}
		if err := each(key); err != nil {
			return err
		}
		d.space()
		switch {
		case d.literal(","):
		case d.literal("}"):
			d.depth--
			return nil
		default:
			return d.malformed("expected ',' or '}'")
		}
	}
}

// array walks a list's entries; each must consume the value.
func (d *decoder) array(each func() error) error {
	if err := d.enter(); err != nil {
		return err
	}
	d.at++ // [
	d.space()
	if d.literal("]") {
		d.depth--
		return nil
	}
	for {
		d.space()
		if err := d.count(); err != nil {
			return err
		}
		if err := each(); err != nil {
			return err
		}
		d.space()
		switch {
		case d.literal(","):
		case d.literal("]"):
			d.depth--
			return nil
		default:
			return d.malformed("expected ',' or ']'")
		}
	}
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

// number takes a JSON number; whole is false when it has a fraction or an exponent.
func (d *decoder) number() (whole bool, err error) {
	digits := func() bool {
		start := d.at
		for d.at < len(d.in) && d.in[d.at] >= '0' && d.in[d.at] <= '9' {
			d.at++
		}
		return d.at > start
	}
	d.literal("-")
	if d.literal("0") {
		if d.at < len(d.in) && d.in[d.at] >= '0' && d.in[d.at] <= '9' {
			return false, d.malformed("a number with a leading zero")
		}
	} else if !digits() {
		return false, d.malformed("expected a digit")
	}
	whole = true
	if d.literal(".") {
		whole = false
		if !digits() {
			return false, d.malformed("expected a digit")
		}
	}
	if d.literal("e") || d.literal("E") {
		whole = false
		if !d.literal("+") {
			d.literal("-")
		}
		if !digits() {
			return false, d.malformed("expected a digit")
		}
	}
	return whole, nil
}

// raw finds the end of the string at the cursor and moves past it. The answer is what stands
// between the quotes; plain is false when that has escapes.
func (d *decoder) raw() (text []byte, plain bool, err error) {
	plain = true
	for i := d.at + 1; i < len(d.in); i++ {
		switch c := d.in[i]; {
		case c == '"':
			text = d.in[d.at+1 : i]
			d.at = i + 1
			return text, plain, nil
		case c == '\\':
			plain = false
			i++
		case c < 0x20:
			d.at = i
			return nil, false, d.malformed("control character in a string")
		}
	}
	d.at = len(d.in)
	return nil, false, d.malformed("string without end")
}

// str takes a string. It must be UTF-8, since protobuf strings are.
func (d *decoder) str() (string, error) {
	start := d.at
	text, plain, err := d.raw()
	if err != nil {
		return "", err
	}
	if !utf8.Valid(text) {
		d.at = start
		return "", d.malformed("invalid UTF-8 in a string")
	}
	if plain {
		return string(text), nil
	}
	out, ok := unescape(text)
	if !ok {
		d.at = start
		return "", d.malformed("bad escape in a string")
	}
	return string(out), nil
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

// unescape resolves a string's escapes; a lone surrogate becomes U+FFFD.
func unescape(text []byte) ([]byte, bool) {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		if text[i] != '\\' {
			out = append(out, text[i])
			i++
			continue
		}
		if i+1 >= len(text) {
			return nil, false
		}
		i += 2
		switch c := text[i-1]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := hex4(text[i:])
			if !ok {
				return nil, false
			}
			i += 4
			if utf16.IsSurrogate(r) {
				second := rune(utf8.RuneError)
				if len(text) >= i+6 && text[i] == '\\' && text[i+1] == 'u' {
					if low, ok := hex4(text[i+2:]); ok {
						second = low
					}
				}
				if r = utf16.DecodeRune(r, second); r != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			return nil, false
		}
	}
	return out, true
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		r <<= 4
		switch {
		case c >= '0' && c <= '9':
			r |= rune(c - '0')
		case c >= 'a' && c <= 'f':
			r |= rune(c-'a') + 10
		case c >= 'A' && c <= 'F':
			r |= rune(c-'A') + 10
		default:
			return 0, false
		}
	}
	return r, true
}

// skip takes any value and forgets it, but holds it to JSON's grammar and the bounds.
func (d *decoder) skip() error {
	if d.at >= len(d.in) {
		return d.malformed("unexpected end")
	}
	switch c := d.in[d.at]; {
	case c == '{':
		return d.object(func(string) error { return d.skip() })
	case c == '[':
		return d.array(d.skip)
	case c == '"':
		_, err := d.str()
		return err
	case c == '-' || c >= '0' && c <= '9':
		_, err := d.number()
		return err
	case d.literal("true"), d.literal("false"), d.null():
		return nil
	}
	return d.malformed("unexpected character")
}
