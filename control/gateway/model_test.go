package gateway

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// model is testdata/model.json: the API model that ships in AWS's SDKs (version 2015-03-31), reduced to
// the operations offered and to what is checked here.
type model struct {
	Operations map[string]struct {
		Method, URI, Input, Output string
		Status                     int
	}
	Shapes map[string]modelShape
}

type modelShape struct {
	Type      string
	Min, Max  *float64
	Pattern   string
	Enum      []string
	Required  []string
	Sensitive bool
	Member    string
	Key       string
	Value     string
	Members   map[string]struct{ Shape, Location, LocationName string }
}

func readModel(t *testing.T) *model {
	t.Helper()
	raw, err := os.ReadFile("testdata/model.json")
	if err != nil {
		t.Fatal(err)
	}
	var m model
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return &m
}

// renamed are the messages whose name differs from the model's shape.
var renamed = map[string]string{"InvocationRequest": "InvokeRequest", "InvocationResponse": "InvokeResponse"}

// narrower are the figures in which the recorded service differs from the model.
var narrower = map[string]float64{"MemorySize": 10240, "Timeout": 900}

// own are the members that Doze adds.
var own = map[string][]string{"CreateFunctionRequest": {"Network"}, "UpdateFunctionConfigurationRequest": {"Network"}, "FunctionConfiguration": {"Network"}}

// TestModel holds the proto files to the model: every operation's path, verb, status, members, types
// and constraints.
func TestModel(t *testing.T) {
	m := readModel(t)
	service := dozev1.File_doze_v1_api_proto.Services().ByName("Lambda")
	c := modelCheck{t: t, model: m, seen: map[string]bool{}}
	for name, op := range m.Operations {
		method := service.Methods().ByName(protoreflect.Name(name))
		if method == nil {
			t.Errorf("%s is not an operation of the service", name)
			continue
		}
		status := op.Status
		if name == "DeleteFunction" {
			status = 204 // recorded; the model says 200
		}
		route := newRoute(name, op.Method, op.URI, method)
		if route.status != status && name != "Invoke" {
			t.Errorf("%s answers %d, want %d", name, route.status, status)
		}
		if name != "Invoke" {
			c.annotation(name, op.Method, op.URI, method)
		}
		c.message(op.Input, method.Input(), true)
		if op.Output != "" {
			c.message(op.Output, method.Output(), false)
		}
	}
}

type modelCheck struct {
	t     *testing.T
	model *model
	seen  map[string]bool
}

func (c *modelCheck) annotation(name, verb, uri string, method protoreflect.MethodDescriptor) {
	rule, _ := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
	path := map[string]string{"GET": rule.GetGet(), "POST": rule.GetPost(), "PUT": rule.GetPut(), "DELETE": rule.GetDelete()}[verb]
	var template []string
	for _, part := range strings.Split(path, "/") {
		if strings.HasPrefix(part, "{") {
			fd := method.Input().Fields().ByName(protoreflect.Name(strings.Trim(part, "{}")))
			part = "{" + fd.JSONName() + "}"
		}
		template = append(template, part)
	}
	if got := strings.Join(template, "/"); got != uri {
		c.t.Errorf("%s is annotated with %s %q, want %q", name, verb, got, uri)
	}
}

func (c *modelCheck) message(shapeName string, md protoreflect.MessageDescriptor, input bool) {
	key := fmt.Sprint(shapeName, input)
	if c.seen[key] {
		return
	}
	c.seen[key] = true
	want := shapeName
	if renamed[want] != "" {
		want = renamed[want]
	}
	if string(md.Name()) != want {
		c.t.Errorf("message %s stands for shape %s", md.Name(), shapeName)
	}
	shape := c.model.Shapes[shapeName]
	if md.Fields().Len() != len(shape.Members)+len(own[shapeName]) {
		c.t.Errorf("%s has %d members, want %d", shapeName, md.Fields().Len(), len(shape.Members)+len(own[shapeName]))
	}
	for _, name := range own[shapeName] {
		if fd := md.Fields().ByJSONName(name); fd == nil || !fd.HasPresence() || shape.Members[name].Shape != "" {
			c.t.Errorf("%s.%s is missing, always there, or AWS's", shapeName, name)
		}
	}
	for name, member := range shape.Members {
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			c.t.Errorf("%s.%s is missing", shapeName, name)
			continue
		}
		c.field(shapeName+"."+name, fd, member.Shape, input)
		rule := memberOf(fd)
		if input && rule.GetRequired() != slices.Contains(shape.Required, name) {
			c.t.Errorf("%s.%s: required is %v", shapeName, name, rule.GetRequired())
		}
		location := map[string]dozev1.Location{
			"uri": dozev1.Location_LOCATION_PATH, "querystring": dozev1.Location_LOCATION_QUERY,
			"header": dozev1.Location_LOCATION_HEADER, "statusCode": dozev1.Location_LOCATION_STATUS,
		}[member.Location]
		if name == "Payload" {
			location = dozev1.Location_LOCATION_PAYLOAD
		}
		if rule.GetLocation() != location {
			c.t.Errorf("%s.%s travels in %v, want %v", shapeName, name, rule.GetLocation(), location)
		}
		bound := rule.GetName()
		if bound == "" {
			bound = name
		}
		if member.LocationName != "" && bound != member.LocationName {
			c.t.Errorf("%s.%s is called %q, want %q", shapeName, name, bound, member.LocationName)
		}
	}
}

