package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// platformStatus is how the platform is, as GET /doze/v1/status tells it.
type platformStatus struct {
	Version       string         `json:"version"`
	Ready         bool           `json:"ready"`
	Problems      []string       `json:"problems"`
	UptimeMs      int64          `json:"uptimeMs"`
	Functions     int64          `json:"functions"`
	Instances     int64          `json:"instances"`
	PendingEvents int64          `json:"pendingEvents"`
	Workers       []workerStatus `json:"workers"`
	Leader        string         `json:"leader"`
	Nodes         []nodeStatus   `json:"nodes"`
}

type nodeStatus struct {
	Name    string `json:"name"`
	API     string `json:"api"`
	Version string `json:"version"`
	Alive   bool   `json:"alive"`
	Serving bool   `json:"serving"`
	Voter   bool   `json:"voter"`
}

type workerStatus struct {
	ID               string   `json:"id"`
	MemoryTotalBytes int64    `json:"memoryTotalBytes"`
	MemoryFreeBytes  int64    `json:"memoryFreeBytes"`
	Instances        int64    `json:"instances"`
	Sandbox          string   `json:"sandbox"`
	Missing          []string `json:"missing"`
	Draining         bool     `json:"draining"`
	Unavailable      string   `json:"unavailable"`
	// Parked are its sandboxes that wait for a function.
	Parked []struct {
		Kind        string `json:"kind"`
		Parked      int64  `json:"parked"`
		Target      int64  `json:"target"`
		Hits        int64  `json:"hits"`
		Misses      int64  `json:"misses"`
		MemoryBytes int64  `json:"memoryBytes"`
	} `json:"parked"`
}

func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the platform is: readiness, workers, memory",
		Args:  noArgs,
	}
	asJSON := addJSONFlag(cmd, "the status")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		if *asJSON {
			// As it came: the status may tell more than this binary knows.
			var all map[string]any
			if err := c.get(cmd.Context(), "/doze/v1/status", nil, &all); err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), all)
		}
		var s platformStatus
		if err := c.get(cmd.Context(), "/doze/v1/status", nil, &s); err != nil {
			return err
		}
		return s.print(cmd.OutOrStdout())
	}
	return cmd
}

func (s *platformStatus) print(w io.Writer) error {
	state := "ready"
	if !s.Ready {
		state = "not ready"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "doze %s, %s, up %s\n", s.Version, state, readable(time.Duration(s.UptimeMs)*time.Millisecond))
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "  problem: %s\n", p)
	}
	fmt.Fprintf(&b, "%s, %s, %s waiting\n\n", plural(int(s.Functions), "function"), plural(int(s.Instances), "instance"),
		plural(int(s.PendingEvents), "event"))
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	if len(s.Nodes) > 1 {
		if err := s.nodes().print(w); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	t := newTable("WORKER", "SANDBOX", ">INSTANCES", ">MEMORY FREE", ">OF", "STATE")
	for _, k := range s.Workers {
		state := "takes calls"
		switch {
		case k.Unavailable != "":
			state = "takes no calls: " + k.Unavailable
		case k.Draining:
			state = "draining"
		}
		t.add(k.ID, k.Sandbox, strconv.FormatInt(k.Instances, 10), size(k.MemoryFreeBytes), size(k.MemoryTotalBytes), state)
	}
	if err := t.print(w); err != nil {
		return err
	}
	if parked := s.parked(); parked != nil {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := parked.print(w); err != nil {
			return err
		}
	}
	missing := s.missing()
	if missing == "" {
		return nil
	}
	_, err := fmt.Fprint(w, "\n"+missing)
	return err
}

// missing is what the workers' sandboxes do not give, a line each.
func (s *platformStatus) missing() string {
	var b strings.Builder
	for _, k := range s.Workers {
		for _, m := range k.Missing {
			fmt.Fprintf(&b, "%s does not give: %s\n", k.ID, m)
		}
	}
	return b.String()
}

// nodes are the control nodes of a cluster.
func (s *platformStatus) nodes() *table {
	t := newTable("CONTROL NODE", "API", "VERSION", "STATE")
	for _, n := range s.Nodes {
		state := "serves"
		switch {
		case !n.Alive:
			state = "away"
		case !n.Serving:
			state = "takes no new calls"
		}
		if n.Name == s.Leader {
			state += ", leads"
		}
		if !n.Voter {
			state += ", no voter"
		}
		t.add(n.Name, n.API, n.Version, state)
	}
	return t
}

// parked is what waits for functions, nil when nothing does.
func (s *platformStatus) parked() *table {
	var t *table
	for _, k := range s.Workers {
		for _, p := range k.Parked {
			if t == nil {
				t = newTable("WORKER", "PARKED", ">NOW", ">TARGET", ">MEMORY", ">HITS", ">MISSES")
			}
			t.add(k.ID, p.Kind, strconv.FormatInt(p.Parked, 10), strconv.FormatInt(p.Target, 10), size(p.MemoryBytes),
				strconv.FormatInt(p.Hits, 10), strconv.FormatInt(p.Misses, 10))
		}
	}
	return t
}
