package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/doze-run/doze/cmd/doze/bundle"
)

// defaultRole is what AWS wants every function to have and Doze has no use for.
const defaultRole = "arn:aws:iam::000000000000:role/doze"

// deployment is one run of `doze deploy`: what the flags said, and where it tells how it goes.
type deployment struct {
	client *client
	name   string
	bundle *bundle.Bundle
	// given holds the flags that were on the command line: the others leave a function as it is.
	given map[string]bool

	runtime, handler, role, description string
	memory, timeout, ephemeral          int32
	env                                 map[string]string
	network                             string
	had                                 string // what the function's Network was when it was last asked
	wait                                time.Duration

	progress io.Writer
}

func newDeployCommand() *cobra.Command {
	d := &deployment{given: map[string]bool{}}
	cmd := &cobra.Command{
		Use:   "deploy NAME DIR|ZIP",
		Short: "Create a function, or update its code and configuration",
		Long: `Create a function, or update its code and configuration, and wait until it is active.

A folder is zipped as it is, without .git. Of a function that exists, only what is given changes.`,
		Example: `  doze deploy hello ./hello --runtime python3.12 --handler app.handler
  doze deploy thumbnail thumbnail.zip --runtime provided.al2023 --memory 256 --timeout 30
  doze deploy hello ./hello --env GREETING=Hi --env LANG=en`,
		Args: namedArgs("the NAME of a function", "its code: a DIR or a ZIP"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return completeFunction(cmd, args, start)
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&d.runtime, "runtime", "", "runtime by AWS's `NAME`: provided.al2023, python3.12, nodejs22.x, ... (doze runtimes tells which there are)")
	flags.StringVar(&d.handler, "handler", "", "what to call, by its `NAME`: module.function; provided.* needs none")
	flags.Int32Var(&d.memory, "memory", 128, "memory limit of an instance in `MB`, and its share of CPU (1769 MB is one)")
	flags.Int32Var(&d.timeout, "timeout", 3, "how many `SECONDS` a call may take")
	flags.Int32Var(&d.ephemeral, "ephemeral-storage", 512, "size of /tmp in `MB`")
	flags.Var(&choiceValue{&d.network, []string{"none", "egress", "default"}}, "network", "what it reaches: none, egress (outside, but not the host or other instances), or the platform's default")
	flags.StringVar(&d.description, "description", "", "what the function is for, as a `TEXT`")
	flags.StringVar(&d.role, "role", defaultRole, "`ARN` that AWS's API asks for; it gives no rights here")
	env := flags.StringArray("env", nil, "environment variable `K=V`, may be repeated; all of them replace what the function had (--env '' for none)")
	flags.DurationVar(&d.wait, "wait", time.Minute, "how long (`DURATION`) to wait until the function is active")
	asJSON := addJSONFlag(cmd, "the FunctionConfiguration")
	cmd.RegisterFlagCompletionFunc("runtime", completeRuntime)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if d.env, err = parseEnv(*env); err != nil {
			return err
		}
		flags.Visit(func(f *pflag.Flag) { d.given[f.Name] = true })
		d.name, d.progress = args[0], cmd.ErrOrStderr()
		if d.client, err = clientOf(cmd); err != nil {
			return err
		}
		if err := d.pack(cmd.Context(), args[1]); err != nil {
			return err
		}
		function, err := d.run(cmd.Context())
		if err != nil {
			return d.client.explain(err)
		}
		d.warn(cmd.Context(), function)
		if *asJSON {
			members := awsJSON(function)
			if m, ok := members.(map[string]any); ok && d.had != "" {
				m["Network"] = d.had
			}
			return printJSON(cmd.OutOrStdout(), members)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), aws.ToString(function.FunctionArn))
		return err
	}
	return cmd
}

// parseEnv reads K=V pairs. One empty string stands for no variables.
func parseEnv(pairs []string) (map[string]string, error) {
	env := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		switch {
		case pair == "" && len(pairs) == 1:
		case !ok || name == "":
			return nil, usagef("--env %q is not K=V", pair)
		default:
			if _, twice := env[name]; twice {
				return nil, usagef("--env gives %s twice", name)
			}
			env[name] = value
		}
	}
	return env, nil
}

