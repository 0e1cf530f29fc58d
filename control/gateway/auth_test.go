package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
	"github.com/doze-run/doze/proto/dozeauth"
)

const otherAccount = "222222222222"

// locked is a world whose gateway verifies keys.
type locked struct {
	*world
}

// key is one access key that a test signs with.
type key struct{ id, secret string }

func newLocked(t *testing.T) *locked {
	t.Helper()
	w := newWorld(t)
	w.clock.now = time.Now() // the SDK signs by the real clock
	g, err := Open(Config{
		Registry: hookedState{w.state, w}, Proposer: w, Code: w.code, Invoker: w.invoker, Platform: shownPlatform{},
		Authenticator: NewKeys(w.state.AccessKey, plainCipher{}, "us-east-1", w.clock.Now), Cipher: plainCipher{},
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Now: w.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.gateway = g
	w.server = httptest.NewUnstartedServer(nil)
	w.server.Config = g.HTTPServer()
	w.server.Start()
	t.Cleanup(w.server.Close)
	return &locked{w}
}

// key puts a key into the state.
func (l *locked) key(account, role string) key {
	l.t.Helper()
	id, secret := NewSecret()
	_, err := l.state.Apply(registry.PutAccessKey{Key: registry.AccessKey{ID: id, Account: account, Role: role, Sealed: []byte(secret)}})
	if err != nil {
		l.t.Fatal(err)
	}
	return key{id, secret}
}

// as is an unmodified AWS client with the key.
func (l *locked) as(k key) *lambda.Client {
	return l.client(func(o *lambda.Options) { o.Credentials = credentials.NewStaticCredentialsProvider(k.id, k.secret, "") })
}

// signed sends one request that the SDK's signer signed at a time, after change saw it.
func (l *locked) signed(k key, at time.Time, service, method, target, body string, change func(*http.Request)) (*http.Response, string) {
	l.t.Helper()
	r, err := http.NewRequest(method, l.server.URL+target, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	if service == serviceSTS {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	sum := sha256.Sum256([]byte(body))
	creds := aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret}
	if err := v4.NewSigner().SignHTTP(l.t.Context(), creds, r, hex.EncodeToString(sum[:]), service, "us-east-1", at); err != nil {
		l.t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		l.t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return answer, string(text)
}

func TestSignatures(t *testing.T) {
	l := newLocked(t)
	deployer := l.key(DevAccount, registry.RoleDeployer)
	if _, err := l.as(deployer).CreateFunction(t.Context(), createInput("f")); err != nil {
		t.Fatal(err)
	}
	gone := l.key(DevAccount, registry.RoleDeployer)
	if _, err := l.state.Apply(registry.DeleteAccessKey{ID: gone.id}); err != nil {
		t.Fatal(err)
	}
	now := l.clock.Now()
	replaceBody := func(body string) func(*http.Request) {
		return func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
	}
	large := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		name    string
		key     key
		at      time.Time
		service string
		body    string
		change  func(*http.Request)
		status  int
		code    string
		message string
	}{
		{name: "right", key: deployer, body: `{"a":1}`, status: 200},
		{name: "no signature", key: deployer, change: func(r *http.Request) { r.Header.Del("Authorization") }, status: 403, code: "MissingAuthenticationTokenException", message: "Missing Authentication Token"},
		{name: "large body without signature", key: deployer, body: large, change: func(r *http.Request) { r.Header.Del("Authorization") }, status: 403, code: "MissingAuthenticationTokenException", message: "Missing Authentication Token"},
		{name: "not SigV4", key: deployer, change: func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, status: 403, code: "IncompleteSignatureException", message: "Authorization header requires 'Credential' parameter."},
		{name: "wrong secret", key: key{deployer.id, "wrong"}, status: 403, code: "InvalidSignatureException", message: "The request signature we calculated does not match"},
		{name: "unknown key", key: key{"AKIAIOSFODNN7EXAMPLE", "x"}, status: 403, code: "UnrecognizedClientException", message: "The security token included in the request is invalid."},
		{name: "revoked key", key: gone, status: 403, code: "UnrecognizedClientException", message: "The security token included in the request is invalid."},
		{name: "session token", key: deployer, change: func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") }, status: 403, code: "InvalidSignatureException", message: "'X-Amz-Security-Token' must be a 'SignedHeader'"},
		{name: "clock behind", key: deployer, at: now.Add(-16 * time.Minute), status: 403, code: "InvalidSignatureException", message: "Signature expired: "},
		{name: "clock ahead", key: deployer, at: now.Add(16 * time.Minute), status: 403, code: "InvalidSignatureException", message: "Signature not yet current: "},
		{name: "clock a little behind", key: deployer, at: now.Add(-14 * time.Minute), status: 200},
		{name: "another service", key: deployer, service: "s3", status: 403, code: "InvalidSignatureException", message: "Credential should be scoped to correct service: 'lambda'. "},
		{name: "body changed", key: deployer, body: `{"a":1}`, change: replaceBody(`{"a":2}`), status: 403, code: "InvalidSignatureException", message: "does not match"},
		{name: "body put in", key: deployer, change: replaceBody(`1`), status: 403, code: "InvalidSignatureException", message: "does not match"},
		{name: "header put in", key: deployer, change: func(r *http.Request) { r.Header.Set("X-Amz-Invocation-Type", "Event") }, status: 403, code: "InvalidSignatureException", message: "'X-Amz-Invocation-Type' must be a 'SignedHeader'"},
		{name: "query put in", key: deployer, change: func(r *http.Request) { r.URL.RawQuery = "Qualifier=1" }, status: 403, code: "InvalidSignatureException", message: "does not match"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.at.IsZero() {
				c.at = now
			}
			if c.service == "" {
				c.service = serviceLambda
			}
			answer, body := l.signed(c.key, c.at, c.service, "POST", invokeF, c.body, c.change)
			if answer.StatusCode != c.status || answer.Header.Get(headerErrorType) != c.code || !strings.Contains(body, c.message) {
				t.Errorf("%s %s: %s\nwant %d %s: %s", answer.Status, answer.Header.Get(headerErrorType), body, c.status, c.code, c.message)
			}
		})
	}
	// The same request, as often as one likes within the window (AWS).
	for range 3 {
		if answer, body := l.signed(deployer, now, serviceLambda, "POST", invokeF, "1", nil); answer.StatusCode != 200 {
			t.Errorf("again: %s %s", answer.Status, body)
		}
	}
}

// A client that names its body's hash is refused before its body is read, and its body must have it.
func TestPayloadHashHeader(t *testing.T) {
	l := newLocked(t)
	k := l.key(DevAccount, registry.RoleDeployer)
	if _, err := l.as(k).CreateFunction(t.Context(), createInput("f")); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("1"))
	for claimed, want := range map[string]int{hex.EncodeToString(sum[:]): 200, "UNSIGNED-PAYLOAD": 403, hex.EncodeToString(make([]byte, 32)): 403} {
		r, err := http.NewRequest("POST", l.server.URL+invokeF, strings.NewReader("1"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Amz-Content-Sha256", claimed)
		if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret}, r, claimed, "lambda", "us-east-1", time.Now()); err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: %s", claimed, answer.Status)
		}
	}
}

func TestPresigned(t *testing.T) {
	l := newLocked(t)
	k := l.key(DevAccount, registry.RoleDeployer)
	if _, err := l.as(k).CreateFunction(t.Context(), createInput("f")); err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequest("GET", l.server.URL+"/2015-03-31/functions/f?X-Amz-Expires=60", nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(nil)
	uri, _, err := v4.NewSigner().PresignHTTP(t.Context(), aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret}, r, hex.EncodeToString(sum[:]), "lambda", "us-east-1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(uri, l.server.URL)
	if answer, body := l.do("GET", path, ""); answer.StatusCode != 200 {
		t.Errorf("%s %s", answer.Status, body)
	}
	if answer, body := l.do("DELETE", path, ""); answer.StatusCode != 403 || !strings.Contains(body, "does not match") {
		t.Errorf("another method: %s %s", answer.Status, body)
	}
	l.clock.advance(2 * time.Minute)
	if answer, body := l.do("GET", path, ""); answer.StatusCode != 403 || !strings.Contains(body, "Signature expired") {
		t.Errorf("later: %s %s", answer.Status, body)
	}
}

func TestRoles(t *testing.T) {
	l := newLocked(t)
	root, admin := l.key(DevAccount, registry.RoleRoot), l.key(DevAccount, registry.RoleAdmin)
	deployer, invoker := l.key(DevAccount, registry.RoleDeployer), l.key(DevAccount, registry.RoleInvoker)
	later := l.key(DevAccount, "auditor") // of a newer Doze
	if _, err := l.as(deployer).CreateFunction(t.Context(), createInput("f")); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range []struct {
		method, path, body string
		// allowed are root, admin, deployer, invoker, and a role that is not known.
		allowed string
		action  string
	}{
		{"POST", invokeF, "1", "radi", "lambda:InvokeFunction"},
		{"GET", "/2016-08-19/account-settings", "", "radi", "lambda:GetAccountSettings"},
		{"GET", "/doze/v1/runtimes", "", "radi", "doze:ListRuntimes"},
		{"GET", "/doze/v1/status", "", "radi", "doze:GetStatus"},
		{"GET", "/2015-03-31/functions/f", "", "rad", "lambda:GetFunction"},
		{"GET", "/2015-03-31/functions", "", "rad", "lambda:ListFunctions"},
		{"GET", "/doze/v1/bill", "", "rad", "doze:GetBill"},
		{"GET", "/doze/v1/instances", "", "rad", "doze:ListInstances"},
		{"GET", "/doze/v1/functions/f/logs", "", "rad", "doze:TailLogs"},
		{"PUT", "/2017-10-31/functions/f/concurrency", `{"ReservedConcurrentExecutions":1}`, "rad", "lambda:PutFunctionConcurrency"},
		{"GET", "/doze/v1/keys", "", "ra", "doze:ListKeys"},
		{"POST", "/doze/v1/keys", `{"role":"invoker"}`, "ra", "doze:CreateKey"},
		{"POST", "/doze/v1/keys", `{"role":"root"}`, "r", "doze:CreateKey"},
		{"POST", "/doze/v1/keys", `{"role":"invoker","account":"222222222222"}`, "r", "doze:CreateKey"},
		{"GET", "/doze/v1/keys?account=222222222222", "", "r", "doze:ListKeys"},
		{"GET", "/doze/v1/nodes", "", "r", "doze:ListNodes"},
		{"POST", "/doze/v1/nodes/w1/drain", "", "r", "doze:DrainNode"},
		{"DELETE", "/doze/v1/nodes/w1?force=true", "", "r", "doze:RemoveNode"},
	} {
		for letter, k := range map[byte]key{'r': root, 'a': admin, 'd': deployer, 'i': invoker, 'x': later} {
			answer, body := l.signed(k, now, serviceLambda, c.method, c.path, c.body, nil)
			if allowed := strings.IndexByte(c.allowed, letter) >= 0; allowed != (answer.StatusCode/100 == 2) {
				t.Errorf("%s %s %s as %c: %s %s", c.method, c.path, c.body, letter, answer.Status, body)
			} else if !allowed && (answer.StatusCode != 403 || answer.Header.Get(headerErrorType) != codeAccessDenied ||
				!strings.Contains(body, " is not authorized to perform: "+c.action+" on resource: ")) {
				t.Errorf("%s %s as %c: %s %s", c.method, c.path, letter, answer.Status, body)
			}
		}
	}
	_, err := l.as(invoker).DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("f")})
	wantFault(t, err, codeAccessDenied, "User: arn:aws:iam::000000000000:user/invoker/"+invoker.id+
		" is not authorized to perform: lambda:DeleteFunction on resource: arn:aws:lambda:us-east-1:000000000000:function:f because no identity-based policy allows the lambda:DeleteFunction action")
}

