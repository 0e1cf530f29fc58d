package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/doze-run/doze/worker/sandbox"
)

// Parked makes a factory of sandboxes whose every Start is the Start of one that was parked before. With
// waiting, Python scripts run in an interpreter that was parked too.
func Parked(factory Factory, waiting bool) Factory {
	return func(t *testing.T, dataDir string) sandbox.Sandbox {
		s := factory(t, dataDir)
		parker, ok := s.(sandbox.Parker)
		if !ok {
			t.Skip("this sandbox does not park")
		}
		return &parkFirst{Sandbox: s, parker: parker, waiting: waiting}
	}
}

type parkFirst struct {
	sandbox.Sandbox
	parker  sandbox.Parker
	waiting bool
}

// scriptVar carries a script to a waiting interpreter.
const scriptVar = "DOZE_TEST_SCRIPT"

// loader is a program that can be parked.
const loader = `
def wait():
    import os
    os.write(0, b".")
    message = b""
    while True:
        part = os.read(0, 65536)
        if not part: break
        message += part
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.clear()
    for v in message.split(b"\0")[:-1]:
        name, _, value = v.partition(b"=")
        os.environb[name] = value
    os.chdir("/var/task")
    return os.environ.pop("` + scriptVar + `")
exec(wait())
`

func (s *parkFirst) Start(ctx context.Context, config sandbox.Config) (sandbox.Process, error) {
	if err := config.Check(); err != nil {
		return nil, err
	}
	park := parkConfig()
	park.Egress = config.Egress
	if s.waiting && len(config.Argv) == 3 && config.Argv[0] == python && config.Argv[1] == "-c" {
		park.Argv, park.Env = []string{python, "-c", loader}, []string{"PATH=/usr/bin", "LANG=C.UTF-8", "PARKED=yes"}
		park.RuntimeDir, park.ReadOnly = config.RuntimeDir, config.ReadOnly
		config.Env = append(config.Env[:len(config.Env):len(config.Env)], scriptVar+"="+config.Argv[2])
	}
	k, err := s.parker.Park(ctx, park)
	if err != nil {
		return nil, err
	}
	return k.Start(ctx, config)
}

// parkConfig is an ordinary parked sandbox, of other limits than those that the tests start with.
func parkConfig() sandbox.ParkConfig {
	return sandbox.ParkConfig{
		ID:          "t-park-" + strconv.FormatInt(serial.Add(1), 10),
		MemoryBytes: 96 << 20, TmpBytes: 32 << 20, CPUMilli: 500, MaxProcesses: 64,
	}
}

