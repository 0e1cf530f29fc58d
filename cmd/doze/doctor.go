package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/doze-run/doze/worker/doctor"
	"github.com/doze-run/doze/worker/sandbox"
)

// errCannotRun is how doctor ends where doze dev could not start.
var errCannotRun = errors.New("doze dev cannot run here in its default sandbox, see what is missing above; --sandbox process runs functions without isolation")

// diagnosis is what `doze doctor --json` prints.
type diagnosis struct {
	// Runs tells whether doze dev can run here in its default sandbox.
	Runs   bool              `json:"runs"`
	Checks []sandbox.Finding `json:"checks"`
}

func newDoctorCommand() *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show what this machine offers to functions, and what is missing",
		Long: `Show what this machine offers to the user who asks: kernel, namespaces, cgroups, runtimes, limits;
what is missing or only half there, what follows from it for functions, and how to get it.

It needs no running doze and changes nothing. It exits with 1 when doze dev could not run here at all
in its default sandbox.`,
		Args: noArgs,
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", defaultDataDir(os.Geteuid(), os.Getenv), "`DIR` that doze dev would use")
	asJSON := addJSONFlag(cmd, "the checks")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		checks := doctor.Examine(cmd.Context(), dataDir)
		d := diagnosis{Runs: doctor.Runs(checks), Checks: nonNil(checks)}
		err := d.print(cmd.OutOrStdout(), *asJSON)
		if err == nil && !d.Runs {
			return errCannotRun
		}
		return err
	}
	return cmd
}

func (d *diagnosis) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, d)
	}
	t := newTable("CHECK", "STATE", "FOUND")
	for _, c := range d.Checks {
		t.add(c.Name, string(c.State), c.Found)
	}
	if err := t.print(w); err != nil {
		return err
	}
	for _, c := range d.Checks {
		if c.State == sandbox.OK {
			continue
		}
		if _, err := fmt.Fprintf(w, "\n%s is %s: %s\n", c.Name, c.State, c.Means); err != nil {
			return err
		}
		if c.Fix == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "  to get it: %s\n", c.Fix); err != nil {
			return err
		}
	}
	return nil
}