func TestKeyOperations(t *testing.T) {
	l := newLocked(t)
	root, admin := l.key(DevAccount, registry.RoleRoot), l.key(DevAccount, registry.RoleAdmin)
	other := l.key(otherAccount, registry.RoleAdmin)
	now := time.Now()
	answer, body := l.signed(admin, now, serviceLambda, "POST", "/doze/v1/keys", `{"role":"deployer","description":"ci"}`, nil)
	id, _, _ := strings.Cut(strings.TrimPrefix(body, `{"accessKeyId":"`), `"`)
	if answer.StatusCode != 201 || len(id) != 20 || !strings.HasPrefix(id, "AKIA") || !strings.Contains(body, `"secretAccessKey":"`) || !strings.Contains(body, `"role":"deployer","description":"ci"`) {
		t.Fatalf("%s %s", answer.Status, body)
	}
	_, secret, _ := strings.Cut(body, `"secretAccessKey":"`)
	secret, _, _ = strings.Cut(secret, `"`)
	if len(secret) != 40 {
		t.Errorf("a secret of %d characters", len(secret))
	}
	if _, err := l.as(key{id, secret}).ListFunctions(t.Context(), nil); err != nil {
		t.Errorf("the new key: %v", err)
	}
	_, body = l.signed(admin, now, serviceLambda, "GET", "/doze/v1/keys", "", nil)
	if !strings.Contains(body, id) || strings.Contains(body, secret) || strings.Contains(body, other.id) || strings.Contains(body, root.id) {
		t.Errorf("an admin's list: %s", body)
	}
	_, body = l.signed(root, now, serviceLambda, "GET", "/doze/v1/keys", "", nil)
	if !strings.Contains(body, id) || !strings.Contains(body, other.id) || !strings.Contains(body, root.id) {
		t.Errorf("root's list: %s", body)
	}
	for _, not := range []string{other.id, root.id, "AKIAIOSFODNN7EXAMPLE"} {
		if answer, body := l.signed(admin, now, serviceLambda, "DELETE", "/doze/v1/keys/"+not, "", nil); answer.StatusCode != 404 || !strings.Contains(body, "cannot be found") {
			t.Errorf("an admin revokes %s: %s %s", not, answer.Status, body)
		}
	}
	if answer, body := l.signed(root, now, serviceLambda, "DELETE", "/doze/v1/keys/"+root.id, "", nil); answer.StatusCode != 409 || !strings.Contains(body, "the last one with the role root") {
		t.Errorf("revoke the last root key: %s %s", answer.Status, body)
	}
	if answer, body := l.signed(admin, now, serviceLambda, "DELETE", "/doze/v1/keys/"+id, "", nil); answer.StatusCode != 204 {
		t.Errorf("revoke: %s %s", answer.Status, body)
	}
	_, err := l.as(key{id, secret}).ListFunctions(t.Context(), nil)
	wantFault(t, err, codeUnrecognized, "The security token included in the request is invalid.")
	for _, bad := range []string{`{}`, `{"role":"king"}`, `{"role":"admin","account":"1"}`, `{"role":"admin","description":"` + strings.Repeat("d", 65) + `"}`} {
		if answer, body := l.signed(root, now, serviceLambda, "POST", "/doze/v1/keys", bad, nil); answer.StatusCode != 400 || answer.Header.Get(headerErrorType) != codeValidation {
			t.Errorf("%s: %s %s", bad, answer.Status, body)
		}
	}
}

