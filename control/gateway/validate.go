package gateway

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// maxNameLength is the longest function name; the model's longer bound is for ARNs.
	maxNameLength = 64
	// maxShownValue is how much of a refused value an error message repeats, in bytes.
	maxShownValue = 2048
)

// validator checks requests against what options.proto says of their members. It is built once
// and safe for concurrent use.
type validator struct {
	shapes   map[dozev1.Shape]*shape
	messages map[protoreflect.FullName]*messageRules
}

// shape is a Constraint with its pattern compiled.
type shape struct {
	*dozev1.Constraint
	id          dozev1.Shape
	re          *regexp.Regexp
	items, keys *shape
}

type messageRules struct {
	fields []fieldRules
}

type fieldRules struct {
	fd       protoreflect.FieldDescriptor
	name     string // lowerCamelCase, as error texts have it
	required bool
	shape    *shape
	nested   *messageRules // of the message, or of a list's entries
}

// newValidator reads the rules of every request of the service.
func newValidator(service protoreflect.ServiceDescriptor) (*validator, error) {
	v := &validator{
		shapes:   map[dozev1.Shape]*shape{},
		messages: map[protoreflect.FullName]*messageRules{},
	}
	values := dozev1.Shape(0).Descriptor().Values()
	for i := range values.Len() {
		id := dozev1.Shape(values.Get(i).Number())
		c, _ := proto.GetExtension(values.Get(i).Options(), dozev1.E_Constraint).(*dozev1.Constraint)
		s := &shape{Constraint: c, id: id}
		if c.GetPattern() != "" {
			expression := c.GetPattern()
			if c.GetRe2() != "" {
				expression = c.GetRe2()
			}
			re, err := regexp.Compile(`\A(?:` + expression + `)\z`)
			if err != nil {
				return nil, fmt.Errorf("pattern of %v: %w", id, err)
			}
			s.re = re
		}
		v.shapes[id] = s
	}
	for _, s := range v.shapes {
		if s.GetItems() != dozev1.Shape_SHAPE_UNSPECIFIED {
			s.items = v.shapes[s.GetItems()]
		}
		if s.GetKeys() != dozev1.Shape_SHAPE_UNSPECIFIED {
			s.keys = v.shapes[s.GetKeys()]
		}
	}
	methods := service.Methods()
	for i := range methods.Len() {
		v.rules(methods.Get(i).Input())
	}
	return v, nil
}

func (v *validator) rules(md protoreflect.MessageDescriptor) *messageRules {
	if known := v.messages[md.FullName()]; known != nil {
		return known
	}
	rules := &messageRules{}
	v.messages[md.FullName()] = rules
	fields := md.Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		member := memberOf(fd)
		f := fieldRules{fd: fd, name: memberName(fd), required: member.GetRequired()}
		if member.GetShape() != dozev1.Shape_SHAPE_UNSPECIFIED {
			f.shape = v.shapes[member.GetShape()]
		}
		if fd.Message() != nil && !fd.IsMap() {
			f.nested = v.rules(fd.Message())
		}
		if f.required || f.shape != nil || f.nested != nil {
			rules.fields = append(rules.fields, f)
		}
	}
	return rules
}

// check answers nil or the ValidationException that lists everything wrong with the request.
func (v *validator) check(request proto.Message) error {
	m := request.ProtoReflect()
	rules := v.messages[m.Descriptor().FullName()]
	if rules == nil {
		return nil
	}
	var found violations
	rules.check(m, "", &found)
	return found.err()
}

func (r *messageRules) check(m protoreflect.Message, path string, found *violations) {
	for i := range r.fields {
		f := &r.fields[i]
		at := joinPath(path, f.name)
		if !m.Has(f.fd) {
			if f.required {
				found.add(nil, at, "Member must not be null")
			}
			continue
		}
		value := m.Get(f.fd)
		if f.nested == nil {
			if f.shape != nil {
				f.shape.check(f.fd, value, at, found)
			}
			continue
		}
		switch {
		case f.fd.IsList():
			list := value.List()
			if f.shape != nil {
				f.shape.checkLength(list.Len(), at, found, func() string { return display(f.fd, value) })
			}
			for j := range list.Len() {
				f.nested.check(list.Get(j).Message(), joinPath(at, strconv.Itoa(j+1)+".member"), found)
			}
		case inlineField(f.fd.Message()) != nil:
			inner := inlineField(f.fd.Message())
			m := value.Message()
			if f.shape != nil && inner.Message() == nil {
				f.shape.check(inner, m.Get(inner), at, found)
				continue
			}
			list := m.Get(inner).List()
			if f.shape != nil {
				f.shape.checkLength(list.Len(), at, found, func() string { return display(inner, m.Get(inner)) })
			}
			for j := range list.Len() {
				f.nested.fields[0].nested.check(list.Get(j).Message(), joinPath(at, strconv.Itoa(j+1)+".member"), found)
			}
		default:
			f.nested.check(value.Message(), at, found)
		}
	}
}

