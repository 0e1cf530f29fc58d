package runtimes

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// askLimit bounds how long an interpreter may take to tell its version.
	askLimit = 10 * time.Second
	// answerBytes bounds what is kept of its answer.
	answerBytes = 16 << 10
	// maxCandidates bounds how many programs are asked, however odd the machine's PATH is.
	maxCandidates = 64
	// nobody is the uid that candidates are run as when the worker is root.
	nobody = 65534
)

// oldest versions that the clients are written for.
const (
	oldestPython = 8 // 3.8
	oldestNode   = 18
)

var (
	pythonName = regexp.MustCompile(`^python3(\.[0-9]{1,2})?$`)
	nodeName   = regexp.MustCompile(`^(node|nodejs)([0-9.]{0,12})$`)
)

// Discover finds what this machine can run: the native runtimes always, and the interpreters that
// any uid can execute, in /usr/bin, /usr/local/bin, /opt and PATH, one for each minor version of
// Python and major version of Node.js, sorted by name. What cannot be used is skipped; the error
// is ctx's.
func Discover(ctx context.Context) ([]Runtime, error) {
	return discover(ctx, searchDirs(os.Getenv("PATH")))
}

func discover(ctx context.Context, dirs []string) ([]Runtime, error) {
	found := []Runtime{{Name: "provided.al2"}, {Name: "provided.al2023"}}
	have := map[string]bool{}
	for _, path := range candidates(dirs) {
		r, err := examine(ctx, path)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("runtimes: discover: %w", ctx.Err())
		}
		if err != nil || have[r.Name] {
			continue
		}
		have[r.Name] = true
		found = append(found, r)
	}
	slices.SortStableFunc(found, func(a, b Runtime) int { return cmp.Compare(a.Name, b.Name) })
	return found, nil
}

// searchDirs is where interpreters are looked for, the distribution's first: they need nothing
// mounted besides what every sandbox has.
func searchDirs(path string) []string {
	dirs := []string{"/usr/bin", "/usr/local/bin", "/bin"}
	for _, pattern := range []string{"/opt/*/bin", "/opt/*/*/bin", "/var/lang/bin"} {
		if more, err := filepath.Glob(pattern); err == nil {
			dirs = append(dirs, more...)
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if filepath.IsAbs(dir) {
			dirs = append(dirs, filepath.Clean(dir))
		}
	}
	return dirs
}

// candidates are the real files behind interpreters' names that every uid can reach and execute.
func candidates(dirs []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			if !pythonName.MatchString(entry.Name()) && !nodeName.MatchString(entry.Name()) {
				continue
			}
			real, err := filepath.EvalSymlinks(filepath.Join(dir, entry.Name()))
			if err != nil || seen[real] {
				continue
			}
			seen[real] = true
			if openToAll(real) && binary(real) && len(out) < maxCandidates {
				out = append(out, real)
			}
		}
	}
	return out
}

// openToAll says whether every uid can read and execute the file, or list the folder, and pass
// through all folders above it. path has no links in it.
func openToAll(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o005 != 0o005 {
		return false
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// binary tells a program from a script: version managers put scripts in an interpreter's place
// that look for it in somebody's home.
func binary(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	var magic [2]byte
	_, err = f.Read(magic[:])
	return err == nil && string(magic[:]) != "#!"
}

// answer is what both interpreters are asked to print.
type answer struct {
	Version string
	// Needs are the folders it reads its own files from.
	Needs []string
}

const (
	askPython = `import sys
v = sys.version_info
q = lambda s: '"' + s.replace('\\', '\\\\').replace('"', '\\"') + '"'
needs = [sys.base_prefix, sys.base_exec_prefix] + [p for p in sys.path if p]
print('{"Version":"%d.%d.%d","Needs":[%s]}' % (v[0], v[1], v[2], ",".join(q(p) for p in needs)))`
	askNode = `process.stdout.write(JSON.stringify({Version: process.versions.node, Needs: []}))`
)

// examine runs the interpreter at path, unprivileged where possible, and names it.
func examine(ctx context.Context, path string) (Runtime, error) {
	isNode := nodeName.MatchString(filepath.Base(path))
	args := []string{"-S", "-E", "-s", "-c", askPython}
	if isNode {
		args = []string{"-e", askNode}
	}
	out, err := ask(ctx, path, args)
	if err != nil {
		return Runtime{}, err
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		return Runtime{}, fmt.Errorf("runtimes: %s said %q: %w", path, out, err)
	}
	name, err := awsName(a.Version, isNode)
	if err != nil {
		return Runtime{}, fmt.Errorf("runtimes: %s: %w", path, err)
	}
	readOnly, err := mounts(path, a.Needs)
	if err != nil {
		return Runtime{}, err
	}
	return Runtime{Name: name, Path: path, Version: a.Version, ReadOnly: readOnly}, nil
}

func ask(ctx context.Context, path string, args []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var last error
	for _, credential := range credentials() {
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "LANG=C.UTF-8"}
		cmd.Dir = "/"
		cmd.WaitDelay = time.Second
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
		out := &bounded{limit: answerBytes}
		cmd.Stdout = out
		err := cmd.Run()
		if err == nil {
			return bytes.TrimSpace(out.b), nil
		}
		last = fmt.Errorf("runtimes: %s: %w", path, err)
		if !errors.Is(err, fs.ErrPermission) {
			break
		}
	}
	return nil, last
}

// credentials are whom to run a candidate as: nobody when the worker may, which also proves that
// an unprivileged uid can run it.
func credentials() []*syscall.Credential {
	if os.Geteuid() != 0 {
		return []*syscall.Credential{nil}
	}
	// Second: a root that may not change its uid (a container without CAP_SETUID).
	return []*syscall.Credential{{Uid: nobody, Gid: nobody}, nil}
}

type bounded struct {
	b     []byte
	limit int
}

func (w *bounded) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > w.limit {
		return 0, errors.New("runtimes: answer too long")
	}
	w.b = append(w.b, p...)
	return len(p), nil
}

func awsName(version string, node bool) (string, error) {
	parts := strings.Split(version, ".")
	if len(parts) != 3 {
		return "", fmt.Errorf("version %q", version)
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil {
		return "", fmt.Errorf("version %q", version)
	}
	switch {
	case node && major >= oldestNode:
		return fmt.Sprintf("nodejs%d.x", major), nil
	case !node && major == 3 && minor >= oldestPython:
		return fmt.Sprintf("python3.%d", minor), nil
	}
	return "", fmt.Errorf("version %s is too old", version)
}

// mounts are the folders that the interpreter at path needs and that a sandbox does not have
// anyway. An error means that one of them is closed to an unprivileged uid.
func mounts(path string, needs []string) ([]string, error) {
	var out []string
	// <prefix>/bin/node: its prefix, which also holds what it links to.
	for _, need := range append([]string{filepath.Dir(filepath.Dir(path))}, needs...) {
		real, err := filepath.EvalSymlinks(need)
		if err != nil {
			continue // python names a zip that mostly does not exist
		}
		if always(real) {
			continue
		}
		if real == "/" || !openToAll(real) {
			return nil, fmt.Errorf("runtimes: %s needs %s, which others cannot read", path, real)
		}
		out = append(out, real)
	}
	slices.Sort(out)
	// A folder covers what is below it.
	return slices.CompactFunc(out, func(a, b string) bool { return a == b || strings.HasPrefix(b, a+"/") }), nil
}

// always says whether every sandbox shows path.
func always(path string) bool {
	for _, dir := range []string{"/usr", "/lib", "/lib64", "/bin", "/sbin"} {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}