// pack makes or reads the zip.
func (d *deployment) pack(ctx context.Context, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("the code: %w", err)
	}
	made := "read"
	if info.IsDir() {
		made = "packed"
		d.bundle, err = bundle.Folder(ctx, path)
	} else {
		d.bundle, err = bundle.File(path)
	}
	if err != nil {
		return fmt.Errorf("the code: %w", err)
	}
	d.say("%s %s: %s, %s, %s zipped", made, path, plural(d.bundle.Files, "file"), size(d.bundle.Bytes), size(int64(len(d.bundle.Zip))))
	return nil
}

// run creates or updates the function and waits until it is as asked.
func (d *deployment) run(ctx context.Context) (*lambda.GetFunctionConfigurationOutput, error) {
	have, err := d.client.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: &d.name}, readNetwork(&d.had))
	if isNotFound(err) {
		return d.create(ctx)
	}
	if err != nil {
		return nil, err
	}
	return d.update(ctx, have)
}

func (d *deployment) create(ctx context.Context) (*lambda.GetFunctionConfigurationOutput, error) {
	if d.runtime == "" {
		return nil, usagef("%s is a new function: say its --runtime", d.name)
	}
	if d.handler == "" && strings.HasPrefix(d.runtime, "provided") {
		d.handler = "bootstrap" // the only program such a runtime starts
	}
	if d.handler == "" {
		return nil, usagef("%s is a new function: say its --handler, such as app.handler", d.name)
	}
	input := &lambda.CreateFunctionInput{
		FunctionName: &d.name,
		Role:         &d.role,
		Runtime:      types.Runtime(d.runtime),
		Handler:      &d.handler,
		Code:         &types.FunctionCode{ZipFile: d.bundle.Zip},
		MemorySize:   &d.memory,
		Timeout:      &d.timeout,
	}
	if d.given["ephemeral-storage"] {
		input.EphemeralStorage = &types.EphemeralStorage{Size: &d.ephemeral}
	}
	if d.given["description"] {
		input.Description = &d.description
	}
	if len(d.env) > 0 {
		input.Environment = &types.Environment{Variables: d.env}
	}
	start := time.Now()
	if _, err := d.client.CreateFunction(ctx, input, once, sendNetwork(d.network)); err != nil {
		return nil, err
	}
	d.say("created %s", d.name)
	return d.settled(ctx, start)
}