func (s *shape) check(fd protoreflect.FieldDescriptor, value protoreflect.Value, at string, found *violations) {
	show := func() string {
		return display(fd, value)
	}
	switch {
	case fd.IsList():
		list := value.List()
		s.checkLength(list.Len(), at, found, show)
		for i := range list.Len() {
			if s.items != nil && !s.items.fits(list.Get(i).String()) {
				s.report(found, at, show, "Member must satisfy constraint: ["+strings.Join(s.items.texts(), ", ")+"]")
				break
			}
		}
	case fd.IsMap():
		entries := value.Map()
		s.checkLength(entries.Len(), at, found, show)
		keys, values := true, true
		entries.Range(func(k protoreflect.MapKey, value protoreflect.Value) bool {
			keys = keys && (s.keys == nil || s.keys.fits(k.String()))
			values = values && (s.items == nil || s.items.fitsValue(fd.MapValue(), value))
			return keys || values
		})
		if !keys {
			s.report(found, at, show, "Map keys must satisfy constraint: ["+strings.Join(s.keys.texts(), ", ")+"]")
		}
		if !values {
			s.report(found, at, show, "Map value must satisfy constraint: ["+strings.Join(s.items.texts(), ", ")+"]")
		}
	case fd.Kind() == protoreflect.StringKind:
		// Whether a runtime exists is asked by the operation: AWS answers that with another error.
		if s.id == dozev1.Shape_SHAPE_RUNTIME {
			return
		}
		text := value.String()
		for _, rule := range s.broken(text) {
			s.report(found, at, show, rule)
		}
	case fd.Kind() == protoreflect.Int32Kind, fd.Kind() == protoreflect.Int64Kind:
		n := value.Int()
		if s.Min != nil && n < s.GetMin() {
			s.report(found, at, show, fmt.Sprintf("Member must have value greater than or equal to %d", s.GetMin()))
		}
		if s.Max != nil && n > s.GetMax() {
			s.report(found, at, show, fmt.Sprintf("Member must have value less than or equal to %d", s.GetMax()))
		}
	case fd.Kind() == protoreflect.DoubleKind:
		f := value.Float()
		if s.Min != nil && !(f >= float64(s.GetMin())) {
			s.report(found, at, show, fmt.Sprintf("Member must have value greater than or equal to %d", s.GetMin()))
		}
		if s.Max != nil && !(f <= float64(s.GetMax())) {
			s.report(found, at, show, fmt.Sprintf("Member must have value less than or equal to %d", s.GetMax()))
		}
	}
}

func (s *shape) checkLength(n int, at string, found *violations, show func() string) {
	if s.MinLength != nil && n < int(s.GetMinLength()) {
		s.report(found, at, show, fmt.Sprintf("Member must have length greater than or equal to %d", s.GetMinLength()))
	}
	if s.MaxLength != nil && n > int(s.GetMaxLength()) {
		s.report(found, at, show, fmt.Sprintf("Member must have length less than or equal to %d", s.GetMaxLength()))
	}
}

func (s *shape) report(found *violations, at string, show func() string, rule string) {
	if s.GetSensitive() {
		found.addSensitive(at, rule)
		return
	}
	value := show()
	found.add(&value, at, rule)
}

// broken lists the rules that text does not satisfy.
func (s *shape) broken(text string) []string {
	var rules []string
	if values := s.GetValues(); len(values) > 0 {
		if !slices.Contains(values, text) {
			rules = append(rules, enumRule(values))
		}
		return rules
	}
	longest, limited := int(s.GetMaxLength()), s.MaxLength != nil
	if s.id == dozev1.Shape_SHAPE_FUNCTION_NAME || s.id == dozev1.Shape_SHAPE_NAMESPACED_FUNCTION_NAME {
		if !strings.Contains(text, ":") || len(namePart(text)) > maxNameLength {
			longest = maxNameLength
		}
	}
	n := utf8.RuneCountInString(text)
	if s.MinLength != nil && n < int(s.GetMinLength()) {
		rules = append(rules, fmt.Sprintf("Member must have length greater than or equal to %d", s.GetMinLength()))
	}
	if limited && n > longest {
		rules = append(rules, fmt.Sprintf("Member must have length less than or equal to %d", longest))
	}
	if s.re != nil && !s.re.MatchString(text) {
		rules = append(rules, "Member must satisfy regular expression pattern: "+s.GetPattern())
	}
	return rules
}

func (s *shape) fits(text string) bool { return len(s.broken(text)) == 0 }

// fitsValue is fits for any scalar.
func (s *shape) fitsValue(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
	var found violations
	s.check(fd, value, "", &found)
	return found.err() == nil
}

// texts are all of a shape's rules, as AWS lists them when one of a list's entries breaks any.
func (s *shape) texts() []string {
	var rules []string
	if len(s.GetValues()) > 0 {
		return append(rules, enumRule(s.GetValues()))
	}
	if s.Max != nil {
		rules = append(rules, fmt.Sprintf("Member must have value less than or equal to %d", s.GetMax()))
	}
	if s.Min != nil {
		rules = append(rules, fmt.Sprintf("Member must have value greater than or equal to %d", s.GetMin()))
	}
	if s.MaxLength != nil {
		rules = append(rules, fmt.Sprintf("Member must have length less than or equal to %d", s.GetMaxLength()))
	}
	if s.MinLength != nil {
		rules = append(rules, fmt.Sprintf("Member must have length greater than or equal to %d", s.GetMinLength()))
	}
	if s.GetPattern() != "" {
		rules = append(rules, "Member must satisfy regular expression pattern: "+s.GetPattern())
	}
	return rules
}