func TestAccountsAreApart(t *testing.T) {
	l := newLocked(t)
	here, there := l.key(DevAccount, registry.RoleDeployer), l.key(otherAccount, registry.RoleDeployer)
	ctx := t.Context()
	if _, err := l.as(here).CreateFunction(ctx, createInput("f")); err != nil {
		t.Fatal(err)
	}
	_, err := l.as(there).GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: aws.String("f")})
	wantFault(t, err, codeNotFound, "Function not found: arn:aws:lambda:us-east-1:222222222222:function:f")
	out, err := l.as(there).CreateFunction(ctx, createInput("f"))
	if err != nil || *out.FunctionArn != "arn:aws:lambda:us-east-1:222222222222:function:f" {
		t.Fatalf("%v, %v", out, err)
	}
	if _, err := l.as(there).DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String("f")}); err != nil {
		t.Fatal(err)
	}
	if list, err := l.as(there).ListFunctions(ctx, nil); err != nil || len(list.Functions) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	const arn = "arn:aws:lambda:us-east-1:000000000000:function:f"
	_, err = l.as(there).GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: aws.String(arn)})
	wantFault(t, err, codeAccessDenied, "User: arn:aws:iam::222222222222:user/deployer/"+there.id+" is not authorized to perform: lambda:GetFunction on resource: "+arn+" because no resource-based policy allows the lambda:GetFunction action")

	invoke := func(arn string) error {
		_, err := l.as(there).Invoke(ctx, &lambda.InvokeInput{FunctionName: &arn, Payload: []byte("1")})
		return err
	}
	denial := " is not authorized to perform: lambda:InvokeFunction on resource: "
	wantFault(t, invoke(arn), codeAccessDenied, denial)
	// A function that is not there looks the same.
	wantFault(t, invoke(strings.TrimSuffix(arn, "f")+"g"), codeAccessDenied, denial)
	permit := func(sid, action, principal string, change func(*lambda.AddPermissionInput)) {
		t.Helper()
		in := &lambda.AddPermissionInput{FunctionName: aws.String("f"), StatementId: &sid, Action: &action, Principal: &principal}
		if change != nil {
			change(in)
		}
		if _, err := l.as(here).AddPermission(ctx, in); err != nil {
			t.Fatal(err)
		}
	}
	permit("get", "lambda:GetFunction", otherAccount, nil)
	permit("third", "lambda:InvokeFunction", "333333333333", nil)
	permit("service", "lambda:InvokeFunction", "s3.amazonaws.com", nil)
	permit("condition", "lambda:InvokeFunction", otherAccount, func(in *lambda.AddPermissionInput) { in.PrincipalOrgID = aws.String("o-0123456789") })
	wantFault(t, invoke(arn), codeAccessDenied, denial)
	permit("whole", "lambda:InvokeFunction", otherAccount, nil)
	if err := invoke(arn); err != nil {
		t.Errorf("permitted: %v", err)
	}
	if call := l.invoker.lastCall(t); call.Function.Account != DevAccount || call.InvokedARN != arn {
		t.Errorf("whose call: %s %s", call.Function.Account, call.InvokedARN)
	}
	wantFault(t, invoke(arn+":1"), codeAccessDenied, denial) // a version has a policy of its own
	if _, err := l.as(here).RemovePermission(ctx, &lambda.RemovePermissionInput{FunctionName: aws.String("f"), StatementId: aws.String("whole")}); err != nil {
		t.Fatal(err)
	}
	wantFault(t, invoke(arn), codeAccessDenied, denial)
}

