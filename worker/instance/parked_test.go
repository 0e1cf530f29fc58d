package instance

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux"
)

// What a function can see of its interpreter, as it is with a cold start.
const (
	pythonLook = `
import os, sys
def handler(event, context):
    import time, locale, logging, gc, signal, threading, json
    fds = {n: os.readlink("/proc/self/fd/" + n) for n in sorted(os.listdir("/proc/self/fd")) if os.path.lexists("/proc/self/fd/" + n)}
    return {"env": dict(os.environ), "envb": sorted(k.decode() for k in os.environb), "path": sys.path, "argv": sys.argv, "cwd": os.getcwd(),
        "flags": str(sys.flags), "stdin": fds["0"], "kinds": sorted(v.split(":")[0] for v in fds.values()), "read": sys.stdin.read(), "tz": time.tzname, "zone": time.strftime("%z %H", time.gmtime(0)),
        "encoding": [sys.getfilesystemencoding(), sys.stdout.encoding, locale.getpreferredencoding()], "handlers": [type(h).__name__ for h in logging.getLogger().handlers],
        "level": logging.getLogger().level, "threads": threading.active_count(), "gc": gc.isenabled(), "thresholds": gc.get_threshold(),
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)], "finders": [str(f) for f in sys.meta_path if "Logging" not in str(f)],
        "context": [context.function_name, context.function_version, context.memory_limit_in_mb, context.log_group_name, context.log_stream_name],
        "main": sorted(n for n in vars(sys.modules["__main__"])), "name": __name__, "file": __file__, "pid": os.getpid(), "children": sorted(os.listdir("/proc/self/task")) and len(os.listdir("/proc/self/task")),
        "recursion": sys.getrecursionlimit(), "builtins": sorted(vars(__builtins__) if not isinstance(__builtins__, dict) else __builtins__), "tmp": os.listdir("/tmp")}
`
	// process.stderr is made by the end of the first socket, whosever it was.
	nodeLook = `
const fs = require('fs');
exports.handler = async (event, context) => {
  const fds = fs.readdirSync('/proc/self/fd').map((n) => { try { return fs.readlinkSync('/proc/self/fd/' + n).split(':')[0]; } catch (_) { return ''; } }).filter((n) => n !== '' && !n.startsWith('/proc'));
  return { env: process.env, argv: process.argv, execArgv: process.execArgv, cwd: process.cwd(), stdin: fs.readlinkSync('/proc/self/fd/0'), fds: [...new Set(fds)].sort(), read: fs.readFileSync(0, 'utf8'),
    handles: process._getActiveHandles().filter((h) => h.fd !== 2).map((h) => h.constructor.name), listeners: process.eventNames().map(String).sort(), cache: Object.keys(require.cache).filter((n) => n.startsWith('/var/task')),
    paths: module.paths, globals: Object.getOwnPropertyNames(globalThis).sort(), zone: new Date(0).toString(), locale: Intl.DateTimeFormat().resolvedOptions(), heap: require('v8').getHeapStatistics().heap_size_limit,
    title: process.title, context: Object.keys(context), name: context.functionName, stream: context.logStreamName, pid: process.pid, tmp: fs.readdirSync('/tmp'), umask: process.umask(), main: require.main && require.main.filename };
};
`
)

// TestParkedLooksTheSame: a function cannot tell, other than by the time, whether its interpreter has waited.
func TestParkedLooksTheSame(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the linux sandbox needs root: run the tests as root to have this test")
	}
	// What differs between any two instances.
	own := regexp.MustCompile(`\[\$LATEST\][0-9a-f]{32}`)
	for _, c := range []struct{ prefix, handler, file, source string }{
		{"python3", "app.handler", "app.py", pythonLook}, {"nodejs", "index.handler", "index.js", nodeLook},
	} {
		for _, zone := range []string{"", "America/New_York"} {
			t.Run(c.prefix+zone, func(t *testing.T) {
				var looks []map[string]any
				for _, park := range []bool{false, true} {
					s, err := linux.New(linux.Options{DataDir: t.TempDir()})
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					var in sandbox.Sandbox = s
					if park {
						in = &parkFirst{Sandbox: s}
					}
					r := startIn(t, in, interpreter(t, c.prefix), c.handler, map[string]string{c.file: c.source}, func(l *Launch) {
						l.Spec.Environment = map[string]string{"MINE": "a=b\nä", "EMPTY": ""}
						if zone != "" {
							l.Spec.Environment["TZ"] = zone
						}
					})
					res := r.call(`{}`)
					if res.Outcome != OK {
						t.Fatal(describe(res))
					}
					var look map[string]any
					if err := json.Unmarshal(own.ReplaceAll(res.Payload, []byte("STREAM")), &look); err != nil {
						t.Fatal(err)
					}
					looks = append(looks, look)
					r.i.Stop()
					r.expect("ended")
				}
				if diff := cmp.Diff(looks[0], looks[1]); diff != "" {
					t.Errorf("cold is -, parked is +:\n%s", diff)
				}
			})
		}
	}
}
