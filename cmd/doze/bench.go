package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/doze-run/doze/cmd/doze/bench"
)

// benchCommand is `doze bench`.
func benchCommand() *cobra.Command {
	var (
		options    bench.Options
		rows, out  string
		asJSON     bool
		goFunction string
	)
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure Doze beside a plain server and a bare Runtime API loop",
		Long: `Measure Doze beside two baselines taken in the same run: a plain net/http echo server called the
same way, and the Runtime API floor, the same function as plain processes polled by a bare loop.

It starts a doze dev of its own (or uses --endpoint), deploys its functions, measures for at most
ten minutes, prints a table on stdout and progress on stderr, and removes everything again. Nothing
else should run on the machine meanwhile. The Go rows need the function that "make bench" builds.`,
		Example: `  doze bench
  doze bench --quick
  doze bench --rows '^(warm|cold)\.python'
  doze bench --json --out figures.json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			if rows != "" {
				if options.Rows, err = regexp.Compile(rows); err != nil {
					return usagef("--rows: %w", err)
				}
			}
			if goFunction == "" {
				goFunction = filepath.Join(filepath.Dir(program), "bench-go")
			}
			options.Program, options.GoFunction = program, goFunction
			options.Interpreter = benchInterpreter
			options.Progress = cmd.ErrOrStderr()
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
			report, runErr := bench.Run(ctx, options)
			if report == nil {
				return runErr
			}
			if errors.Is(runErr, context.Canceled) {
				runErr = errors.New("interrupted: the report holds what was measured until then")
			}
			return errors.Join(runErr, printReport(cmd, report, asJSON, out))
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&options.Quick, "quick", false, "at most a minute and a half: few rounds, rough figures")
	flags.StringVar(&rows, "rows", "", "measure the rows whose key matches this regular expression, and their baselines")
	flags.StringVar(&options.Endpoint, "endpoint", "", "measure the Doze at this http address instead of starting one; its CPU and memory are not measured then")
	flags.StringVar(&goFunction, "go-function", "", "the built Go function (default bench-go beside the doze binary)")
	flags.BoolVar(&asJSON, "json", false, "print the report as JSON")
	flags.StringVar(&out, "out", "", "write the report as JSON to this file too")
	cmd.AddCommand(&cobra.Command{
		Use:    bench.EchoCommand,
		Short:  "The plain net/http echo server that doze bench measures against",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return bench.ServeEcho(ctx, cmd.OutOrStdout())
		},
	})
	return cmd
}

// printReport writes the report to stdout, and to the file out when there is one.
func printReport(cmd *cobra.Command, report *bench.Report, asJSON bool, out string) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	text = append(text, '\n')
	if out != "" {
		if err := os.WriteFile(out, text, 0o644); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	if asJSON {
		_, err = cmd.OutOrStdout().Write(text)
		return err
	}
	return report.Write(cmd.OutOrStdout())
}