func TestCallerIdentity(t *testing.T) {
	l := newLocked(t)
	deployer, root := l.key(otherAccount, registry.RoleDeployer), l.key(DevAccount, registry.RoleRoot)
	now := time.Now()
	const form = "Action=GetCallerIdentity&Version=2011-06-15"
	for _, c := range []struct {
		key           key
		at            time.Time
		service, form string
		status        int
		want          []string
	}{
		{deployer, now, "sts", form, 200, []string{"<Arn>arn:aws:iam::222222222222:user/deployer/" + deployer.id + "</Arn>", "<UserId>" + deployer.id + "</UserId>", "<Account>222222222222</Account>", "<ResponseMetadata><RequestId>"}},
		{root, now, "sts", form, 200, []string{"<Arn>arn:aws:iam::000000000000:root</Arn>", "<UserId>000000000000</UserId>"}},
		{key{deployer.id, "x"}, now, "sts", form, 403, []string{"<Code>SignatureDoesNotMatch</Code>"}},
		{key{"AKIAIOSFODNN7EXAMPLE", "x"}, now, "sts", form, 403, []string{"<Code>InvalidClientTokenId</Code>", "The security token included in the request is invalid."}},
		{deployer, now.Add(-time.Hour), "sts", form, 403, []string{"<Code>SignatureDoesNotMatch</Code>", "Signature expired: "}},
		{deployer, now, "lambda", form, 403, []string{"<Code>SignatureDoesNotMatch</Code>"}},
		{deployer, now, "sts", "Action=AssumeRole&Version=2011-06-15", 400, []string{"<Code>InvalidAction</Code>", "Could not find operation AssumeRole for version 2011-06-15"}},
	} {
		answer, body := l.signed(c.key, c.at, c.service, "POST", "/", c.form, func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") })
		if answer.StatusCode != c.status {
			t.Errorf("%s: %s %s", c.form, answer.Status, body)
		}
		for _, want := range c.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s: no %s in %s", c.form, want, body)
			}
		}
	}
	if answer, body := newWorld(t).do("POST", "/", form, "Content-Type", "application/x-www-form-urlencoded"); answer.StatusCode != 200 || !strings.Contains(body, "<Account>000000000000</Account>") {
		t.Errorf("where anyone may: %s %s", answer.Status, body)
	}
}

