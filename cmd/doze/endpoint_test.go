package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeEndpoint answers as a Doze endpoint does, as far as the client commands ask it.
type fakeEndpoint struct {
	*httptest.Server
	t *testing.T

	mu        sync.Mutex
	functions map[string]map[string]any
	// log has one line for each request that changes something or invokes.
	log []string
	// busy is how many times a function answers that its change is still under way.
	busy int
	// fails makes every change end as failed.
	fails bool
	// invoke answers calls.
	invoke http.HandlerFunc
}

func newFakeEndpoint(t *testing.T) *fakeEndpoint {
	f := &fakeEndpoint{t: t, functions: map[string]map[string]any{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2015-03-31/functions", f.list)
	mux.HandleFunc("GET /2015-03-31/functions/", f.list)
	mux.HandleFunc("POST /2015-03-31/functions", f.create)
	mux.HandleFunc("GET /2015-03-31/functions/{name}/configuration", f.get)
	mux.HandleFunc("PUT /2015-03-31/functions/{name}/configuration", f.update)
	mux.HandleFunc("PUT /2015-03-31/functions/{name}/code", f.update)
	mux.HandleFunc("DELETE /2015-03-31/functions/{name}", f.delete)
	mux.HandleFunc("POST /2015-03-31/functions/{name}/invocations", func(w http.ResponseWriter, r *http.Request) {
		f.note("invoke %s type=%s log=%s %s", r.PathValue("name"), r.Header.Get("X-Amz-Invocation-Type"), r.Header.Get("X-Amz-Log-Type"), r.URL.RawQuery)
		w.Header().Set("X-Amzn-Requestid", "8f5d6f3e-0000-4000-8000-000000000001")
		f.invoke(w, r)
	})
	mux.HandleFunc("GET /doze/v1/instances", func(w http.ResponseWriter, _ *http.Request) {
		old := time.Now().Add(-73 * time.Hour).UTC().Format(time.RFC3339)
		fmt.Fprintf(w, `[{"id":"i-1","function":"thumbnail","version":"$LATEST","state":"idle","createdAt":%q,"idleMs":1500,"memoryBytes":10485760,"calls":7,"cold":false,"worker":"w1"},
			{"id":"i-22","function":"report","version":"3","state":"busy","createdAt":%q,"idleMs":0,"memoryBytes":700,"calls":1,"cold":true,"worker":"w1"}]`, old, old)
	})
	mux.HandleFunc("GET /doze/v1/runtimes", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `[{"name":"provided.al2023","path":"","version":""},{"name":"python3.11","path":"/usr/bin/python3.11","version":"3.11.2"}]`)
	})
	mux.HandleFunc("GET /doze/v1/bill", func(w http.ResponseWriter, r *http.Request) {
		month := r.URL.Query().Get("month")
		if month == "" {
			month = "2026-11"
		}
		fmt.Fprintf(w, `{"month":%q,"functions":[
			{"function":"report","requests":3,"mbMs":42112,"gbSeconds":0.041125,"freeRequests":3,"freeGbSeconds":0.041125,"amountNanoUSD":0},
			{"function":"thumbnail","requests":1500000,"mbMs":1024000000,"gbSeconds":1000.5,"freeRequests":999997,"freeGbSeconds":0,"amountNanoUSD":26700060}],
			"totalNanoUSD":26700060,"alwaysOnNanoUSD":10800000000}`, month)
	})
	mux.HandleFunc("GET /doze/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"version":"0.1.0","ready":false,"problems":["no disk space"],"uptimeMs":93784000,"functions":1,"instances":2,"pendingEvents":0,
			"workers":[{"id":"w1","memoryTotalBytes":8589934592,"memoryFreeBytes":1073741824,"instances":2,"sandbox":"process","missing":["isolation: none"],"draining":false,"unavailable":""}],"more":1}`)
	})
	mux.HandleFunc("GET /doze/v1/functions/{name}/logs", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") == "none" {
			refuse(w, 404, "ResourceNotFoundException", "Function not found: none")
			return
		}
		f.note("logs %s %s", r.PathValue("name"), r.URL.RawQuery)
		fmt.Fprint(w, `{"atMs":1767225600123,"stream":"s","message":"START RequestId: 1"}`+"\n\n"+`{"atMs":1767225600124,"stream":"s","message":"tab\there \u00e9"}`+"\n")
	})
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeEndpoint) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// requests is what was logged so far.
func (f *fakeEndpoint) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("X-Amzn-Errortype", code)
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"Type": "User", "Message": message})
}

// put has a function there from the start.
func (f *fakeEndpoint) put(name string, members map[string]any) {
	function := map[string]any{
		"FunctionName": name, "FunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:" + name,
		"Runtime": "python3.11", "Handler": "app.handler", "Role": defaultRole, "MemorySize": 128, "Timeout": 3, "CodeSize": 2048,
		"CodeSha256": "old", "Description": "", "LastModified": "2026-11-23T14:05:06.789+0000", "Version": "$LATEST",
		"State": "Active", "LastUpdateStatus": "Successful",
	}
	for k, v := range members {
		function[k] = v
	}
	f.functions[name] = function
}

// list answers one function a page, so that paging is needed.
func (f *fakeEndpoint) list(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	page := map[string]any{"Functions": []any{}}
	names := []string{"alpha", "beta", "gamma"}
	for i, name := range names {
		function, ok := f.functions[name]
		if ok && (r.URL.Query().Get("Marker") == "" || r.URL.Query().Get("Marker") == name) {
			page["Functions"] = []any{function}
			for _, next := range names[i+1:] {
				if f.functions[next] != nil && page["NextMarker"] == nil {
					page["NextMarker"] = next
				}
			}
			break
		}
	}
	json.NewEncoder(w).Encode(page)
}

func (f *fakeEndpoint) find(w http.ResponseWriter, r *http.Request) map[string]any {
	function := f.functions[r.PathValue("name")]
	if function == nil {
		refuse(w, 404, "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:"+r.PathValue("name"))
	}
	return function
}

func (f *fakeEndpoint) create(w http.ResponseWriter, r *http.Request) {
	var members map[string]any
	if err := json.NewDecoder(r.Body).Decode(&members); err != nil {
		f.t.Error(err)
	}
	name := members["FunctionName"].(string)
	zip := members["Code"].(map[string]any)["ZipFile"].(string)
	delete(members, "Code")
	f.note("create %s", compact(members))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(name, members)
	f.change(f.functions[name], zip, "State", "Pending")
	w.WriteHeader(http.StatusCreated)
	json.NewEncoder(w).Encode(f.functions[name])
}

func (f *fakeEndpoint) update(w http.ResponseWriter, r *http.Request) {
	var members map[string]any
	if err := json.NewDecoder(r.Body).Decode(&members); err != nil {
		f.t.Error(err)
	}
	zip, _ := members["ZipFile"].(string)
	delete(members, "ZipFile")
	f.note("update %s %s", r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:], compact(members))
	f.mu.Lock()
	defer f.mu.Unlock()
	function := f.find(w, r)
	if function == nil {
		return
	}
	for k, v := range members {
		function[k] = v
	}
	f.change(function, zip, "LastUpdateStatus", "InProgress")
	json.NewEncoder(w).Encode(function)
}

// change begins a change that get ends.
func (f *fakeEndpoint) change(function map[string]any, zip, member, state string) {
	if data, err := base64.StdEncoding.DecodeString(zip); zip != "" && err == nil {
		sum := sha256.Sum256(data)
		function["CodeSha256"], function["CodeSize"] = base64.StdEncoding.EncodeToString(sum[:]), len(data)
	}
	function[member] = state
	f.busy = 3
}

func (f *fakeEndpoint) get(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	function := f.find(w, r)
	if function == nil {
		return
	}
	if f.busy--; f.busy <= 0 && (function["State"] == "Pending" || function["LastUpdateStatus"] == "InProgress") {
		function["State"], function["LastUpdateStatus"] = "Active", "Successful"
		if f.fails {
			function["State"], function["StateReason"] = "Failed", "the package cannot be unpacked"
		}
	}
	json.NewEncoder(w).Encode(function)
}

func (f *fakeEndpoint) delete(w http.ResponseWriter, r *http.Request) {
	f.note("delete %s %s", r.PathValue("name"), r.URL.RawQuery)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.find(w, r) != nil {
		delete(f.functions, r.PathValue("name"))
		w.WriteHeader(http.StatusNoContent)
	}
}

func compact(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// result is what one run of the command came to.
type result struct {
	code           int
	stdout, stderr string
}

// doze runs the command against the endpoint.
func (f *fakeEndpoint) doze(stdin string, args ...string) result {
	f.t.Helper()
	f.t.Setenv(endpointEnv, f.URL)
	var stdout, stderr bytes.Buffer
	code := run(context.Background(), args, strings.NewReader(stdin), &stdout, &stderr)
	clean := func(b *bytes.Buffer) string {
		return strings.NewReplacer(f.URL, "ENDPOINT").Replace(b.String())
	}
	return result{code, clean(&stdout), clean(&stderr)}
}

func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Amz-Executed-Version", "$LATEST")
	w.Header().Set(coldHeader, "true")
	w.Header().Set(instanceHeader, "i-1")
	w.Header().Set(timingHeader, "queue=1;init=2;handler=3")
	if r.Header.Get("X-Amz-Log-Type") == "Tail" {
		w.Header().Set("X-Amz-Log-Result", base64.StdEncoding.EncodeToString([]byte("START\nhello\nREPORT\n")))
	}
	body, _ := io.ReadAll(r.Body)
	w.Write(body)
}
