package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// addJSONFlag gives a command the switch that scripts use.
func addJSONFlag(cmd *cobra.Command, what string) *bool {
	return cmd.Flags().Bool("json", false, "print "+what+" as JSON")
}

// printJSON writes v, indented, with a newline.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table is rows of text under a header. Numbers are easier to compare when they end below one
// another, which text/tabwriter does for all columns or for none: so a column says its side.
type table struct {
	right []bool
	rows  [][]string
}

// newTable begins a table; a column whose name begins with ">" is set to the right.
func newTable(columns ...string) *table {
	t := &table{right: make([]bool, len(columns))}
	header := make([]string, len(columns))
	for i, c := range columns {
		header[i], t.right[i] = strings.TrimPrefix(c, ">"), strings.HasPrefix(c, ">")
	}
	t.rows = append(t.rows, header)
	return t
}

// add appends a row. What a cell says may be somebody else's text: characters that would move a
// terminal's cursor or break the line are shown as Go writes them.
func (t *table) add(cells ...string) {
	for i, cell := range cells {
		if strings.ContainsFunc(cell, func(r rune) bool { return !unicode.IsPrint(r) }) {
			quoted := strconv.Quote(cell)
			cells[i] = quoted[1 : len(quoted)-1]
		}
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer) error {
	widths := make([]int, len(t.right))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if t.right[i] {
				line.WriteString(pad + cell)
			} else {
				line.WriteString(cell + pad)
			}
			line.WriteString("   ")
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// readable is a duration for people: three digits or so, in the unit that suits it.
func readable(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 10*time.Millisecond:
		return strconv.FormatFloat(float64(d)/1e6, 'f', 2, 64) + " ms"
	case d < 100*time.Millisecond:
		return strconv.FormatFloat(float64(d)/1e6, 'f', 1, 64) + " ms"
	case d < time.Second:
		return strconv.FormatFloat(float64(d)/1e6, 'f', 0, 64) + " ms"
	case d < time.Minute:
		return strconv.FormatFloat(math.Floor(d.Seconds()*10)/10, 'f', 1, 64) + " s"
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1000<<10:
		return fmt.Sprintf("%.1f KB", float64(n)/(1<<10))
	case n < 1000<<20:
		return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
}

// dollars writes billionths of a dollar exactly, with at least two decimals.
func dollars(nano int64) string {
	sign := ""
	abs := uint64(nano)
	if nano < 0 {
		sign, abs = "-", -abs
	}
	fraction := strings.TrimRight(fmt.Sprintf("%09d", abs%1e9), "0")
	for len(fraction) < 2 {
		fraction += "0"
	}
	return fmt.Sprintf("%s$%d.%s", sign, abs/1e9, fraction)
}

// plural is "1 file", "2 files".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
