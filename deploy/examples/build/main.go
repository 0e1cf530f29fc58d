// Build makes the zips of the example functions, as `doze deploy` takes them:
//
//	go run ./deploy/examples/build [-o bin/examples] [-skip-missing] [NAME...]
//
// It needs Go for thumbnail, nothing for report, and npm for graphql.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/doze-run/doze/cmd/doze/bundle"
	"github.com/doze-run/doze/deploy/examples"
)

// source is where the examples are, seen from the top of the repository.
const source = "deploy/examples"

func main() {
	out := flag.String("o", "bin/examples", "folder for the zips")
	skip := flag.Bool("skip-missing", false, "leave out what a missing tool is needed for, instead of failing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := build(ctx, *out, *skip, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "examples:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, out string, skip bool, names []string) error {
	if _, err := os.Stat(source); err != nil {
		return fmt.Errorf("run it from the top of the repository: %w", err)
	}
	for _, e := range examples.All() {
		if len(names) > 0 && !slices.Contains(names, e.Name) {
			continue
		}
		if e.Name == "graphql" {
			if _, err := exec.LookPath("npm"); err != nil {
				if !skip {
					return fmt.Errorf("graphql needs npm, which fetches its one dependency (Debian: apt-get install npm): %w", err)
				}
				fmt.Fprintln(os.Stderr, "examples: graphql left out: there is no npm here to fetch its dependency")
				continue
			}
		}
		if err := one(ctx, e.Name, out); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}

// one stages an example in a folder of its own and zips that.
func one(ctx context.Context, name, out string) error {
	stage, err := filepath.Abs(filepath.Join(out, name))
	if err != nil {
		return err
	}
	if err := clear(stage); err != nil {
		return err
	}
	from := filepath.Join(source, name)
	switch name {
	case "thumbnail":
		err = run(ctx, ".", []string{"CGO_ENABLED=0", "GOOS=linux"}, "go", "build", "-trimpath", "-ldflags=-s -w", "-tags=lambda.norpc",
			"-o", filepath.Join(stage, "bootstrap"), "./"+from)
	case "report":
		err = copyFiles(from, stage, "report.py")
	case "graphql":
		err = stageGraphQL(ctx, from, stage)
	default:
		err = fmt.Errorf("no rule to build it")
	}
	if err != nil {
		return err
	}
	b, err := bundle.Folder(ctx, stage)
	if err != nil {
		return err
	}
	zip := stage + ".zip"
	if err := os.WriteFile(zip, b.Zip, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "examples: %s.zip: %d files, %d KB\n", name, b.Files, len(b.Zip)>>10)
	return nil
}

// clear makes the folder and empties it of all but what npm fetched.
func clear(stage string) error {
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(stage)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "node_modules" || e.Name() == "package-lock.json" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(stage, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// stageGraphQL copies the sources and has npm fetch what the lock file names, unless it has done so
// for this very lock file.
func stageGraphQL(ctx context.Context, from, stage string) error {
	lock, err := os.ReadFile(filepath.Join(from, "package-lock.json"))
	if err != nil {
		return err
	}
	had, _ := os.ReadFile(filepath.Join(stage, "package-lock.json"))
	_, missing := os.Stat(filepath.Join(stage, "node_modules", ".package-lock.json"))
	if err := copyFiles(from, stage, "package.json", "index.js", "library.js", "depth.js", "schema.graphql", "data/library.json"); err != nil {
		return err
	}
	if missing == nil && bytes.Equal(had, lock) {
		return nil
	}
	if err := copyFiles(from, stage, "package-lock.json"); err != nil {
		return err
	}
	return run(ctx, stage, nil, "npm", "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
}

func copyFiles(from, to string, names ...string) error {
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, data, fs.FileMode(0o644)); err != nil {
			return err
		}
	}
	return nil
}

// run runs a tool; what it prints goes to stderr.
func run(ctx context.Context, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %v: %w", name, args, err)
	}
	return nil
}
