package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// readmeCommands are the shell lines of one of the README's sections, as a reader copies them.
func readmeCommands(t *testing.T, title string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(Root(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(raw), "\n## "+title+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var commands strings.Builder
	for {
		_, rest, shell := strings.Cut(section, "```sh\n")
		if !shell {
			break
		}
		block, after, closed := strings.Cut(rest, "```")
		if !closed {
			t.Fatalf("the README's section %q has a block of shell commands without an end", title)
		}
		commands.WriteString(block)
		section = after
	}
	if !found || commands.Len() == 0 {
		t.Fatalf("the README has no section %q with shell commands", title)
	}
	return commands.String()
}

// knowsEndpointVariable tells from `aws --version` whether it heeds AWS_ENDPOINT_URL: since 1.29 and
// 2.13. Debian 12 has 2.9.
func knowsEndpointVariable(version string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(version, "aws-cli/%d.%d.", &major, &minor); err != nil {
		return false
	}
	return major == 1 && minor >= 29 || major == 2 && minor >= 13 || major > 2
}

func TestKnowsEndpointVariable(t *testing.T) {
	for version, want := range map[string]bool{
		"aws-cli/2.9.19 Python/3.11.2": false, "aws-cli/2.13.0 Python/3.11.4": true, "aws-cli/1.28.1 Python/3.8": false,
		"aws-cli/1.45.11 Python/3.11.7": true, "aws-cli/2.34.1": true, "": false,
	} {
		if knowsEndpointVariable(version) != want {
			t.Errorf("%q: %v", version, !want)
		}
	}
}

// The README's section on the aws CLI, each command as it stands there: only the address and the
// version of Python are this machine's.
func TestAWSCLI(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"aws", "zip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: this machine has no %s (Debian: apt-get install awscli zip), so the README's aws CLI section was not tried: %v", tool, err)
		}
	}
	ctx := t.Context()
	d := StartDev(t)
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "hello"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "hello", "app.py"), []byte("def handler(event, context):\n    return {\"hello\": event[\"name\"]}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := readmeCommands(t, "With the aws CLI")
	for old, new := range map[string]string{"http://127.0.0.1:9000": "http://" + d.HTTP, "python3.11": string(d.Runtime(ctx, "python"))} {
		if !strings.Contains(script, old) {
			t.Fatalf("the section does not name %s any more:\n%s", old, script)
		}
		script = strings.ReplaceAll(script, old, new)
	}
	version, err := exec.CommandContext(ctx, "aws", "--version").CombinedOutput()
	if err != nil {
		t.Fatalf("aws --version: %v\n%s", err, version)
	}
	t.Logf("%s", version)
	if !knowsEndpointVariable(string(version)) {
		// Without the option it would pass the variable over and ask AWS itself.
		script = "aws() { command aws --endpoint-url http://" + d.HTTP + " \"$@\"; }\n" + script
	}
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-x", "-c", script)
	cmd.Dir = folder
	// No configuration, credentials or endpoints but the README's.
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "AWS_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, "AWS_PAGER=", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"FunctionName": "greet"`, `{"hello": "world"}`, `"StatusCode": 200`, `"StatusCode": 202`, `"ReservedConcurrentExecutions": 5`, `"Version": "1"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output lacks %s:\n%s", want, out)
		}
	}
	if left := d.must(t, "list", "--json"); left != "[]\n" {
		t.Errorf("left after delete-function: %s", left)
	}
}
