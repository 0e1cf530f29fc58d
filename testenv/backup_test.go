package testenv

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
)

// backedUp is what `doze backup --json` and `doze restore --json` print.
type backedUp struct {
	File     string
	Bytes    int64
	Manifest any
	Proof    struct {
		Index                                   uint64
		StateHash, RegistryHash, LedgerHash     string
		Functions, Keys, Packages, PackageBytes int
		Totals                                  struct{ Requests, MBMs, InitMs, Errors int }
	}
}

// lockedCluster is a cluster that verifies keys, with the cluster key of that file.
func lockedCluster(t *testing.T, controls, workers int, clusterKey string) *Cluster {
	t.Helper()
	secret := strings.ReplaceAll(rootSecret, " ", "-")
	c := &Cluster{t: t}
	for i := range controls {
		n := c.control("c"+string(rune('1'+i)), controls)
		n.args = []string{"--auth", "--cluster-key-file", clusterKey}
		n.env = append(os.Environ(), "DOZE_ROOT_ACCESS_KEY_ID="+rootID, "DOZE_ROOT_SECRET_ACCESS_KEY="+secret)
		n.KeyID, n.Secret = rootID, secret
		c.Controls = append(c.Controls, n)
	}
	for range workers {
		c.AddWorker()
	}
	t.Cleanup(c.stop)
	c.StartAll(c.Nodes()...)
	return c
}

// Everything that a `doze dev` keeps goes into a file, and from there into a cluster of three, by way of a
// node that does not lead.
func TestBackupAndRestore(t *testing.T) {
	ctx := t.Context()
	folder := t.TempDir()
	dev := startLocked(t)
	dev.Create(ctx, "f", dev.Runtime(ctx, "python"), Python(t, "def handler(event, context):\n    return 'one'\n"))
	client := dev.Client()
	version, err := client.PublishVersion(ctx, &lambda.PublishVersionInput{FunctionName: aws.String("f")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CreateAlias(ctx, &lambda.CreateAliasInput{FunctionName: aws.String("f"), Name: aws.String("live"), FunctionVersion: version.Version}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: aws.String("f"), ZipFile: Python(t, "def handler(event, context):\n    return 'two'\n")}); err != nil {
		t.Fatal(err)
	}
	dev.WaitActive(ctx, "f")
	if _, err := client.AddPermission(ctx, &lambda.AddPermissionInput{FunctionName: aws.String("f"), StatementId: aws.String("s"), Action: aws.String("lambda:InvokeFunction"), Principal: aws.String("222222222222")}); err != nil {
		t.Fatal(err)
	}
	dev.Invoke(ctx, "f", "{}")
	dev.Invoke(ctx, "f:live", "{}")
	invoker := dev.key(t, "invoker", "000000000000")
	dev.Eventually(20*time.Second, "two calls are billed", func() bool { n, _ := dev.Requests(ctx, "f"); return n == 2 })

	if _, stderr, code := invoker.CLI(ctx, "backup", folder); code == 0 || !strings.Contains(stderr, "doze:Backup") {
		t.Errorf("an invoker takes a backup: %d, %s", code, stderr)
	}
	var made backedUp
	parse(t, dev.must(t, "backup", folder, "--json"), &made)
	if made.Proof.Functions != 1 || made.Proof.Keys != 2 || made.Proof.Packages != 2 || made.Proof.Totals.Requests != 2 {
		t.Errorf("backup: %+v", made)
	}
	if info, err := os.Stat(made.File); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v", made.File, info.Mode(), err)
	}
	if names, err := os.ReadDir(folder); err != nil || len(names) != 1 {
		t.Errorf("beside the backup there is more: %v", names)
	}
	if _, stderr, code := dev.CLI(ctx, "backup", made.File); code == 0 || !strings.Contains(stderr, "there already") {
		t.Errorf("over a backup: %d, %s", code, stderr)
	}
	if _, stderr, code := dev.CLI(ctx, "restore", made.File); code == 0 || !strings.Contains(stderr, "empty cluster only") {
		t.Errorf("restored over what is there: %d, %s", code, stderr)
	}
	whole, err := os.ReadFile(made.File)
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(folder, "broken.tar")
	if err := os.WriteFile(broken, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := dev.CLI(ctx, "restore", broken, "--check"); code == 0 || !strings.Contains(stderr, "not a whole backup") {
		t.Errorf("half of a backup: %d, %s", code, stderr)
	}

	key := filepath.Join(dev.DataDir, "control", "cluster.key")
	other := startLocked(t)
	if _, stderr, code := other.CLI(ctx, "restore", made.File); code == 0 || !strings.Contains(stderr, "--cluster-key-file") {
		t.Errorf("restored with another cluster key: %d, %s", code, stderr)
	}
	c := lockedCluster(t, 3, 1, key)
	node := c.Others(c.Leader(ctx))[0]
	var restored backedUp
	parse(t, node.must(t, "restore", made.File, "--json"), &restored)
	if restored.Proof.StateHash != made.Proof.StateHash {
		t.Errorf("restored %+v of %+v", restored.Proof, made.Proof)
	}
	c.SameState(ctx)
	for _, n := range c.Controls {
		if got := n.Status(ctx).StateHash; got != made.Proof.StateHash {
			t.Errorf("%s has state %s, the backup %s", n.Name, got, made.Proof.StateHash)
		}
		asBefore := n.As(invoker.KeyID, invoker.Secret)
		for name, want := range map[string]string{"f": `"two"`, "f:live": `"one"`} {
			if out := asBefore.Invoke(ctx, name, "{}"); string(out.Payload) != want {
				t.Errorf("%s by way of %s answers %s", name, n.Name, out.Payload)
			}
		}
	}
	policy, err := c.Controls[0].Client().GetPolicy(ctx, &lambda.GetPolicyInput{FunctionName: aws.String("f")})
	if err != nil || !json.Valid([]byte(aws.ToString(policy.Policy))) || !strings.Contains(*policy.Policy, "222222222222") {
		t.Errorf("policy: %v, %v", policy, err)
	}
	c.Eventually(20*time.Second, "the bill goes on from two", func() bool {
		n, _ := c.Controls[0].Requests(ctx, "f")
		return n == 8
	})
	// The restored state is on the disks.
	for _, n := range c.Controls {
		n.Kill()
	}
	c.StartAll(c.Controls...)
	if out := c.Controls[1].Invoke(ctx, "f", "{}"); string(out.Payload) != `"two"` {
		t.Errorf("after a restart: %s", out.Payload)
	}
	c.SameState(ctx)
}
