package gateway

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
)

const (
	invokePrefix = "/2015-03-31/functions/"
	invokeSuffix = "/invocations"
	codePrefix   = "/doze/v1/code/"
	logsPrefix   = "/doze/v1/functions/"
	logsSuffix   = "/logs"
	backupPath   = "/doze/v1/backup"
	restorePath  = "/doze/v1/restore"
)

// serveHTTP is the front of the REST side. It stands where an http.ServeMux would, which answers
// some paths with an HTML redirect, and in front of grpc-gateway, which knows neither two
// operations on one path nor AWS's bounds. Every answer has a request id and AWS's shape.
func (g *Gateway) serveHTTP(w http.ResponseWriter, r *http.Request) {
	g.requests.Add(1)
	defer g.requests.Add(-1)
	x := &exchange{id: newRequestID()}
	w.Header()[headerRequestID] = []string{x.id.String()}
	defer g.recoverHTTP(w, x)
	if g.leaving.Load() {
		w.Header().Set("Connection", "close")
	}
	path := r.URL.EscapedPath()
	if path == "/readyz" || path == "/healthz" {
		g.serveHealth(w, r, path == "/readyz")
		return
	}
	if path == "/metrics" && g.config.Metrics != nil {
		// As open as the probes: a collector signs nothing, and no figure names a function or an account.
		g.serveMetrics(w, r)
		return
	}
	if strings.HasPrefix(path, codePrefix) {
		// The link itself is the permission: no credentials.
		g.serveCode(w, r, strings.TrimPrefix(path, codePrefix))
		return
	}
	if path == "/" && isSTS(r) {
		g.serveSTS(w, r, x)
		return
	}
	var err error
	if x.caller, x.proof, err = g.config.Authenticator.HTTP(r, serviceLambda); err != nil {
		g.refuse(w, r, x, err)
		return
	}
	if r.Method == http.MethodPost && strings.HasPrefix(path, invokePrefix) && strings.HasSuffix(path, invokeSuffix) {
		if name, ok := invokeName(path); ok {
			g.serveInvoke(w, r, x, name)
			return
		}
	}
	if x.baseURL = g.config.BaseURL; r.Host != "" {
		x.baseURL = baseURL(r)
	}
	if r.Method == http.MethodGet && strings.HasPrefix(path, logsPrefix) && strings.HasSuffix(strings.TrimSuffix(path, "/"), logsSuffix) {
		g.serveLogs(w, r, x)
		return
	}
	if path == backupPath || path == restorePath {
		g.serveArchive(w, r, x, path)
		return
	}
	route, params, err := g.router.match(r.Method, path, r.URL.RawQuery)
	if err != nil {
		g.fail(w, "route", x, err)
		return
	}
	switch {
	case route.operation == "Invoke":
		// A trailing slash, or an escape the fast path leaves alone.
		g.serveInvoke(w, r, x, params["FunctionName"])
	case route.method == nil:
		g.fail(w, route.operation, x, faultf(codeUnknownOperation,
			"The operation %s is not offered by Doze yet.", route.operation))
	default:
		g.serveOperation(w, r, x, route, params)
	}
}

// recoverHTTP turns a bug's panic into a logged 500; net/http alone would drop the connection.
func (g *Gateway) recoverHTTP(w http.ResponseWriter, x *exchange) {
	p := recover()
	switch p {
	case nil:
	case http.ErrAbortHandler:
		panic(p)
	default:
		g.fail(w, "http", x, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
	}
}

// serveOperation hands a request to grpc-gateway: the method and path it knows, a bounded body, and
// nothing else of the request, so that no header or query key means something to it.
func (g *Gateway) serveOperation(w http.ResponseWriter, r *http.Request, x *exchange, route *route, params map[string]string) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		g.fail(w, route.operation, x, faultf(codeValidation, "The query string is malformed: %v.", err))
		return
	}
	x.route, x.params, x.query = route, params, query
	b := &body{
		r: r, control: http.NewResponseController(w), memory: g.memory,
		limit: maxOtherRequest, operation: route.operation,
	}
	if route.operation == "CreateFunction" || route.operation == "UpdateFunctionCode" {
		b.limit = maxCodeRequest
	}
	defer b.release()
	if r.ContentLength > b.limit {
		f, _ := faultOf(b.tooLarge())
		b.refuse(w, f)
		return
	}
	if err := b.prove(x); err != nil {
		g.failBody(w, b, x, err)
		return
	}
	inner := (&http.Request{
		Method:     route.verb,
		URL:        &url.URL{Path: route.template},
		Header:     http.Header{},
		Body:       b,
		Proto:      r.Proto,
		ProtoMajor: r.ProtoMajor,
		ProtoMinor: r.ProtoMinor,
		Host:       r.Host,
		RemoteAddr: r.RemoteAddr,
	}).WithContext(withExchange(r.Context(), x))
	g.mux.ServeHTTP(&answerWriter{ResponseWriter: w, status: route.status}, inner)
}

