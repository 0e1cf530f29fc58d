package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/smithy-go"
)

const (
	rootID     = "doze_root"
	rootSecret = "a root secret for tests only"
)

// startLocked starts a process that verifies keys, with a root key of the test's.
func startLocked(t *testing.T) *Dev {
	t.Helper()
	secret := strings.ReplaceAll(rootSecret, " ", "-")
	return StartDevWith(t, []string{"DOZE_ROOT_ACCESS_KEY_ID=" + rootID, "DOZE_ROOT_SECRET_ACCESS_KEY=" + secret}, "--auth").As(rootID, secret)
}

// key makes a key over the CLI and is the process as that key's holder sees it.
func (d *Dev) key(t *testing.T, role, account string) *Dev {
	t.Helper()
	var k struct {
		AccessKeyID     string `json:"accessKeyId"`
		SecretAccessKey string `json:"secretAccessKey"`
		Account         string `json:"account"`
		Role            string `json:"role"`
		CreatedAt       string `json:"createdAt"`
	}
	parse(t, d.must(t, "key", "create", "--role", role, "--account", account, "--json"), &k)
	if k.Role != role || k.Account != account {
		t.Fatalf("%+v", k)
	}
	return d.As(k.AccessKeyID, k.SecretAccessKey)
}

func wantCode(t *testing.T, err error, code, text string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != code || !strings.Contains(api.ErrorMessage(), text) {
		t.Errorf("%v, want %s with %q", err, code, text)
	}
}

const whoami = "def handler(event, context):\n    return context.invoked_function_arn\n"

// Two accounts with a function of the same name: each sees, calls and pays for its own only.
func TestAccountsAndRoles(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	root := startLocked(t)
	const a, b = "111111111111", "222222222222"
	adminA, deployerB := root.key(t, "admin", a), root.key(t, "deployer", b)
	invokerA := adminA.key(t, "invoker", a)
	for _, d := range []*Dev{adminA, deployerB} {
		d.Create(ctx, "f", d.Runtime(ctx, "python"), Python(t, whoami))
	}
	for want, d := range map[string]*Dev{a: invokerA, b: deployerB} {
		for range 3 {
			if got := string(d.Invoke(ctx, "f", "1").Payload); got != `"arn:aws:lambda:us-east-1:`+want+`:function:f"` {
				t.Errorf("%s called %s", want, got)
			}
		}
	}
	_, err := invokerA.Client().GetFunction(ctx, &lambda.GetFunctionInput{FunctionName: aws.String("f")})
	wantCode(t, err, "AccessDeniedException", "is not authorized to perform: lambda:GetFunction on resource: arn:aws:lambda:us-east-1:"+a+":function:f")

	// Another account's, by its ARN, once its policy says so.
	arn := "arn:aws:lambda:us-east-1:" + a + ":function:f"
	_, err = deployerB.Client().Invoke(ctx, &lambda.InvokeInput{FunctionName: &arn, Payload: []byte("1")})
	wantCode(t, err, "AccessDeniedException", "because no resource-based policy allows the lambda:InvokeFunction action")
	if _, err := adminA.Client().AddPermission(ctx, &lambda.AddPermissionInput{
		FunctionName: aws.String("f"), StatementId: aws.String("b"), Action: aws.String("lambda:InvokeFunction"), Principal: aws.String(b),
	}); err != nil {
		t.Fatal(err)
	}
	if got := string(deployerB.Invoke(ctx, arn, "1").Payload); got != `"`+arn+`"` {
		t.Errorf("called %s", got)
	}

	for d, requests := range map[*Dev]int64{adminA: 4, deployerB: 3} { // the fourth is a's to pay
		d.Eventually(5*time.Second, "the bill has all calls", func() bool { n, _ := d.Requests(ctx, "f"); return n == requests })
		for _, i := range d.Instances(ctx, "") {
			if i.Function != "f" {
				t.Errorf("instance of %s", i.Function)
			}
		}
		if logs := d.must(t, "logs", "f"); strings.Count(logs, "REPORT") != int(requests) {
			t.Errorf("%d calls, and the log has\n%s", requests, logs)
		}
	}
	if n, _ := root.Requests(ctx, "f"); n != 0 {
		t.Errorf("root's own account pays for %d", n)
	}
	if out := root.must(t, "list", "--json"); out != "[]\n" {
		t.Errorf("root's own account has %s", out)
	}

	// What the CLI says to somebody who is not let in.
	for want, d := range map[string]*Dev{
		"does not know the access key AKIDTEST: set DOZE_ACCESS_KEY_ID": root.As("AKIDTEST", "secret"),
		"the secret does not go with the access key " + invokerA.KeyID:  root.As(invokerA.KeyID, "wrong"),
		"is not authorized to perform: lambda:ListFunctions":            invokerA,
	} {
		if _, errs, code := d.CLI(ctx, "list"); code != 1 || !strings.Contains(errs, want) {
			t.Errorf("exit %d: %s", code, errs)
		}
	}
	if _, errs, code := invokerA.CLI(ctx, "key", "list"); code != 1 || !strings.Contains(errs, "doze:ListKeys") {
		t.Errorf("exit %d: %s", code, errs)
	}
	var list []struct {
		AccessKeyID string `json:"accessKeyId"`
		Account     string `json:"account"`
	}
	if err := json.Unmarshal([]byte(adminA.must(t, "key", "list", "--json")), &list); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	for _, k := range list {
		if k.Account != a {
			t.Errorf("an admin of %s sees a key of %s", a, k.Account)
		}
	}
	if err := root.unsigned("/readyz"); err != nil {
		t.Errorf("a probe needs no key: %v", err)
	}
}

