package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// bill is the statement of a month, as GET /doze/v1/bill tells it and `doze bill --json` prints it.
// Amounts are billionths of a dollar.
type bill struct {
	Month           string         `json:"month"`
	Functions       []functionBill `json:"functions"`
	TotalNanoUSD    int64          `json:"totalNanoUSD"`
	AlwaysOnNanoUSD int64          `json:"alwaysOnNanoUSD"`
}

// functionBill is one function's part. The GB-seconds are kept as they were written.
type functionBill struct {
	Function string `json:"function"`
	Requests int64  `json:"requests"`
	// MbMs is billed milliseconds times megabytes, the exact figure behind the amount.
	MbMs          int64       `json:"mbMs"`
	GBSeconds     json.Number `json:"gbSeconds"`
	FreeRequests  int64       `json:"freeRequests"`
	FreeGBSeconds json.Number `json:"freeGbSeconds"`
	AmountNanoUSD int64       `json:"amountNanoUSD"`
}

var monthPattern = regexp.MustCompile(`^[0-9]{4}-(0[1-9]|1[0-2])$`)

func newBillCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bill",
		Short: "Show what a month costs, function by function",
		Long: `Show what a month (UTC) costs, function by function: requests and GB-seconds, what of them the
free tier covered, and the amount. Every call answered two seconds ago or more is in it.`,
		Args: noArgs,
	}
	month := cmd.Flags().String("month", "", "the `MONTH` as YYYY-MM (default this month, UTC)")
	asJSON := addJSONFlag(cmd, "the bill")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		query := url.Values{}
		if *month != "" {
			if !monthPattern.MatchString(*month) {
				return usagef("--month %q is not a month: write it like 2026-01", *month)
			}
			query.Set("month", *month)
		}
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		var b bill
		if err := c.get(cmd.Context(), "/doze/v1/bill", query, &b); err != nil {
			return err
		}
		b.Functions = nonNil(b.Functions)
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), &b)
		}
		return b.print(cmd.OutOrStdout())
	}
	return cmd
}

func (b *bill) print(w io.Writer) error {
	title := b.Month
	if month, err := time.Parse("2006-01", b.Month); err == nil {
		title = month.Format("January 2006")
	}
	if _, err := fmt.Fprintf(w, "Bill for %s (UTC)\n\n", title); err != nil {
		return err
	}
	t := newTable("FUNCTION", ">REQUESTS", ">FREE", ">GB-SECONDS", ">FREE", ">AMOUNT")
	var requests, free int64
	for _, f := range b.Functions {
		requests += f.Requests
		free += f.FreeRequests
		t.add(f.Function, strconv.FormatInt(f.Requests, 10), strconv.FormatInt(f.FreeRequests, 10),
			gbSeconds(f.GBSeconds), gbSeconds(f.FreeGBSeconds), dollars(f.AmountNanoUSD))
	}
	t.add("total", strconv.FormatInt(requests, 10), strconv.FormatInt(free, 10), "", "", dollars(b.TotalNanoUSD))
	if err := t.print(w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nA server that is always on, at $0.02 an hour, would have cost %s.\n", dollars(b.AlwaysOnNanoUSD))
	return err
}

// gbSeconds shortens a figure for the table; the JSON has it whole.
func gbSeconds(n json.Number) string {
	f, err := n.Float64()
	if err != nil {
		return n.String()
	}
	return strconv.FormatFloat(f, 'f', 3, 64)
}
