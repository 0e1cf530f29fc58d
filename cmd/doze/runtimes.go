package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
)

// runtimeInfo is one runtime that workers have, as GET /doze/v1/runtimes tells it and `doze
// runtimes --json` prints it.
type runtimeInfo struct {
	// Name is as AWS has it: "python3.11", "provided.al2023".
	Name string `json:"name"`
	// Path is the interpreter's on the worker, "" for provided.*.
	Path string `json:"path"`
	// Version is the interpreter's own ("3.11.2").
	Version string `json:"version"`
}

func newRuntimesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "runtimes",
		Short: "Show which runtimes the workers have",
		Args:  noArgs,
	}
	asJSON := addJSONFlag(cmd, "the runtimes")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		runtimes, err := c.runtimes(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), runtimes)
		}
		t := newTable("RUNTIME", "VERSION", "INTERPRETER")
		for _, r := range runtimes {
			version, path := r.Version, r.Path
			if version == "" {
				version = "-"
			}
			if path == "" {
				path = "none: the package brings its own program, `bootstrap`"
			}
			t.add(r.Name, version, path)
		}
		return t.print(cmd.OutOrStdout())
	}
	return cmd
}

// runtimes is what the workers have; never nil.
func (c *client) runtimes(ctx context.Context) ([]runtimeInfo, error) {
	runtimes := []runtimeInfo{}
	if err := c.get(ctx, "/doze/v1/runtimes", nil, &runtimes); err != nil {
		return nil, err
	}
	return nonNil(runtimes), nil
}

// missingRuntime is a warning when no worker has the runtime, "" when one does.
func missingRuntime(name string, have []runtimeInfo) string {
	names := make([]string, len(have))
	for i, r := range have {
		if r.Name == name {
			return ""
		}
		names[i] = r.Name
	}
	if len(names) == 0 {
		return "no worker has " + name + ", nor any other runtime: invokes will fail until one does"
	}
	return "no worker has " + name + " (there are: " + strings.Join(names, ", ") + "): invokes will fail until one does"
}
