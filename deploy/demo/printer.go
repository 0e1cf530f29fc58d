package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// printer writes for a person: plain on a file or pipe, with some colour on a terminal.
type printer struct {
	w        io.Writer
	terminal bool
}

func newPrinter(f *os.File) *printer {
	info, err := f.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &printer{w: f, terminal: terminal}
}

const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	blue  = "34"
)

func (p *printer) colour(code, s string) string {
	if !p.terminal {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// title begins a chapter.
func (p *printer) title(s string) { fmt.Fprintf(p.w, "\n%s\n", p.colour(bold, s)) }

// command shows a command line as it could be typed.
func (p *printer) command(program string, args ...string) {
	words := []string{program}
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \"'$`\\{}") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	fmt.Fprintf(p.w, "  %s\n", p.colour(blue, "$ "+strings.Join(words, " ")))
}

// quote shows what a command printed, of much only the beginning.
func (p *printer) quote(s string) {
	const most = 12
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, line := range lines {
		if i == most {
			p.note("  ... and %d more", len(lines)-most)
			return
		}
		fmt.Fprintf(p.w, "    %s\n", line)
	}
}

// ok says that a step did what it says.
func (p *printer) ok(format string, args ...any) {
	fmt.Fprintf(p.w, "  %s %s\n", p.colour(green, "ok"), fmt.Sprintf(format, args...))
}

// note says something in passing.
func (p *printer) note(format string, args ...any) {
	fmt.Fprintf(p.w, "  %s\n", p.colour(dim, fmt.Sprintf(format, args...)))
}

// bar draws a number, with what it counts.
func (p *printer) bar(at time.Duration, n, of, width int, text string) {
	filled := 0
	if of > 0 {
		filled = min(width, (n*width+of-1)/of)
	}
	fmt.Fprintf(p.w, "    %7s  %s%s  %s\n", readable(at), p.colour(blue, strings.Repeat("#", filled)), strings.Repeat(" ", width-filled), text)
}

func (p *printer) failed(err error) {
	fmt.Fprintf(p.w, "\n%s %v\n", p.colour(red, "FAILED"), err)
}

// readable is a duration in the unit that suits it.
func readable(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
