package gateway

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// serveInvoke is the REST face: plain, since grpc-gateway's generic way costs twice the
// allocations on the path that everything else waits for.
func (g *Gateway) serveInvoke(w http.ResponseWriter, r *http.Request, x *exchange, name string) {
	in := &invocation{id: x.id, caller: x.caller, name: name}
	if err := g.readInvocation(r, in); err != nil {
		g.fail(w, "Invoke", x, err)
		return
	}
	b := &body{
		r: r, control: http.NewResponseController(w), memory: g.memory,
		limit: int64(payloadLimit(in.kind)), operation: "InvokeFunction",
	}
	defer b.release()
	var err error
	if in.payload, err = b.bytes(); err != nil {
		f, _ := faultOf(err)
		b.refuse(w, f)
		return
	}
	if err := x.prove(in.payload); err != nil {
		g.fail(w, "Invoke", x, err)
		return
	}
	if err := g.service.authorize(x.caller, "Invoke", nil); err != nil {
		g.fail(w, "Invoke", x, err)
		return
	}
	ctx := r.Context()
	if !registry.IsName(name) {
		ctx = withExchange(ctx, x) // what target needs
	}
	answer, err := g.service.invoke(ctx, in)
	if err != nil {
		g.fail(w, "Invoke", x, err)
		return
	}
	h := w.Header()
	switch in.kind {
	case typeDryRun:
		w.WriteHeader(http.StatusNoContent)
		return
	case typeEvent:
		h[headerRequestID] = []string{in.id.String()} // the store may have taken another
		h["Content-Length"] = []string{"0"}
		w.WriteHeader(http.StatusAccepted)
		return
	}
	// One array holds all values: a slice for each would be half of this path's allocations.
	values := make([]string, 0, 8)
	header := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	header("Content-Type", "application/json")
	header("Content-Length", strconv.Itoa(len(answer.Payload)))
	header("X-Amz-Executed-Version", answer.ExecutedVersion)
	if answer.FunctionError != "" {
		header("X-Amz-Function-Error", answer.FunctionError)
	}
	if in.tail {
		header("X-Amz-Log-Result", base64.StdEncoding.EncodeToString(answer.LogTail))
	}
	header("X-Doze-Cold", strconv.FormatBool(answer.Cold))
	header("X-Doze-Timing", timing(answer))
	header("X-Doze-Instance", answer.Instance)
	if len(answer.Payload) > freeBody {
		// A client that does not read must not hold the answer for ever.
		_ = b.control.SetWriteDeadline(time.Now().Add(graceTimeout + time.Duration(len(answer.Payload))*time.Second/minRate))
		defer func() { _ = b.control.SetWriteDeadline(time.Time{}) }()
	}
	// The client may have gone; the call has run and is accounted for.
	_, _ = w.Write(answer.Payload)
}

// readInvocation takes what travels in headers and query. What is simple is checked by hand; anything
// else goes through the validator, whose words the error then has.
func (g *Gateway) readInvocation(r *http.Request, in *invocation) error {
	h := r.Header
	in.kind = h.Get("X-Amz-Invocation-Type")
	logType := h.Get("X-Amz-Log-Type")
	in.clientContext = h.Get("X-Amz-Client-Context")
	in.trace = h.Get("X-Amzn-Trace-Id")
	in.tail = logType == "Tail"
	qualified := false
	if r.URL.RawQuery != "" {
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return faultf(codeValidation, "The query string is malformed: %v.", err)
		}
		in.qualifier, qualified = query.Get("Qualifier"), query.Has("Qualifier")
	}
	simple := registry.IsName(in.name) &&
		(!qualified || registry.IsQualifier(in.qualifier)) &&
		(in.kind == "" || in.kind == typeRequestResponse || in.kind == typeEvent || in.kind == typeDryRun) &&
		(logType == "" || logType == "None" || logType == "Tail") &&
		h["X-Amz-Durable-Execution-Name"] == nil && h["X-Amz-Tenant-Id"] == nil
	if !simple {
		request := &dozev1.InvokeRequest{
			FunctionName:         &in.name,
			InvocationType:       optional(in.kind),
			LogType:              optional(logType),
			DurableExecutionName: optional(h.Get("X-Amz-Durable-Execution-Name")),
			TenantId:             optional(h.Get("X-Amz-Tenant-Id")),
		}
		if qualified {
			request.Qualifier = &in.qualifier
		}
		if err := g.validator.check(request); err != nil {
			return err
		}
		if err := refuseInvokeMembers(request); err != nil {
			return err
		}
	}
	if in.kind == "" {
		in.kind = typeRequestResponse
	}
	return nil
}

// timing is X-Doze-Timing: where the time of a call went, in microseconds.
func timing(a *invoke.Answer) string {
	b := make([]byte, 0, 96)
	b = append(b, "queue="...)
	b = strconv.AppendInt(b, a.Queue.Microseconds(), 10)
	b = append(b, ";claim="...)
	b = strconv.AppendInt(b, a.Claim.Microseconds(), 10)
	b = append(b, ";mount="...)
	b = strconv.AppendInt(b, a.Mount.Microseconds(), 10)
	b = append(b, ";init="...)
	b = strconv.AppendInt(b, a.Init.Microseconds(), 10)
	b = append(b, ";handler="...)
	b = strconv.AppendInt(b, a.Handler.Microseconds(), 10)
	return string(b)
}
