// Doze is AWS Lambda for your own machines. This command is all of it: the platform (`doze dev`)
// and its clients.
//
// The package parses flags and prints; what it starts is assembled by packages control and worker,
// and what it asks goes through the same API as anybody's client. It must not know how either
// works inside.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // it did not work, or the function failed
	exitUsage  = 2 // the command line was wrong; nothing was done
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	refuseUnknown(root)
	command, err := root.ExecuteContextC(ctx)
	return report(command, err)
}

// report says what went wrong, once, and chooses the exit code.
func report(command *cobra.Command, err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errFunctionFailed):
		return exitFailed // the function's own error has been printed
	case errors.As(err, &usage):
		fmt.Fprintf(command.ErrOrStderr(), "doze: %v\nRun '%s --help' to see how it is used.\n", err, command.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(command.ErrOrStderr(), "doze: %v\n", err)
	return exitFailed
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "doze",
		Short: "AWS Lambda for your own machines",
		Long: `Doze is AWS Lambda for your own machines.

A function sleeps until somebody calls it; then an instance of it starts in its own sandbox,
answers, and stays warm for a while. Start the platform with 'doze dev', then deploy and invoke.
Any AWS client works too: point it at the endpoint.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddGroup(
		&cobra.Group{ID: groupPlatform, Title: "Run the platform:"},
		&cobra.Group{ID: groupFunctions, Title: "Work with functions:"},
		&cobra.Group{ID: groupWatch, Title: "See what it does:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			if group != groupPlatform {
				addEndpointFlag(c)
			}
			root.AddCommand(c)
		}
	}
	add(groupPlatform, newDevCommand(), newControlCommand(), newWorkerCommand(), newDoctorCommand(), newNodeCommand(), newKeyCommand(), newCACommand())
	add(groupFunctions, newDeployCommand(), newInvokeCommand(), newListCommand(), newDeleteCommand())
	for _, c := range []*cobra.Command{newBackupCommand(), newRestoreCommand()} {
		addEndpointFlag(c)
		add(groupPlatform, c)
	}
	add(groupWatch, newPsCommand(), newLogsCommand(), newBillCommand(), newRuntimesCommand(), newStatusCommand())
	root.AddCommand(newVersionCommand(), benchCommand())
	return root
}

// refuseUnknown makes cobra's own commands fail on a name that they do not know; they would print
// help and succeed, which a script takes for the real thing. The root's output must be set.
func refuseUnknown(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usagef("completion does not know the shell %q: bash, zsh, fish or powershell", args[0])
				}
				return cmd.Help()
			}
		case "help":
			c.Run, c.RunE = nil, func(_ *cobra.Command, args []string) error {
				about, _, err := root.Find(args)
				if err != nil || about == root && len(args) > 0 {
					return usagef("no help on %q: there is no such command", strings.Join(args, " "))
				}
				about.InitDefaultHelpFlag()
				return about.Help()
			}
		}
	}
}

const (
	groupPlatform  = "platform"
	groupFunctions = "functions"
	groupWatch     = "watch"
)

// usageError is a fault of the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// noArgs refuses arguments; it names what was there, which may be a mistyped command.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return usagef("unknown command %q", args[0])
	}
	return usagef("%s takes no arguments, but was given %q", cmd.Name(), args[0])
}

// namedArgs wants one argument for each name.
func namedArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s needs %s", cmd.Name(), names[len(args)])
		}
		if len(args) > len(names) {
			return usagef("%s does not know what to do with %q", cmd.Name(), args[len(names)])
		}
		for i, name := range names {
			if args[i] == "" {
				return usagef("%s needs %s, and was given an empty one", cmd.Name(), name)
			}
		}
		return nil
	}
}
