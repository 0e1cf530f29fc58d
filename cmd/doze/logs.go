package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

// maxLogRecordBytes bounds one record: a line of 256 KB, escaped at its worst.
const maxLogRecordBytes = 2 << 20

// logRecord is one line of a function's log.
type logRecord struct {
	AtMs    int64  `json:"atMs"`
	Stream  string `json:"stream"`
	Message string `json:"message"`
}

func newLogsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show what a function printed, and its START, END and REPORT lines",
		Example: `  doze logs thumbnail --since 10m
  doze logs thumbnail --follow`,
		Args:              namedArgs("the NAME of a function"),
		ValidArgsFunction: completeFunction,
	}
	follow := cmd.Flags().BoolP("follow", "f", false, "go on with what is logged from now on, until Ctrl-C")
	since := cmd.Flags().String("since", "", "only lines from this `TIME` on: 10m ago, or 2026-01-31T12:00:00Z")
	asJSON := addJSONFlag(cmd, "one record a line")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		query := url.Values{}
		if *since != "" {
			if !isSince(*since) {
				return usagef("--since %q is neither a duration (10m) nor a time (2026-01-31T12:00:00Z)", *since)
			}
			query.Set("since", *since)
		}
		if *follow {
			query.Set("follow", "true")
		}
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		body, err := c.open(cmd.Context(), "/doze/v1/functions/"+url.PathEscape(args[0])+"/logs", query)
		if err != nil {
			return err
		}
		defer body.Close()
		if err := copyLog(cmd.OutOrStdout(), body, *asJSON); err != nil {
			if isCancelled(cmd.Context(), err) {
				return nil
			}
			return c.explain(err)
		}
		if *follow {
			return fmt.Errorf("%s ended the log: did it stop?", c.endpoint)
		}
		return nil
	}
	return cmd
}

// copyLog prints a stream of records until it ends.
func copyLog(w io.Writer, records io.Reader, asJSON bool) error {
	scanner := bufio.NewScanner(records)
	scanner.Buffer(make([]byte, 64<<10), maxLogRecordBytes)
	for scanner.Scan() {
		line := scanner.Bytes()
		if len(line) == 0 {
			continue // keeps the connection alive
		}
		var r logRecord
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("the log has a record that cannot be read: %w", err)
		}
		var err error
		if asJSON {
			_, err = fmt.Fprintf(w, "%s\n", line)
		} else {
			_, err = fmt.Fprintf(w, "%s %s\n", time.UnixMilli(r.AtMs).UTC().Format("2006-01-02T15:04:05.000Z"), r.Message)
		}
		if err != nil {
			return err
		}
	}
	if err := scanner.Err(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// isSince tells what the endpoint takes for a point in the past.
func isSince(s string) bool {
	if d, err := time.ParseDuration(s); err == nil {
		return d >= 0
	}
	_, err := time.Parse(time.RFC3339, s)
	return err == nil
}