// Parks is what every sandbox does that parks.
func Parks(t *testing.T, factory Factory) {
	f := open(t, factory)
	parker, ok := f.Sandbox.(sandbox.Parker)
	if !ok {
		t.Skip("this sandbox does not park")
	}
	park := func(t *testing.T, argv ...string) sandbox.Parked {
		t.Helper()
		c := parkConfig()
		c.Argv = argv
		k, err := parker.Park(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { gone(t, k) })
		return k
	}
	t.Run("once", func(t *testing.T) {
		k := park(t)
		p, err := k.Start(t.Context(), f.config(bash, "-c", "echo up"))
		if err != nil {
			t.Fatal(err)
		}
		if out := readAll(t, p.Output()); out != "up\n" {
			t.Errorf("%q", out)
		}
		<-p.Done()
		if _, err := k.Start(t.Context(), f.config(bash, "-c", "echo again")); err == nil {
			t.Error("a parked sandbox was used twice")
		}
		k.Discard()
	})
	t.Run("at once", func(t *testing.T) {
		k := park(t, python, "-c", loader)
		won := make(chan sandbox.Process, 8)
		for range cap(won) {
			go func() {
				p, _ := k.Start(t.Context(), f.config(bash, "-c", "true"))
				won <- p
			}()
		}
		starts := 0
		for range cap(won) {
			if p := <-won; p != nil {
				starts++
				p.Kill()
				readAll(t, p.Output())
			}
		}
		if starts != 1 {
			t.Errorf("%d starts of one parked sandbox", starts)
		}
	})
	t.Run("discarded", func(t *testing.T) {
		for _, argv := range [][]string{nil, {python, "-c", loader}} {
			k := park(t, argv...)
			if k.MemoryBytes() == 0 {
				t.Error("uses no memory")
			}
			k.Discard()
			k.Discard()
			gone(t, k)
			if _, err := k.Start(t.Context(), f.config(bash, "-c", "true")); err == nil {
				t.Error("a discarded sandbox was started")
			}
		}
	})
	t.Run("gives up", func(t *testing.T) {
		for _, script := range []string{"exit 3", "echo broken >&2", "kill -9 $$"} {
			c := parkConfig()
			c.Argv = []string{bash, "-c", script}
			if k, err := parker.Park(t.Context(), c); err == nil {
				k.Discard()
				t.Errorf("%q was parked", script)
			} else {
				t.Log(err)
			}
		}
		c := parkConfig()
		c.Argv = []string{"/no/such/program"}
		if _, err := parker.Park(t.Context(), c); !errors.Is(err, sandbox.ErrEntrypoint) {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		c = parkConfig()
		c.Argv = []string{bash, "-c", "sleep 60"}
		if _, err := parker.Park(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	t.Run("dies", func(t *testing.T) {
		k := park(t, bash, "-c", "printf . >&0; exit 5")
		gone(t, k)
		if p, err := k.Start(t.Context(), f.config(bash, "-c", "true")); err == nil {
			t.Errorf("a dead sandbox was started: %+v", p)
		}
	})
	t.Run("entry point", func(t *testing.T) {
		if _, err := park(t).Start(t.Context(), f.config("/var/task/none")); !errors.Is(err, sandbox.ErrEntrypoint) {
			t.Errorf("%v", err)
		}
	})
	t.Run("wrong runtime", func(t *testing.T) {
		c := f.config(python)
		c.RuntimeDir = f.code
		if _, err := park(t, python, "-c", loader).Start(t.Context(), c); err == nil {
			t.Error("started with another runtime than it was parked with")
		}
	})
	t.Run("given up", func(t *testing.T) {
		for d := range 20 {
			k := park(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(d)*100*time.Microsecond)
			p, err := k.Start(ctx, f.config(bash, "-c", "sleep 60"))
			switch {
			case err == nil:
				p.Kill()
				readAll(t, p.Output())
			case !errors.Is(err, context.DeadlineExceeded):
				t.Error(err)
			}
			cancel()
			gone(t, k)
		}
	})
	t.Run("handed over", func(t *testing.T) {
		// What belongs to a function is not there before it, all of it is there after, and nothing of the wait.
		f.write(t, "mine.py", "name = 'code of the function'\n", 0o644)
		k := park(t, python, "-c", loader)
		c := f.config(python)
		c.Env = []string{"LANG=C.UTF-8", "ÜMLAUT=ä\n=b", scriptVar + `=import sys, os; sys.path.insert(0, "/var/task"); import mine
print(mine.name); print(sorted(os.environ)); print(repr(os.environ["ÜMLAUT"])); print(os.listdir("/proc/self/fd"), os.readlink("/proc/self/fd/0")); print(os.getcwd(), os.listdir("."), os.listdir("/opt"))`}
		p, err := k.Start(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		out := readAll(t, p.Output())
		<-p.Done()
		want(t, p.Exit(), out, "code of the function", "['AWS_LAMBDA_RUNTIME_API', 'LANG', 'ÜMLAUT']", `'ä\n=b'`, "['0', '1', '2', '3'] /dev/null", "/var/task ['mine.py'] []")
	})
	t.Run("libraries", func(t *testing.T) {
		// The loader of a waiting program must not have learned that the function's libraries do not exist.
		cc, err := exec.LookPath("gcc")
		if err != nil {
			t.Skip("needs gcc to make a library: apt-get install gcc")
		}
		for _, in := range []struct{ dir, name string }{{f.code, "mine"}, {codeDir(t), "layer"}} {
			if err := os.Mkdir(filepath.Join(in.dir, "lib"), 0o755); err != nil {
				t.Fatal(err)
			}
			make := exec.Command(cc, "-shared", "-fPIC", "-x", "c", "-o", filepath.Join(in.dir, "lib", "lib"+in.name+".so"), "-")
			make.Stdin = strings.NewReader("int f(void) { return 7; }")
			if out, err := make.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			c := parkConfig()
			c.Argv, c.Env = []string{python, "-c", loader}, []string{"LD_LIBRARY_PATH=/var/task/lib:/opt/lib"}
			k, err := parker.Park(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			start := f.config(python)
			start.Env = append(c.Env, scriptVar+`=import ctypes; print(ctypes.CDLL("lib`+in.name+`.so").f())`)
			if in.name == "layer" {
				start.OptDir = in.dir
			}
			p, err := k.Start(t.Context(), start)
			if err != nil {
				t.Fatal(err)
			}
			out := readAll(t, p.Output())
			<-p.Done()
			want(t, p.Exit(), out, "7")
		}
	})
	t.Run("distinct", func(t *testing.T) {
		seen := map[string]bool{}
		script := scriptVar + `=import os, random, uuid, sys
print(hash("seed"), random.random(), uuid.uuid4(), os.urandom(8).hex(), id(sys) >> 12, os.getuid(), end="")`
		var all []sandbox.Parked
		for range 6 {
			all = append(all, park(t, python, "-c", "import random, uuid\n"+loader))
		}
		for _, k := range all {
			c := f.config(python)
			c.Env = []string{script}
			p, err := k.Start(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			var parts [6]string
			if _, err := fmt.Sscan(readAll(t, p.Output()), &parts[0], &parts[1], &parts[2], &parts[3], &parts[4], &parts[5]); err != nil {
				t.Fatal(err)
			}
			for i, part := range parts {
				if i == 5 && f.lacks(t, noUIDs) {
					continue
				}
				if key := strconv.Itoa(i) + part; seen[key] {
					t.Errorf("value %d is %s in two instances", i, part)
				} else {
					seen[key] = true
				}
			}
		}
	})
	t.Run("close", func(t *testing.T) {
		f := open(t, factory)
		k, err := f.Sandbox.(sandbox.Parker).Park(t.Context(), parkConfig())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		gone(t, k)
		if _, err := k.Start(t.Context(), f.config(bash, "-c", "true")); err == nil {
			t.Error("started in a closed sandbox")
		}
	})
}

// gone waits until nothing of it is left.
func gone(t *testing.T, k sandbox.Parked) {
	t.Helper()
	k.Discard()
	select {
	case <-k.Done():
	case <-time.After(patience):
		t.Error("a parked sandbox does not end")
	}
}