func (c *modelCheck) field(at string, fd protoreflect.FieldDescriptor, shapeName string, input bool) {
	shape := c.model.Shapes[shapeName]
	list := fd
	if fd.Message() != nil {
		if inner := inlineField(fd.Message()); inner != nil {
			list = inner
		}
	}
	switch shape.Type {
	case "structure":
		c.message(shapeName, fd.Message(), input)
		return
	case "list":
		if !list.IsList() {
			c.t.Errorf("%s is not a list", at)
			return
		}
		if c.model.Shapes[shape.Member].Type == "structure" {
			c.message(shape.Member, list.Message(), input)
		}
	case "map":
		if !fd.IsMap() {
			c.t.Errorf("%s is not a map", at)
			return
		}
	default:
		kind := map[string]protoreflect.Kind{
			"string": protoreflect.StringKind, "integer": protoreflect.Int32Kind, "long": protoreflect.Int64Kind,
			"double": protoreflect.DoubleKind, "boolean": protoreflect.BoolKind, "blob": protoreflect.BytesKind,
			"timestamp": protoreflect.DoubleKind,
		}[shape.Type]
		if fd.Kind() != kind || !fd.HasPresence() {
			c.t.Errorf("%s is %v (presence %v), want an optional %v", at, fd.Kind(), fd.HasPresence(), kind)
		}
	}
	if !input {
		return
	}
	id := memberOf(fd).GetShape()
	rules, _ := proto.GetExtension(dozev1.Shape(0).Descriptor().Values().ByNumber(id.Number()).Options(), dozev1.E_Constraint).(*dozev1.Constraint)
	c.constraint(at, shapeName, rules)
	for _, part := range []struct {
		shape string
		id    dozev1.Shape
	}{{shape.Member, rules.GetItems()}, {shape.Value, rules.GetItems()}, {shape.Key, rules.GetKeys()}} {
		if part.shape == "" || c.model.Shapes[part.shape].Type == "structure" {
			continue
		}
		inner, _ := proto.GetExtension(dozev1.Shape(0).Descriptor().Values().ByNumber(part.id.Number()).Options(), dozev1.E_Constraint).(*dozev1.Constraint)
		c.constraint(at+"[]", part.shape, inner)
	}
}

func (c *modelCheck) constraint(at, shapeName string, got *dozev1.Constraint) {
	shape := c.model.Shapes[shapeName]
	if most, ok := narrower[shapeName]; ok {
		shape.Max = &most
	}
	var low, high *float64
	asFloat := func(n float64) *float64 { return &n }
	switch shape.Type {
	case "integer", "long", "double":
		if got != nil && got.Min != nil {
			low = asFloat(float64(got.GetMin()))
		}
		if got != nil && got.Max != nil {
			high = asFloat(float64(got.GetMax()))
		}
	default:
		if got != nil && got.MinLength != nil {
			low = asFloat(float64(got.GetMinLength()))
		}
		if got != nil && got.MaxLength != nil {
			high = asFloat(float64(got.GetMaxLength()))
		}
		if shape.Min != nil && *shape.Min == 0 {
			shape.Min = nil // no length is below 0
		}
	}
	same := func(a, b *float64) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	if !same(low, shape.Min) || !same(high, shape.Max) {
		c.t.Errorf("%s (%s): bounds differ from the model's", at, shapeName)
	}
	if got.GetPattern() != shape.Pattern {
		c.t.Errorf("%s: pattern %q, want %q", at, got.GetPattern(), shape.Pattern)
	}
	if !slices.Equal(got.GetValues(), shape.Enum) {
		c.t.Errorf("%s: values %v, want %v", at, got.GetValues(), shape.Enum)
	}
	if shape.Sensitive && !got.GetSensitive() {
		c.t.Errorf("%s is sensitive", at)
	}
}

// TestOperationTable holds the table of all operations to the model where both know one.
func TestOperationTable(t *testing.T) {
	r, err := newRouter(dozev1.File_doze_v1_api_proto.Services().ByName("Lambda"))
	if err != nil {
		t.Fatal(err)
	}
	m := readModel(t)
	offered, all := 0, 0
	for _, route := range r.routes {
		if route.own {
			continue
		}
		all++
		op, ok := m.Operations[route.operation]
		if ok != (route.method != nil) {
			t.Errorf("%s: offered is %v", route.operation, route.method != nil)
		}
		if !ok {
			continue
		}
		offered++
		if want := newRoute(route.operation, op.Method, op.URI, route.method); want.template != route.template || want.verb != route.verb {
			t.Errorf("%s is at %s %s", route.operation, route.verb, route.template)
		}
	}
	if offered != len(m.Operations) || all != 85 {
		t.Errorf("the table has %d operations, %d offered", all, offered)
	}
}