func TestSignedGRPC(t *testing.T) {
	l := newLocked(t)
	deployer, invoker := l.key(DevAccount, registry.RoleDeployer), l.key(DevAccount, registry.RoleInvoker)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.gateway.GRPC().Serve(listener) }()
	defer func() {
		l.gateway.GRPC().Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	dial := func(options ...grpc.DialOption) dozev1.LambdaClient {
		conn, err := grpc.NewClient(listener.Addr().String(), append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return dozev1.NewLambdaClient(conn)
	}
	call := func(c dozev1.LambdaClient) error {
		_, err := c.ListFunctions(t.Context(), &dozev1.ListFunctionsRequest{})
		return err
	}
	tail := func(c dozev1.LambdaClient) error {
		stream, err := c.TailLogs(t.Context(), &dozev1.TailLogsRequest{FunctionName: ptr("f")})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	as := func(k key) grpc.DialOption {
		return grpc.WithPerRPCCredentials(dozeauth.Key{ID: k.id, Secret: k.secret})
	}
	if _, err := l.as(deployer).CreateFunction(t.Context(), createInput("f")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(call(dial(as(deployer))), tail(dial(as(deployer)))); err != nil {
		t.Errorf("right: %v", err)
	}
	old := dozeauth.Key{ID: deployer.id, Secret: deployer.secret, Now: func() time.Time { return time.Now().Add(-time.Hour) }}
	for name, c := range map[string]struct {
		client dozev1.LambdaClient
		code   codes.Code
		text   string
	}{
		"unsigned":        {dial(), codes.Unauthenticated, "Missing Authentication Token"},
		"wrong secret":    {dial(as(key{deployer.id, "x"})), codes.Unauthenticated, "does not match"},
		"unknown key":     {dial(as(key{"AKIAIOSFODNN7EXAMPLE", "x"})), codes.Unauthenticated, "security token"},
		"old":             {dial(grpc.WithPerRPCCredentials(old)), codes.Unauthenticated, "Signature expired"},
		"role":            {dial(as(invoker)), codes.PermissionDenied, "is not authorized to perform: "},
		"another's proof": {dial(grpc.WithPerRPCCredentials(replayed{dozeauth.Key{ID: deployer.id, Secret: deployer.secret}, &atomic.Pointer[map[string]string]{}})), codes.Unauthenticated, "does not match"},
	} {
		if name == "another's proof" { // of one method is none of another
			if _, err := c.client.ListRuntimes(t.Context(), &dozev1.RuntimesRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, err := range []error{call(c.client), tail(c.client)} {
			if s := status.Convert(err); s.Code() != c.code || !strings.Contains(s.Message(), c.text) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// replayed sends the first call's metadata with every other.
type replayed struct {
	dozeauth.Key
	first *atomic.Pointer[map[string]string]
}

func (r replayed) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	if m := r.first.Load(); m != nil {
		return *m, nil
	}
	m, err := r.Key.GetRequestMetadata(ctx, uri...)
	r.first.Store(&m)
	return m, err
}

// No call that begins after a key was revoked is let in, whatever runs meanwhile.
func TestRevokeWhileCalling(t *testing.T) {
	l := newLocked(t)
	admin, deployer := l.key(DevAccount, registry.RoleAdmin), l.key(DevAccount, registry.RoleDeployer)
	if _, err := l.as(deployer).CreateFunction(t.Context(), createInput("f")); err != nil {
		t.Fatal(err)
	}
	var revoked atomic.Bool
	var before, after atomic.Int64
	var callers sync.WaitGroup
	ready := make(chan struct{}, 8)
	for range cap(ready) {
		callers.Go(func() {
			client := l.as(deployer)
			for n := 0; ; n++ {
				late := revoked.Load()
				_, err := client.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("1")})
				switch {
				case err == nil && late:
					t.Error("a call was let in after the key had been revoked")
					return
				case err == nil:
					before.Add(1)
				case late:
					after.Add(1)
					return
				}
				if n == 3 {
					ready <- struct{}{}
				}
			}
		})
	}
	for range cap(ready) {
		<-ready
	}
	if answer, body := l.signed(admin, time.Now(), serviceLambda, "DELETE", "/doze/v1/keys/"+deployer.id, "", nil); answer.StatusCode != 204 {
		t.Errorf("revoke: %s %s", answer.Status, body)
	}
	revoked.Store(true)
	callers.Wait()
	if before.Load() < 8 || after.Load() != 8 {
		t.Errorf("%d calls before, %d refused after", before.Load(), after.Load())
	}
}

func TestUnsealableKey(t *testing.T) {
	l := newLocked(t)
	k := l.key(DevAccount, registry.RoleRoot)
	l.gateway.config.Authenticator.(*Keys).cipher = brokenCipher{}
	if answer, body := l.signed(k, time.Now(), serviceLambda, "GET", "/2015-03-31/functions", "", nil); answer.StatusCode != 500 || strings.Contains(body, "broken") {
		t.Errorf("%s %s", answer.Status, body)
	}
}

type brokenCipher struct{ plainCipher }

func (brokenCipher) Open([]byte, string) ([]byte, error) { return nil, errors.New("broken") }

// BenchmarkAuthenticate is what --auth adds to a small call.
func BenchmarkAuthenticate(b *testing.B) {
	state := registry.New()
	id, secret := NewSecret()
	if _, err := state.Apply(registry.PutAccessKey{Key: registry.AccessKey{ID: id, Account: DevAccount, Role: registry.RoleInvoker, Sealed: []byte(secret)}}); err != nil {
		b.Fatal(err)
	}
	keys := NewKeys(state.AccessKey, plainCipher{}, "us-east-1", nil)
	body := []byte(`{"name":"world"}`)
	r := httptest.NewRequest("POST", "http://127.0.0.1:9000"+invokeF, bytes.NewReader(body))
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(b.Context(), aws.Credentials{AccessKeyID: id, SecretAccessKey: secret}, r, hex.EncodeToString(sum[:]), "lambda", "us-east-1", time.Now()); err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Content-Length", fmt.Sprint(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		_, proof, err := keys.HTTP(r, serviceLambda)
		if err == nil {
			err = proof(sha256.Sum256(body))
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
