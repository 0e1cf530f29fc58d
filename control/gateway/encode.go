package gateway

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// appendMessage appends m's JSON as AWS writes it: members under their JSON names, numbers as
// numbers, bytes as base64, absent members left out, empty lists only where the model always
// shows them. Members that travel elsewhere (headers, status) are not in the body.
func appendMessage(b []byte, m protoreflect.Message) []byte {
	if inner := inlineField(m.Descriptor()); inner != nil {
		return appendField(b, inner, m.Get(inner))
	}
	b = append(b, '{')
	fields := m.Descriptor().Fields()
	first := true
	for i := range fields.Len() {
		fd := fields.Get(i)
		rule := memberOf(fd)
		if rule.GetLocation() != dozev1.Location_LOCATION_UNSPECIFIED {
			continue
		}
		// A scalar without presence is one of Doze's own: always shown, so that scripts find it.
		shown := m.Has(fd) || rule.GetAlways() || (!fd.HasPresence() && !fd.IsList() && !fd.IsMap())
		if !shown {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = appendJSONString(b, fd.JSONName())
		b = append(b, ':')
		b = appendField(b, fd, m.Get(fd))
	}
	return append(b, '}')
}

func appendField(b []byte, fd protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	switch {
	case fd.IsList():
		list := v.List()
		b = append(b, '[')
		for i := range list.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendScalar(b, fd, list.Get(i))
		}
		return append(b, ']')
	case fd.IsMap():
		entries := v.Map()
		keys := make([]string, 0, entries.Len())
		entries.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, k.String())
			return true
		})
		slices.Sort(keys)
		b = append(b, '{')
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSONString(b, k)
			b = append(b, ':')
			b = appendScalar(b, fd.MapValue(), entries.Get(protoreflect.ValueOfString(k).MapKey()))
		}
		return append(b, '}')
	default:
		return appendScalar(b, fd, v)
	}
}

func appendScalar(b []byte, fd protoreflect.FieldDescriptor, v protoreflect.Value) []byte {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return strconv.AppendBool(b, v.Bool())
	case protoreflect.StringKind:
		return appendJSONString(b, v.String())
	case protoreflect.BytesKind:
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, v.Bytes())
		return append(b, '"')
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		f := v.Float()
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return append(b, "null"...)
		}
		format := byte('f')
		if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
			format = 'e'
		}
		return strconv.AppendFloat(b, f, format, -1, 64)
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return strconv.AppendUint(b, v.Uint(), 10)
	case protoreflect.EnumKind:
		return appendJSONString(b, string(fd.Enum().Values().ByNumber(v.Enum()).Name()))
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return appendMessage(b, v.Message())
	default:
		return strconv.AppendInt(b, v.Int(), 10)
	}
}

// appendJSONString appends s in quotes. Bytes that are not UTF-8 become U+FFFD.
func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(b, s[start:i]...)
				b = append(b, `\ufffd`...)
				i++
				start = i
				continue
			}
			i += size
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// memberOf is what options.proto says about a field; nil (whose getters answer zero) for nothing.
func memberOf(fd protoreflect.FieldDescriptor) *dozev1.Member {
	options := fd.Options()
	if !proto.HasExtension(options, dozev1.E_Member) {
		return nil
	}
	return proto.GetExtension(options, dozev1.E_Member).(*dozev1.Member)
}

// inlineField is the field that a message stands for in JSON, nil when it stands for itself.
func inlineField(md protoreflect.MessageDescriptor) protoreflect.FieldDescriptor {
	if inline, _ := proto.GetExtension(md.Options(), dozev1.E_Inline).(bool); inline {
		return md.Fields().Get(0)
	}
	return nil
}
