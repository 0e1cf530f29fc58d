package gateway

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

func enumRule(values []string) string {
	return "Member must satisfy enum value set: [" + strings.Join(values, ", ") + "]"
}

// violations collects what is wrong with one request, in AWS's words.
type violations struct {
	texts []string
}

// add notes one; a nil value is an absent member.
func (v *violations) add(value *string, at, rule string) {
	shown := "null"
	if value != nil {
		shown = "'" + *value + "'"
	}
	v.texts = append(v.texts, fmt.Sprintf("Value %s at '%s' failed to satisfy constraint: %s", shown, at, rule))
}

func (v *violations) addSensitive(at, rule string) {
	v.texts = append(v.texts, fmt.Sprintf("Value at '%s' failed to satisfy constraint: %s", at, rule))
}

func (v *violations) err() error {
	switch len(v.texts) {
	case 0:
		return nil
	case 1:
		return &Fault{Code: codeValidation, Message: "1 validation error detected: " + v.texts[0]}
	default:
		return faultf(codeValidation, "%d validation errors detected: %s", len(v.texts), strings.Join(v.texts, "; "))
	}
}

// display writes a value as AWS's messages do: [a, b], {k=v}. A long one is cut.
func display(fd protoreflect.FieldDescriptor, value protoreflect.Value) string {
	var b strings.Builder
	switch {
	case fd.IsList():
		b.WriteByte('[')
		list := value.List()
		for i := 0; i < list.Len() && b.Len() <= maxShownValue; i++ {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(cut(list.Get(i).String()))
		}
		b.WriteByte(']')
	case fd.IsMap():
		b.WriteByte('{')
		value.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			if b.Len() > 1 {
				b.WriteString(", ")
			}
			b.WriteString(cut(k.String() + "=" + v.String()))
			return b.Len() <= maxShownValue
		})
		b.WriteByte('}')
	default:
		return cut(value.String())
	}
	return cut(b.String())
}

func cut(text string) string {
	if len(text) <= maxShownValue {
		return text
	}
	return strings.ToValidUTF8(text[:maxShownValue], "") + "..."
}

// memberName is how error texts spell a member: lowerCamelCase, that is KMSKeyArn as kMSKeyArn.
func memberName(fd protoreflect.FieldDescriptor) string {
	name := fd.JSONName()
	return strings.ToLower(name[:1]) + name[1:]
}

func joinPath(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// namePart is the function's name within any form of FunctionName.
func namePart(text string) string {
	parts := strings.Split(text, ":")
	for i, p := range parts {
		if p == "function" && i+1 < len(parts) {
			return parts[i+1]
		}
	}
	return parts[0]
}
