package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is what this source is, or will be when it is released.
const version = "0.1.0"

func newVersionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  noArgs,
	}
	asJSON := addJSONFlag(cmd, "the version")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		commit := commitOfBuild()
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]string{
				"version": version, "commit": commit, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
			})
		}
		if commit != "" {
			commit = " (" + commit + ")"
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "doze %s%s %s %s/%s\n", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
	return cmd
}

// commitOfBuild is the commit that the Go tool stamped into the binary, "" if it did not.
func commitOfBuild() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	commit, dirty := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	if commit == "" {
		return ""
	}
	return commit + dirty
}
