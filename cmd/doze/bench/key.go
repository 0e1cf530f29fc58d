package bench

import (
	"regexp"
	"strconv"
	"strings"
)

// key joins the parts of a row's key.
func key(parts ...string) string { return strings.Join(parts, ".") }

func splitKey(k string) []string { return strings.Split(k, ".") }

// conns is the part of a key that says how many connections a row has.
func conns(n int) string { return "c" + strconv.Itoa(n) }

// wanted says which rows a run measures: those the user asked for, and every row that one of them
// is held against or computed from, because a ratio is only worth something within one run.
func wanted(rows []Row, match *regexp.Regexp) map[string]bool {
	want := make(map[string]bool)
	for _, r := range rows {
		if match == nil || match.MatchString(r.Key) {
			want[r.Key] = true
		}
	}
	for _, r := range rows {
		if !want[r.Key] {
			continue
		}
		for _, ratio := range r.ratios {
			want[ratio.To] = true
		}
		for _, g := range r.goals {
			if g.To != "" {
				want[g.To] = true
			}
		}
		if l, ok := strings.CutPrefix(r.Key, "cpu.platform."); ok {
			want[key("warm", l, "c64")] = true
			want[key("floor", l, "p8")] = true
			want["echo.c64"] = true
		}
	}
	return want
}
