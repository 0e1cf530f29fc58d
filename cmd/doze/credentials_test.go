package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/bus/nodetls"
)

func TestSigner(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".aws"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"credentials": "[default]\naws_access_key_id = FILEDEFAULT\naws_secret_access_key = s\n[work]\naws_access_key_id = FILEWORK\naws_secret_access_key = s\n",
		"config":      "[default]\nregion = eu-west-1\n[profile work]\nregion = eu-north-1\n",
	} {
		if err := os.WriteFile(filepath.Join(home, ".aws", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		env                 map[string]string
		key, region, refuse string
	}{
		"nothing":           {map[string]string{}, noKey, "us-east-1", ""},
		"ours":              {map[string]string{"HOME": home, "DOZE_ACCESS_KEY_ID": "OURS", "DOZE_SECRET_ACCESS_KEY": "s", "AWS_ACCESS_KEY_ID": "THEIRS", "AWS_SECRET_ACCESS_KEY": "s"}, "OURS", "eu-west-1", ""},
		"variables":         {map[string]string{"HOME": home, "AWS_ACCESS_KEY_ID": "THEIRS", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-west-2"}, "THEIRS", "us-west-2", ""},
		"shared files":      {map[string]string{"HOME": home}, "FILEDEFAULT", "eu-west-1", ""},
		"another profile":   {map[string]string{"HOME": home, "AWS_PROFILE": "work"}, "FILEWORK", "eu-north-1", ""},
		"profile not there": {map[string]string{"HOME": home, "AWS_PROFILE": "play"}, "", "", "AWS_PROFILE play"},
		"other files":       {map[string]string{"HOME": home, "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}, noKey, "us-east-1", ""},
		"half of ours":      {map[string]string{"DOZE_ACCESS_KEY_ID": "OURS"}, "", "", "go together"},
	} {
		key, region, err := signerOf(t.Context(), func(name string) string { return c.env[name] })
		switch {
		case c.refuse != "":
			if err == nil || !strings.Contains(err.Error(), c.refuse) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || key.AccessKeyID != c.key || region != c.region:
			t.Errorf("%s: %s %s, %v", name, key.AccessKeyID, region, err)
		}
	}
}

func TestRefusedSaysWhatToDo(t *testing.T) {
	c, err := newClient("127.0.0.1:9", func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	named, err := newClient("127.0.0.1:9", func(name string) string {
		return map[string]string{keyIDEnv: "AKIAX", secretEnv: "s"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		c                   *client
		code, message, want string
	}{
		{c, "UnrecognizedClientException", "The security token included in the request is invalid.", "takes only requests that are signed with an access key: set DOZE_ACCESS_KEY_ID"},
		{named, "UnrecognizedClientException", "x", "does not know the access key AKIAX: set DOZE_ACCESS_KEY_ID"},
		{named, "InvalidSignatureException", "Signature expired: a is now earlier than b", "Signature expired: a is now earlier than b (is this machine's clock right?)"},
		{named, "InvalidSignatureException", "Credential should be scoped to a valid region. ", "set AWS_REGION"},
		{named, "InvalidSignatureException", "The request signature we calculated does not match", "the secret does not go with the access key AKIAX"},
		{named, "AccessDeniedException", "User: x is not authorized", "User: x is not authorized (a key with another role"},
		{named, "ResourceNotFoundException", "Function not found", "Function not found"},
	} {
		err := tc.c.explain(&refusal{status: http.StatusForbidden, code: tc.code, message: tc.message})
		if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.code, err, tc.want)
		}
	}
}

func TestCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	do := func(want int, args ...string) (string, string) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := run(t.Context(), append([]string{"ca"}, args...), strings.NewReader(""), &out, &errs); code != want {
			t.Fatalf("doze ca %q: exit %d\n%s%s", args, code, &out, &errs)
		}
		return out.String(), errs.String()
	}
	if _, errs := do(exitFailed, "issue", "w", "--role", "worker", "--dir", dir); !strings.Contains(errs, "make one with `doze ca init`") {
		t.Error(errs)
	}
	if out, _ := do(exitOK, "init", "--dir", dir); out != filepath.Join(dir, nodetls.CertFile)+"\n" {
		t.Error(out)
	}
	if _, errs := do(exitFailed, "init", "--dir", dir); !strings.Contains(errs, "there is an authority in") {
		t.Error(errs)
	}
	out, errs := do(exitOK, "issue", "control-1", "--role", "control", "--host", "127.0.0.1", "--dir", dir)
	path := filepath.Join(dir, "control-1")
	if out != path+"\n" || !strings.Contains(errs, "valid until "+time.Now().UTC().AddDate(0, 0, 365).Format(time.DateOnly)) {
		t.Errorf("%s %s", out, errs)
	}
	node, err := nodetls.LoadDir(path, nil)
	if err != nil || fmt.Sprint(node.Identity()) != "doze://control/control-1" {
		t.Errorf("%v, %v", node, err)
	}
	if _, errs := do(exitFailed, "issue", "control-1", "--role", "control", "--dir", dir); !strings.Contains(errs, "add --renew") {
		t.Error(errs)
	}
	do(exitOK, "issue", "control-1", "--role", "control", "--dir", dir, "--renew")
	for want, args := range map[string][]string{
		"needs --role":           {"issue", "x", "--dir", dir},
		"is not one of":          {"issue", "x", "--dir", dir, "--role", "king"},
		"is not between 1":       {"issue", "x", "--dir", dir, "--role", "worker", "--days", "0"},
		"not a node's identity":  {"issue", "a/b", "--dir", dir, "--role", "worker"},
		"needs the NAME":         {"issue", "--role", "worker"},
		"unknown command \"pu\"": {"pu"},
	} {
		if _, errs := do(exitUsage, args...); !strings.Contains(errs, want) {
			t.Errorf("%q: %s", args, errs)
		}
	}
}
