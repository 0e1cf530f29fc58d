package gateway

import (
	_ "embed"
	"fmt"
	"net/url"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// operationTable is every operation of the model, so that one that is not offered yet can be told
// from one that does not exist.
//
//go:embed operations.txt
var operationTable string

const (
	// maxPath bounds a request path; the longest ARN of the model is far below.
	maxPath = 8 << 10
	// maxSegments bounds its parts; no operation has more than six.
	maxSegments = 16
)

// route is one operation's place in the URL space.
type route struct {
	operation string
	verb      string
	segments  []segment
	// query must be there with this value ("find=LayerVersion"); empty for most.
	queryKey, queryValue string
	// method is the RPC that serves it; nil when Doze does not offer the operation.
	method protoreflect.MethodDescriptor
	// template is a path that grpc-gateway's own pattern matches; parameters are bound by us.
	template string
	// status of success.
	status int
	own    bool
}

// segment is a literal, or a parameter when param is not empty.
type segment struct {
	literal string
	param   string
}

// router finds the operation of a verb and path. It is built once and safe for concurrent use.
type router struct {
	routes []*route
}

// newRouter reads the model's table and the service's own annotations.
func newRouter(service protoreflect.ServiceDescriptor) (*router, error) {
	r := &router{}
	offered := map[string]bool{}
	for line := range strings.Lines(operationTable) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return nil, fmt.Errorf("operation table: %q", line)
		}
		method := service.Methods().ByName(protoreflect.Name(fields[0]))
		offered[fields[0]] = true
		r.routes = append(r.routes, newRoute(fields[0], fields[1], fields[2], method))
	}
	methods := service.Methods()
	for i := range methods.Len() {
		method := methods.Get(i)
		rule, _ := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
		if offered[string(method.Name())] || rule == nil {
			continue
		}
		for verb, path := range map[string]string{"GET": rule.GetGet(), "POST": rule.GetPost(), "DELETE": rule.GetDelete()} {
			if path != "" {
				r.routes = append(r.routes, newRoute(string(method.Name()), verb, path, method))
			}
		}
	}
	return r, nil
}

func newRoute(operation, verb, uri string, method protoreflect.MethodDescriptor) *route {
	path, query, _ := strings.Cut(uri, "?")
	r := &route{operation: operation, verb: verb, method: method, status: 200}
	r.queryKey, r.queryValue, _ = strings.Cut(query, "=")
	template := make([]string, 0, 6)
	for _, s := range strings.Split(strings.Trim(path, "/"), "/") {
		if name, ok := strings.CutPrefix(s, "{"); ok {
			r.segments = append(r.segments, segment{param: memberInPath(strings.TrimSuffix(name, "}"), method)})
			template = append(template, "-")
			continue
		}
		r.segments = append(r.segments, segment{literal: s})
		template = append(template, s)
	}
	r.template = "/" + strings.Join(template, "/")
	if method != nil {
		if o, _ := proto.GetExtension(method.Options(), dozev1.E_Operation).(*dozev1.Operation); o != nil {
			if o.GetStatus() != 0 {
				r.status = int(o.GetStatus())
			}
			r.own = o.GetOwn()
		}
	}
	return r
}

// memberInPath is a path parameter's name as members are bound by: the model's table has it, an
// annotation the field's own.
func memberInPath(name string, method protoreflect.MethodDescriptor) string {
	if method != nil {
		if fd := method.Input().Fields().ByName(protoreflect.Name(name)); fd != nil {
			return fd.JSONName()
		}
	}
	return name
}

// match finds the route. params are the decoded path parameters, by the model's member names.
// Its error is a Fault: an unknown operation, or an empty parameter.
func (r *router) match(verb, escapedPath, rawQuery string) (found *route, params map[string]string, err error) {
	segments, err := splitPath(escapedPath)
	if err != nil {
		return nil, nil, err
	}
	var known bool // some verb serves this path
	for _, candidate := range r.routes {
		if !candidate.fits(segments) {
			continue
		}
		known = true
		if candidate.verb != verb {
			continue
		}
		if candidate.queryKey != "" && !hasQuery(rawQuery, candidate.queryKey, candidate.queryValue) {
			continue
		}
		// The more specific wins: one with a query over one without, a literal over a parameter.
		if found == nil || candidate.rank() > found.rank() {
			found = candidate
		}
	}
	if found == nil {
		if known {
			return nil, nil, faultf(codeUnknownOperation, "No operation of the Lambda API has %s on this path.", verb)
		}
		return nil, nil, &Fault{Code: codeUnknownOperation, Message: "No operation of the Lambda API has this path."}
	}
	params = map[string]string{}
	for i, s := range found.segments {
		if s.param == "" {
			continue
		}
		if segments[i] == "" {
			var v violations
			empty := ""
			v.add(&empty, strings.ToLower(s.param[:1])+s.param[1:], "Member must have length greater than or equal to 1")
			return nil, nil, v.err()
		}
		params[s.param] = segments[i]
	}
	return found, params, nil
}

func (r *route) fits(segments []string) bool {
	if len(segments) != len(r.segments) {
		return false
	}
	for i, s := range r.segments {
		if s.param == "" && s.literal != segments[i] {
			return false
		}
	}
	return true
}

func (r *route) rank() int {
	rank := 0
	for _, s := range r.segments {
		if s.param == "" {
			rank += 2
		}
	}
	if r.queryKey != "" {
		rank++
	}
	return rank
}

// splitPath takes a path apart and decodes each part on its own, so that an escaped slash stays in
// its part. One trailing slash is taken off; an empty part elsewhere stays, as "".
func splitPath(escaped string) ([]string, error) {
	if len(escaped) > maxPath || escaped == "" || escaped[0] != '/' {
		return nil, &Fault{Code: codeUnknownOperation, Message: "No operation of the Lambda API has this path."}
	}
	if len(escaped) > 1 {
		escaped = strings.TrimSuffix(escaped, "/")
	}
	if strings.Count(escaped, "/") > maxSegments {
		return nil, &Fault{Code: codeUnknownOperation, Message: "No operation of the Lambda API has this path."}
	}
	segments := strings.Split(escaped[1:], "/")
	for i, s := range segments {
		decoded, err := url.PathUnescape(s)
		if err != nil {
			return nil, faultf(codeValidation, "The path has a bad escape: %v.", err)
		}
		segments[i] = decoded
	}
	return segments, nil
}

func hasQuery(rawQuery, key, value string) bool {
	for part := range strings.SplitSeq(rawQuery, "&") {
		k, v, _ := strings.Cut(part, "=")
		if k == key && v == value {
			return true
		}
	}
	return false
}
