package bench

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// figureNames says how figures are written in the column of results, in their order.
var figureNames = []struct{ name, format string }{
	{Rate, "%s/s"},
	{P50, "p50 %s ms"},
	{P99, "p99 %s ms"},
	{RoundP50, "round %s ms"},
	{AboveFloorCPU, "%s µs above the floor"},
	{PlatformCPU, "platform %s µs"},
	{LoopCPU, "bare loop %s µs"},
	{FunctionCPU, "functions %s µs"},
	{FloorFunctionCPU, "floor's functions %s µs"},
	{AllStarted, "all started %s ms"},
	{AllAnswered, "all answered %s ms"},
	{Instances, "%s instances"},
	{RSS, "RSS %s MB"},
	{PSS, "PSS %s MB"},
	{AvailableMem, "MemAvailable %s MB"},
	{FreedMem, "freed %s of it"},
	{FrozenP50, "frozen p50 %s ms"},
	{AwakeP50, "awake p50 %s ms"},
	{ThawAdded, "thawing adds %s ms"},
	{PoolHits, "pool hits %s"},
	{PoolMisses, "misses %s"},
}

// Write prints the report as an aligned Markdown table, readable on a terminal and in a README.
func (r *Report) Write(w io.Writer) error {
	m := r.Machine
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores, %d MB, %s, cgroup %s, load average %s before the run; %s; %s\n", m.CPU, m.Cores, m.MemoryMB, m.Kernel, m.Cgroup, m.Load1, m.Go, m.Date.Format("2006-01-02 15:04 MST"))
	if r.Quick {
		b.WriteString("quick run: few rounds, read the figures with care\n")
	}
	b.WriteString("\n")
	cells := [][]string{{"row", "handler", "MB", "conns", "result", "open loop", "against baselines", "target", "reached", "generator"}}
	for i := range r.Rows {
		cells = append(cells, r.Rows[i].cells())
	}
	writeTable(&b, cells)
	b.WriteString("\n")
	for _, line := range r.Method {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	writeReasons(&b, r.Rows)
	for _, row := range r.Rows {
		if row.Note != "" {
			fmt.Fprintf(&b, "- %s: %s\n", row.Key, row.Note)
		}
		if row.Errors > 0 {
			fmt.Fprintf(&b, "- %s: %d of %d calls failed, the first: %s\n", row.Key, row.Errors, row.Errors+row.Calls, row.FirstError)
		}
	}
	fmt.Fprintf(&b, "- the run took %.0f s\n", r.Seconds)
	_, err := io.WriteString(w, b.String())
	return err
}

// cells is the row as it stands in the table.
func (r *Row) cells() []string {
	dash := func(n int) string {
		if n == 0 {
			return "-"
		}
		return strconv.Itoa(n)
	}
	handler := r.Handler
	if r.Runtime != "" {
		handler = strings.TrimSpace(r.Runtime + " " + handler)
	}
	c := []string{r.Key, handler, dash(r.MemorySize), dash(r.Connections), "not measured", "", "", "", "", ""}
	if r.NotMeasured != "" {
		return c
	}
	var result, targets []string
	for _, f := range figureNames {
		if v, ok := r.Figures[f.name]; ok {
			result = append(result, fmt.Sprintf(f.format, number(v)))
		}
	}
	c[4] = strings.Join(result, ", ")
	if rate, ok := r.Figures[OpenRate]; ok {
		c[5] = fmt.Sprintf("p50 %s p99 %s ms at %s/s", number(r.Figures[OpenP50]), number(r.Figures[OpenP99]), number(rate))
	}
	c[6] = ratioText(r.Ratios)
	for _, t := range r.Targets {
		s := fmt.Sprintf("%s %s %s", label(t.Figure), map[string]string{"<=": "≤", ">=": "≥"}[t.Op], strconv.FormatFloat(t.Value, 'f', -1, 64))
		if t.To != "" {
			s += "× " + t.To
		}
		if !t.Reached && len(r.Targets) > 1 {
			s += " (missed)"
		}
		targets = append(targets, s)
	}
	c[7] = strings.Join(targets, ", ")
	if r.Reached != nil {
		c[8] = map[bool]string{true: "yes", false: "NO"}[*r.Reached]
	}
	if share, ok := r.Figures[GeneratorCPU]; ok {
		c[9] = number(100*share) + " %"
	}
	return c
}

// ratioText groups ratios by what they are to: "p50 3.1×, calls/s 0.3× echo.c1; calls/s 0.7× floor.go.p8".
func ratioText(ratios []Ratio) string {
	var b strings.Builder
	for i, x := range ratios {
		fmt.Fprintf(&b, "%s %s×", label(x.Figure), number(x.Value))
		switch {
		case i+1 == len(ratios):
			b.WriteString(" " + x.To)
		case ratios[i+1].To != x.To:
			b.WriteString(" " + x.To + "; ")
		default:
			b.WriteString(", ")
		}
	}
	return b.String()
}

// label is a figure's name in the table's short form.
func label(figure string) string {
	switch figure {
	case Rate:
		return "calls/s"
	case AboveFloorCPU:
		return "µs above floor"
	}
	for _, unit := range []string{"Ms", "MB", "Micros"} {
		if s, ok := strings.CutSuffix(figure, unit); ok {
			return s
		}
	}
	return figure
}

// number writes three significant digits, and no exponent.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}

// writeReasons says why rows were not measured, each reason once.
func writeReasons(b *strings.Builder, rows []Row) {
	keys := make(map[string][]string)
	var order []string
	for _, row := range rows {
		if why := row.NotMeasured; why != "" {
			if keys[why] == nil {
				order = append(order, why)
			}
			keys[why] = append(keys[why], row.Key)
		}
	}
	for _, why := range order {
		fmt.Fprintf(b, "- not measured: %s: %s\n", strings.Join(keys[why], ", "), oneLine(why))
	}
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 400 {
		s = strings.ToValidUTF8(s[:400], "") + "..."
	}
	return s
}

func writeTable(b *strings.Builder, cells [][]string) {
	width := make([]int, len(cells[0]))
	for _, row := range cells {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for n, row := range cells {
		for i, c := range row {
			b.WriteString("| " + c + strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+1))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range width {
				b.WriteString("|" + strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
}
