package main

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/spf13/cobra"
)

// completionLimit bounds how long a Tab may take; a shell that hangs is worse than no proposal.
const completionLimit = 2 * time.Second

// What follows proposes arguments; the command `doze completion bash|zsh|fish|powershell`, which makes
// a shell ask for them, is cobra's own.

// completeFunction proposes the names of the functions there are.
func completeFunction(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := clientOf(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
	defer cancel()
	functions, err := c.functions(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, len(functions))
	for i, f := range functions {
		names[i] = aws.ToString(f.FunctionName)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeRuntime proposes the runtimes that the workers have, or all that AWS knows when no
// worker can be asked.
func completeRuntime(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if c, err := clientOf(cmd); err == nil {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
		defer cancel()
		if have, err := c.runtimes(ctx); err == nil {
			for _, r := range have {
				names = append(names, r.Name)
			}
		}
	}
	if len(names) == 0 {
		for _, r := range types.Runtime("").Values() {
			names = append(names, string(r))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// oneOf completes a flag with fixed values.
func oneOf(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}