// answerWriter writes the operation's own status of success where grpc-gateway would write 200, and
// no body beside 204.
type answerWriter struct {
	http.ResponseWriter
	status int
	wrote  bool
}

// WriteHeader implements http.ResponseWriter.
func (a *answerWriter) WriteHeader(status int) {
	if a.wrote {
		return
	}
	a.wrote = true
	a.status = status
	if status == http.StatusNoContent {
		a.Header().Del("Content-Type")
		a.Header().Del("Content-Length")
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answerWriter) Write(p []byte) (int, error) {
	a.WriteHeader(a.status)
	if a.status == http.StatusNoContent {
		return len(p), nil
	}
	return a.ResponseWriter.Write(p)
}

// handleError is grpc-gateway's way to answer with an error.
func (g *Gateway) handleError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	x := exchangeOf(ctx)
	if x == nil {
		x = &exchange{}
	}
	b, ok := r.Body.(*body)
	if !ok || b.err == nil {
		g.fail(w, operationOf(x), x, err)
		return
	}
	if a, ok := w.(*answerWriter); ok {
		w = a.ResponseWriter
	}
	g.failBody(w, b, x, b.err)
}

// failBody answers with why a body was not taken; it may not have been read to its end.
func (g *Gateway) failBody(w http.ResponseWriter, b *body, x *exchange, err error) {
	f, known := faultOf(err)
	if !known {
		g.logFailure(operationOf(x), x, err)
	}
	if f.Code == codeTooLarge || f.Code == codeTooMany || f.Code == codeRequestTimeout {
		b.refuse(w, f)
		return
	}
	f.write(w)
}

// refuse answers a caller who is not let in. A large body is read on for a while, so that who sends
// it sees the answer.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, x *exchange, err error) {
	f, known := faultOf(err)
	if !known {
		g.logFailure("authenticate", x, err)
	}
	if r.ContentLength >= 0 && r.ContentLength <= freeBody {
		f.write(w) // net/http reads on that far
		return
	}
	b := &body{r: r, control: http.NewResponseController(w)}
	b.refuse(w, f)
}

// handleRoutingError cannot happen as long as templates and annotations agree, which a test holds.
func (g *Gateway) handleRoutingError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, _ int) {
	x := exchangeOf(ctx)
	if x == nil {
		x = &exchange{}
	}
	g.fail(w, operationOf(x), x, &Fault{Code: codeUnknownOperation, Message: "No operation of the Lambda API has this path."})
}

func operationOf(x *exchange) string {
	if x.route == nil {
		return ""
	}
	return x.route.operation
}

// fail answers with err, and logs it when it is the platform's own.
func (g *Gateway) fail(w http.ResponseWriter, operation string, x *exchange, err error) {
	f, known := faultOf(err)
	if !known {
		g.logFailure(operation, x, err)
	}
	f.write(w)
}

// serveHealth answers probes. Health is being there; ready is being able to serve calls.
func (g *Gateway) serveHealth(w http.ResponseWriter, r *http.Request, ready bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		faultf(codeUnknownOperation, "%s is not possible here.", r.Method).write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if ready {
		if err := g.config.Ready(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			b := appendJSONString([]byte(`{"ready":false,"reason":`), err.Error())
			_, _ = w.Write(append(b, '}', '\n'))
			return
		}
		_, _ = w.Write([]byte("{\"ready\":true}\n"))
		return
	}
	_, _ = w.Write([]byte("{\"healthy\":true}\n"))
}

// serveMetrics hands a collector's request on, without a body.
func (g *Gateway) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		faultf(codeUnknownOperation, "%s is not possible here.", r.Method).write(w)
		return
	}
	g.config.Metrics.ServeHTTP(w, r)
}

// invokeName is the decoded name in an invocations path, if it is one segment.
func invokeName(path string) (string, bool) {
	if len(path) <= len(invokePrefix)+len(invokeSuffix) {
		return "", false // prefix and suffix share a slash
	}
	name := path[len(invokePrefix) : len(path)-len(invokeSuffix)]
	if name == "" || len(name) > maxPath || strings.IndexByte(name, '/') >= 0 {
		return "", false
	}
	if strings.IndexByte(name, '%') < 0 {
		return name, true
	}
	decoded, err := url.PathUnescape(name)
	return decoded, err == nil
}

// baseURL is how the client reached us.
func baseURL(r *http.Request) string {
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	return scheme + r.Host
}