// unsigned asks without a signature.
func (d *Dev) unsigned(path string) error {
	conn, err := net.Dial("tcp", d.HTTP)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET " + path + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")); err != nil {
		return err
	}
	head := make([]byte, 15)
	if _, err := conn.Read(head); err != nil {
		return err
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		return errors.New(string(head))
	}
	return nil
}

var shownRoot = regexp.MustCompile(`shown this once:\s+export DOZE_ACCESS_KEY_ID=(AKIA[A-Z2-7]{16})\s+export DOZE_SECRET_ACCESS_KEY=(\S{40})`)

// The root key is made and shown once; keys survive kill -9; secrets stand nowhere in clear.
func TestRootKeyAndRestart(t *testing.T) {
	t.Parallel()
	d := StartDev(t, "--auth")
	shown := shownRoot.FindStringSubmatch(d.Stderr())
	if shown == nil {
		t.Fatalf("no root key in:\n%s", d.Stderr())
	}
	d.KeyID, d.Secret = shown[1], shown[2]
	deployer := d.key(t, "deployer", "000000000000")
	d.Kill()
	d.Start()
	if strings.Contains(d.Stderr(), "shown this once") {
		t.Error("shown twice")
	}
	d.must(t, "list")
	d.As(deployer.KeyID, deployer.Secret).must(t, "list")
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	clusterKey := filepath.Join(d.DataDir, "control", "cluster.key")
	if info, err := os.Stat(clusterKey); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	err := filepath.WalkDir(d.DataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(deployer.Secret)) || bytes.Contains(data, []byte(d.Secret)) {
			t.Errorf("%s has a secret in it", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	// Another root key by the environment; the old one stays until it is revoked.
	secret := strings.Repeat("s", 20)
	d.env = []string{"DOZE_ROOT_ACCESS_KEY_ID=" + rootID, "DOZE_ROOT_SECRET_ACCESS_KEY=" + secret}
	d.Start()
	d.must(t, "list")
	d.As(rootID, secret).must(t, "key", "revoke", d.KeyID)
	if _, errs, code := d.CLI(t.Context(), "list"); code != 1 || !strings.Contains(errs, "does not know the access key") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}

	// Without the cluster key that it was written with it does not start, and says why.
	if err := os.Rename(clusterKey, clusterKey+".away"); err != nil {
		t.Fatal(err)
	}
	refused := func(env []string, want string) {
		t.Helper()
		_, errs, code := doze(t, "", env, "dev", "--auth", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--data-dir", d.DataDir)
		if code != 1 || !strings.Contains(errs, want) {
			t.Errorf("exit %d: %s", code, errs)
		}
	}
	refused(nil, "cluster.key is missing")
	if err := os.WriteFile(clusterKey, []byte("doze-cluster-key-1 "+strings.Repeat("A", 43)+"=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(nil, "another cluster key file")
	if err := os.Rename(clusterKey+".away", clusterKey); err != nil {
		t.Fatal(err)
	}
	refused([]string{"DOZE_ROOT_ACCESS_KEY_ID=" + rootID, "DOZE_ROOT_SECRET_ACCESS_KEY=short"}, "must have 16 to 128 characters")
	refused([]string{"DOZE_ROOT_SECRET_ACCESS_KEY=" + secret}, "the id of the root key is not one")
	if err := os.Chmod(clusterKey, 0o644); err != nil {
		t.Fatal(err)
	}
	refused(nil, "others may read it")
	if err := os.Chmod(clusterKey, 0o600); err != nil {
		t.Fatal(err)
	}
	d.Start()
	d.As(rootID, secret).must(t, "list")
}

// Calls under way end, and none that begins after the answer of a revocation is let in.
func TestRevokeUnderLoad(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	root := startLocked(t)
	deployer := root.key(t, "deployer", "000000000000")
	deployer.Create(ctx, "f", deployer.Runtime(ctx, "python"), Python(t, whoami))
	var revoked atomic.Bool
	var answered atomic.Int64
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			client := deployer.Client()
			for end := time.Now().Add(time.Minute); time.Now().Before(end); {
				late := revoked.Load()
				_, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("1")})
				switch {
				case err == nil && late:
					t.Error("let in after the key had been revoked")
					return
				case err == nil:
					answered.Add(1)
				default:
					wantCode(t, err, "UnrecognizedClientException", "The security token included in the request is invalid.")
					return
				}
			}
			t.Error("never refused")
		})
	}
	root.Eventually(30*time.Second, "calls are answered", func() bool { return answered.Load() >= 20 })
	root.must(t, "key", "revoke", deployer.KeyID)
	revoked.Store(true)
	callers.Wait()
}

