package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/doze-run/doze/cmd/doze/bench"
	"github.com/doze-run/doze/worker/runtimes"
)

// benchInterpreter finds the newest interpreter of a language on this machine and puts Doze's own
// runtime client for it below dir, so that doze bench can run a function as a plain process.
func benchInterpreter(ctx context.Context, language, dir string, memoryMB int) (bench.Interpreter, error) {
	found, err := runtimes.Discover(ctx)
	if err != nil {
		return bench.Interpreter{}, err
	}
	found = slices.DeleteFunc(found, func(r runtimes.Runtime) bool { return r.Native() || !strings.HasPrefix(r.Name, language) })
	if len(found) == 0 {
		return bench.Interpreter{}, fmt.Errorf("this machine has no %s that an unprivileged process can run", language)
	}
	// python3.9 before python3.11: by length, then by name.
	newest := slices.MaxFunc(found, func(a, b runtimes.Runtime) int {
		return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	if err := runtimes.Install(ctx, dir, []runtimes.Runtime{newest}); err != nil {
		return bench.Interpreter{}, err
	}
	i := bench.Interpreter{Runtime: newest.Name}
	for _, arg := range newest.Argv(uint32(memoryMB)) {
		if rest, ok := strings.CutPrefix(arg, runtimes.RuntimeRoot); ok {
			arg = filepath.Join(dir, rest)
		}
		i.Argv = append(i.Argv, arg)
	}
	for name, value := range newest.Environment() {
		i.Env = append(i.Env, name+"="+value)
	}
	slices.Sort(i.Env)
	return i, nil
}
