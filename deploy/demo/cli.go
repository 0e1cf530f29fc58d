package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// cli runs client commands of the binary.
type cli struct {
	program, endpoint string
	out               *printer
}

// show runs a command as a person would, and shows the command line and what it printed.
func (c *cli) show(ctx context.Context, args ...string) error {
	c.out.command(c.program, args...)
	_, err := c.run(ctx, true, args)
	return err
}

// ask runs a command for its JSON.
func (c *cli) ask(ctx context.Context, v any, args ...string) error {
	stdout, err := c.run(ctx, false, append(args, "--json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(stdout, v); err != nil {
		return fmt.Errorf("doze %s --json: %w", args[0], err)
	}
	return nil
}

func (c *cli) run(ctx context.Context, show bool, args []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.program, args...)
	cmd.Env = append(os.Environ(), "DOZE_ENDPOINT="+c.endpoint)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if show {
		c.out.quote(stderr.String() + stdout.String())
	}
	if err != nil {
		return nil, fmt.Errorf("doze %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}
