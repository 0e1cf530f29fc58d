package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// instanceInfo is one execution environment, as GET /doze/v1/instances tells it and `doze ps
// --json` prints it.
type instanceInfo struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Version  string `json:"version"`
	// State is "starting", "idle" or "busy".
	State       string    `json:"state"`
	CreatedAt   time.Time `json:"createdAt"`
	IdleMs      int64     `json:"idleMs"`
	MemoryBytes int64     `json:"memoryBytes"`
	Calls       int64     `json:"calls"`
	// Cold: the call that started it is still the only one it has had.
	Cold   bool   `json:"cold"`
	Worker string `json:"worker,omitempty"`
}

func newPsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "Show the instances there are now",
		Long: `Show the instances there are now: each is one sandbox in which a function version runs, one call
at a time. A function without any is asleep. What the sandboxes do not give on this machine is said
on stderr.`,
		Args: noArgs,
	}
	asJSON := addJSONFlag(cmd, "the instances")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		instances := []instanceInfo{}
		if err := c.get(cmd.Context(), "/doze/v1/instances", nil, &instances); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), nonNil(instances))
		}
		var status platformStatus
		if err := c.get(cmd.Context(), "/doze/v1/status", nil, &status); err != nil {
			return err
		}
		// Not between the instances: who reads the table in a script does not look for it there.
		if missing := status.missing(); missing != "" {
			defer fmt.Fprint(cmd.ErrOrStderr(), missing)
		}
		if len(instances) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "No instances: every function is asleep.")
			return nil
		}
		now := time.Now()
		t := newTable("ID", "FUNCTION", "VERSION", "STATE", ">AGE", ">IDLE", ">MEMORY", ">CALLS")
		for _, i := range instances {
			idle := "-"
			if i.State == "idle" {
				idle = readable(time.Duration(i.IdleMs) * time.Millisecond)
			}
			t.add(i.ID, i.Function, i.Version, i.State, readable(now.Sub(i.CreatedAt)), idle,
				size(i.MemoryBytes), strconv.FormatInt(i.Calls, 10))
		}
		return t.print(cmd.OutOrStdout())
	}
	return cmd
}

// nonNil makes "null" an empty list: scripts count on an array.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