// The aws CLI with a right, a wrong and a revoked key, and what STS tells it.
func TestAWSCLIWithKeys(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("aws"); err != nil {
		t.Skipf("SKIPPED: this machine has no aws (Debian: apt-get install awscli), so keys were not tried with it: %v", err)
	}
	ctx := t.Context()
	root := startLocked(t)
	deployer := root.key(t, "deployer", "111111111111")
	deployer.Create(ctx, "f", deployer.Runtime(ctx, "python"), Python(t, whoami))
	arnAsEscaped := "arn:aws:lambda:us-east-1:111111111111:function:f"
	event := filepath.Join(t.TempDir(), "event.json")
	if err := os.WriteFile(event, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	invoke := []string{"lambda", "invoke", "--function-name", "f", "--payload", "fileb://" + event, event + ".out"}
	for _, c := range []struct {
		name      string
		as        *Dev
		args      []string
		fails     bool
		want, not string
	}{
		{"identity", deployer, []string{"sts", "get-caller-identity"}, false, `"Arn": "arn:aws:iam::111111111111:user/deployer/` + deployer.KeyID + `"`, ""},
		{"invoke", deployer, invoke, false, `"StatusCode": 200`, "FunctionError"},
		{"by ARN", deployer, []string{"lambda", "get-function", "--function-name", arnAsEscaped}, false, `"FunctionArn": "` + arnAsEscaped + `"`, ""},
		{"tags in a query", deployer, []string{"lambda", "untag-resource", "--resource", arnAsEscaped, "--tag-keys", "a b", "c/d&e=f"}, false, "", "error"},
		{"wrong secret", root.As(deployer.KeyID, "wrong"), invoke, true, "(InvalidSignatureException)", ""},
		{"unknown to STS", root.As("AKIAIOSFODNN7EXAMPLE", "x"), []string{"sts", "get-caller-identity"}, true, "(InvalidClientTokenId)", ""},
	} {
		text, err := c.as.aws(ctx, c.args...)
		if (err != nil) != c.fails || !strings.Contains(text, c.want) || c.not != "" && strings.Contains(text, c.not) {
			t.Errorf("%s: %v\n%s", c.name, err, text)
		}
	}
	root.must(t, "key", "revoke", deployer.KeyID)
	if text, err := deployer.aws(ctx, invoke...); err == nil || !strings.Contains(text, "(UnrecognizedClientException)") {
		t.Errorf("revoked: %v\n%s", err, text)
	}
}

// aws runs the aws CLI with this Dev's key and nothing of the machine's configuration.
func (d *Dev) aws(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "aws", append([]string{"--endpoint-url", "http://" + d.HTTP}, args...)...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "AWS_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, "AWS_PAGER=", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_MAX_ATTEMPTS=1", "AWS_ACCESS_KEY_ID="+d.KeyID, "AWS_SECRET_ACCESS_KEY="+d.Secret, "AWS_DEFAULT_REGION=us-east-1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