// update changes what differs. The two steps are two operations of AWS's API: a call in between may
// meet the new configuration with the old code.
func (d *deployment) update(ctx context.Context, have *lambda.GetFunctionConfigurationOutput) (*lambda.GetFunctionConfigurationOutput, error) {
	start := time.Now()
	if !isSettled(have) {
		d.say("%s is being updated by another: waiting for that", d.name)
		var err error
		if have, err = d.await(ctx); err != nil {
			return nil, err
		}
	}
	input := d.changes(have)
	if input != nil {
		_, err := d.client.UpdateFunctionConfiguration(ctx, input, once, sendNetwork(d.network))
		if err != nil {
			return nil, err
		}
		d.say("configuration of %s updated", d.name)
		if have, err = d.settled(ctx, start); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(d.bundle.Zip)
	if isGood(have) && aws.ToString(have.CodeSha256) == base64.StdEncoding.EncodeToString(sum[:]) {
		d.say("code of %s is unchanged", d.name)
		return have, nil
	}
	start = time.Now()
	if _, err := d.client.UpdateFunctionCode(ctx, &lambda.UpdateFunctionCodeInput{FunctionName: &d.name, ZipFile: d.bundle.Zip}, once); err != nil {
		return nil, err
	}
	d.say("code of %s updated", d.name)
	return d.settled(ctx, start)
}

// changes is the update that makes have what the flags said, nil when it is that already.
func (d *deployment) changes(have *lambda.GetFunctionConfigurationOutput) *lambda.UpdateFunctionConfigurationInput {
	input := &lambda.UpdateFunctionConfigurationInput{FunctionName: &d.name}
	changed := false
	differs := func(flag string, same bool) bool {
		change := d.given[flag] && !same
		changed = changed || change
		return change
	}
	if differs("runtime", string(have.Runtime) == d.runtime) {
		input.Runtime = types.Runtime(d.runtime)
	}
	if differs("handler", aws.ToString(have.Handler) == d.handler) {
		input.Handler = &d.handler
	}
	if differs("role", aws.ToString(have.Role) == d.role) {
		input.Role = &d.role
	}
	if differs("description", aws.ToString(have.Description) == d.description) {
		input.Description = &d.description
	}
	if differs("memory", aws.ToInt32(have.MemorySize) == d.memory) {
		input.MemorySize = &d.memory
	}
	if differs("timeout", aws.ToInt32(have.Timeout) == d.timeout) {
		input.Timeout = &d.timeout
	}
	if differs("ephemeral-storage", have.EphemeralStorage != nil && aws.ToInt32(have.EphemeralStorage.Size) == d.ephemeral) {
		input.EphemeralStorage = &types.EphemeralStorage{Size: &d.ephemeral}
	}
	differs("network", d.network == d.had || d.network == "default" && d.had == "")
	if differs("env", maps.Equal(variables(have), d.env)) {
		input.Environment = &types.Environment{Variables: d.env}
	}
	if !changed {
		return nil
	}
	return input
}

func variables(f *lambda.GetFunctionConfigurationOutput) map[string]string {
	if f.Environment == nil {
		return nil
	}
	return f.Environment.Variables
}

// settled waits for the end of a change and says how it ended.
func (d *deployment) settled(ctx context.Context, start time.Time) (*lambda.GetFunctionConfigurationOutput, error) {
	f, err := d.await(ctx)
	switch {
	case err != nil:
		return nil, err
	case f.State == types.StateFailed:
		return nil, fmt.Errorf("%s failed: %s", d.name, reason(f.StateReason, string(f.StateReasonCode)))
	case f.LastUpdateStatus == types.LastUpdateStatusFailed:
		return nil, fmt.Errorf("the update of %s failed: %s", d.name, reason(f.LastUpdateStatusReason, string(f.LastUpdateStatusReasonCode)))
	}
	d.say("active after %s", readable(time.Since(start)))
	return f, nil
}

// await asks until no change is under way any more: soon at first, then less often.
func (d *deployment) await(ctx context.Context) (*lambda.GetFunctionConfigurationOutput, error) {
	bounded, cancel := context.WithTimeout(ctx, d.wait)
	defer cancel()
	pause := 5 * time.Millisecond
	for {
		f, err := d.client.GetFunctionConfiguration(bounded, &lambda.GetFunctionConfigurationInput{FunctionName: &d.name}, readNetwork(&d.had))
		if err == nil && isSettled(f) {
			return f, nil
		}
		if err == nil {
			select {
			case <-bounded.Done():
				err = bounded.Err()
			case <-time.After(pause):
				pause = min(2*pause, 250*time.Millisecond)
				continue
			}
		}
		if ctx.Err() == nil && bounded.Err() != nil {
			return nil, fmt.Errorf("%s is not active after %s: look at `doze status`, or wait longer with --wait", d.name, d.wait)
		}
		return nil, err
	}
}

// isSettled tells that no change is under way.
func isSettled(f *lambda.GetFunctionConfigurationOutput) bool {
	return f.State != types.StatePending && f.LastUpdateStatus != types.LastUpdateStatusInProgress
}

// isGood tells that the last change did what it should.
func isGood(f *lambda.GetFunctionConfigurationOutput) bool {
	return f.State != types.StateFailed && f.LastUpdateStatus != types.LastUpdateStatusFailed
}

func reason(text *string, code string) string {
	if s := aws.ToString(text); s != "" {
		return s
	}
	if code != "" {
		return code
	}
	return "no reason was given"
}

// warn says what will keep calls from working, though the deploy itself did.
func (d *deployment) warn(ctx context.Context, f *lambda.GetFunctionConfigurationOutput) {
	have, err := d.client.runtimes(ctx)
	if err != nil {
		d.say("warning: which runtimes the workers have could not be told: %v", err)
	} else if text := missingRuntime(string(f.Runtime), have); text != "" {
		d.say("warning: %s", text)
	}
	if !strings.HasPrefix(string(f.Runtime), "provided") {
		return
	}
	mode, err := d.bundle.Mode("bootstrap")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.say("warning: the package has no file `bootstrap`, which is what %s starts", f.Runtime)
	case err == nil && mode.IsRegular() && mode&0o111 == 0:
		d.say("warning: `bootstrap` in the package is not executable (chmod +x)")
	}
}

func (d *deployment) say(format string, args ...any) {
	fmt.Fprintf(d.progress, format+"\n", args...)
}
