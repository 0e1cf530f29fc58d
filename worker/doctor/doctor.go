// Package doctor looks at a machine with the eyes of a worker: what it offers to functions, what is missing, what
// follows from that and how to get it.
//
// What the sandbox needs, the sandbox itself probes; this package adds what the rest of a worker needs. It changes
// nothing, and must not print.
package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/doze-run/doze/worker/capacity"
	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
	// leastFiles open files are enough for a worker with some hundred instances: about six for each.
	leastFiles = 8192
	// leastTasks is what a user or a machine should be allowed for the same.
	leastTasks = 4096
	// leastRoom on the disk is for code, events and the journal; with less than 16 MB nothing is stored.
	leastRoom = 1 * gib
)

// Examine looks at everything. dataDir is where the worker's data would be; it need not exist.
func Examine(ctx context.Context, dataDir string) []sandbox.Finding {
	list := linux.Examine(ctx)
	list = append(list, findRuntimes(ctx)...)
	return append(list, memory(), files(), tasks(), room(dataDir), network(), clock())
}

// Runs tells whether instances can be started at all in the linux sandbox.
func Runs(list []sandbox.Finding) bool {
	for _, f := range list {
		if f.Needed && f.State == sandbox.Missing {
			return false
		}
	}
	return true
}

func findRuntimes(ctx context.Context) []sandbox.Finding {
	found, err := runtimes.Discover(ctx)
	if err != nil {
		return []sandbox.Finding{{Name: "runtimes", State: sandbox.Missing, Found: err.Error(), Means: "no function can run", Needed: true}}
	}
	var list []sandbox.Finding
	for _, kind := range []struct{ prefix, name, pkg string }{
		{"provided", "programs of one's own", ""}, {"python", "Python", "python3"}, {"nodejs", "Node.js", "nodejs"},
	} {
		var names []string
		for _, r := range found {
			if strings.HasPrefix(r.Name, kind.prefix) {
				name := r.Name
				if r.Path != "" {
					name += " (" + r.Path + ", " + r.Version + ")"
				}
				names = append(names, name)
			}
		}
		f := sandbox.Finding{Name: "runtime: " + kind.name, State: sandbox.OK, Found: strings.Join(names, ", ")}
		if len(names) == 0 {
			f.State, f.Found = sandbox.Missing, "no interpreter that every user can execute"
			f.Means, f.Fix = "functions in "+kind.name+" do not run here", "install the package "+kind.pkg+" (in /usr, /usr/local or /opt, not in somebody's home)"
		}
		list = append(list, f)
	}
	return list
}

func memory() sandbox.Finding {
	total := capacity.Default()
	f := sandbox.Finding{Name: "memory", State: sandbox.OK, Found: fmt.Sprintf("%d MB for instances, less a reserve", total/mib)}
	if total < 512*mib {
		f.State, f.Means, f.Fix = sandbox.Degraded, "few instances fit at once; calls wait or get 429", "more memory, or --memory-overcommit"
	}
	return f
}

// room is what the disk of a folder, or of the first above it that exists, has left.
func room(dataDir string) sandbox.Finding {
	dir := filepath.Clean(dataDir)
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	f := sandbox.Finding{Name: "data folder", State: sandbox.OK, Found: dataDir}
	free, writable, err := disk(dir)
	switch {
	case err != nil:
		f.State, f.Found, f.Means = sandbox.Degraded, dataDir+": "+err.Error(), "it may not be usable"
	case !writable:
		f.State, f.Found = sandbox.Missing, fmt.Sprintf("%s: this user may not write to %s", dataDir, dir)
		f.Means, f.Fix, f.Needed = "doze dev cannot keep its state there", "another folder, with --data-dir", true
	case free < leastRoom:
		f.State, f.Found = sandbox.Degraded, fmt.Sprintf("%s: %d MB left", dataDir, free/mib)
		f.Means, f.Fix = "with less than 16 MB neither code nor events are taken", "free some room, or another folder with --data-dir"
	default:
		f.Found = fmt.Sprintf("%s: %d MB left", dataDir, free/mib)
	}
	return f
}

// network is what instances could be given of a network besides their own loopback.
func network() sandbox.Finding {
	var gone []string
	if !kernelHas("veth") {
		gone = append(gone, "veth")
	}
	if !kernelHas("nf_tables") {
		gone = append(gone, "nf_tables")
	}
	f := sandbox.Finding{Name: "network", State: sandbox.OK, Found: "veth and nf_tables are there, or can be loaded"}
	switch {
	case os.Geteuid() != 0:
		f.State, f.Found = sandbox.Degraded, "an ordinary user makes no interfaces on the host"
		f.Means, f.Fix = "instances have their own loopback and nothing else", "run as root"
	case len(gone) > 0:
		f.State, f.Found = sandbox.Degraded, "not found: "+strings.Join(gone, ", ")
		f.Means, f.Fix = "instances may have no network but their own loopback", "modprobe "+strings.Join(gone, "; modprobe ")
	}
	return f
}

// kernelHas tells whether a module is loaded, built in or can be loaded.
func kernelHas(module string) bool {
	if _, err := os.Stat("/sys/module/" + module); err == nil {
		return true
	}
	if path, err := exec.LookPath("/sbin/modprobe"); err == nil && exec.Command(path, "-n", "-q", module).Run() == nil {
		return true
	}
	return configured(module)
}
