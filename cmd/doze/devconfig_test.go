package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// settle parses flags, variables and a file of the given name as `doze dev` does.
func settle(t *testing.T, args, environ []string, name, content string) (*devSettings, []string, error) {
	t.Helper()
	if name != "" {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	s := &devSettings{}
	flags := s.flagSet(func(string) string { return "" })
	if err := flags.Parse(args); err != nil {
		return s, nil, err
	}
	unknown, err := fillFromElsewhere(flags, environ)
	if err == nil {
		err = s.check()
	}
	return s, unknown, err
}

func TestPrecedence(t *testing.T) {
	const file = "idle-timeout: 3s\nregion: eu-west-3\nlog-level: error\ncpu-hard-cap: true\n"
	s, unknown, err := settle(t, []string{"--idle-timeout", "1s"},
		[]string{"DOZE_IDLE_TIMEOUT=2s", "DOZE_REGION=eu-west-2", "DOZE_LOG_LEVEL=", "DOZE_IDLE_TIMOUT=9s", "DOZE_ENDPOINT=http://x", "PATH=/bin"}, "doze.yaml", file)
	if err != nil {
		t.Fatal(err)
	}
	if s.IdleTimeout != time.Second || s.Region != "eu-west-2" || s.LogLevel != "error" || !s.CPUHardCap || s.LogFormat != "text" {
		t.Errorf("flag, variable, file, file, default: %+v", s)
	}
	if diff := cmp.Diff([]string{"DOZE_IDLE_TIMOUT"}, unknown); diff != "" {
		t.Errorf("unknown variables: %s", diff)
	}
}

func TestConfigFormats(t *testing.T) {
	want, _, err := settle(t, []string{"--listen", "127.0.0.1:7000", "--memory", "4GiB", "--memory-overcommit", "2.5",
		"--async-retry-waits", "1s,2s", "--cpu-hard-cap", "--data-dir", "/d"}, nil, "", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"doze.yaml": "listen: 127.0.0.1:7000\nmemory: 4GiB\nmemory-overcommit: 2.5\nasync-retry-waits: [1s, 2s]\ncpu-hard-cap: true\ndata-dir: /d\n",
		"doze.YML":  "listen: '127.0.0.1:7000'\nmemory: 4294967296\nmemory-overcommit: 2.5\nasync-retry-waits: 1s,2s\ncpu-hard-cap: true\ndata-dir: /d\n",
		"doze.toml": "listen = '127.0.0.1:7000'\nmemory = 4294967296\nmemory-overcommit = 2.5\nasync-retry-waits = ['1s', '2s']\ncpu-hard-cap = true\ndata-dir = '/d'\n",
		"doze.json": `{"listen": "127.0.0.1:7000", "memory": 4294967296, "memory-overcommit": 2.5, "async-retry-waits": ["1s", "2s"], "cpu-hard-cap": true, "data-dir": "/d"}`,
	} {
		got, _, err := settle(t, nil, nil, name, content)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got.Config = ""
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestConfigFromVariable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(path, []byte(`{"region": "eu-central-1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _, err := settle(t, nil, []string{"DOZE_CONFIG=" + path}, "", "")
	if err != nil || s.Region != "eu-central-1" {
		t.Errorf("region %s, error %v", s.Region, err)
	}
}

func TestWrongSettings(t *testing.T) {
	for _, tc := range []struct {
		name          string
		args, environ []string
		file, content string
		want          string
	}{
		{name: "unknown key", file: "c.yaml", content: "idle-timout: 5m\nregion: eu-west-1\n", want: `c.yaml: unknown key "idle-timout" (known are allow-egress, allow-remote, async-retry-waits,`},
		{name: "unknown keys", file: "c.toml", content: "a = 2\n[b]\nc = 1\n", want: `unknown keys "a", "b"`},
		{name: "config in config", file: "c.json", content: `{"config": "x.yaml"}`, want: `unknown key "config"`},
		{name: "key with a dot", file: "c.json", content: `{"log-level.x": "info"}`, want: `unknown key "log-level.x"`},
		{name: "wrong value in file", file: "c.yaml", content: "idle-timeout: soon", want: `c.yaml: idle-timeout: "soon" is not a duration`},
		{name: "number as duration", file: "c.yaml", content: "idle-timeout: 5", want: `"5" is not a duration`},
		{name: "wrong value in variable", environ: []string{"DOZE_MEMORY=lots"}, want: `DOZE_MEMORY: "lots" is not a size`},
		{name: "wrong value in flag", args: []string{"--memory", "1k"}, want: "at least 64MiB"},
		{name: "map", file: "c.yaml", content: "listen: {http: 1}", want: "listen: is neither text"},
		{name: "null", file: "c.yaml", content: "listen:", want: "listen: is neither text"},
		{name: "not yaml", file: "c.yaml", content: "\t{", want: "c.yaml: "},
		{name: "yaml list", file: "c.yaml", content: "- a\n- b\n", want: "c.yaml: "},
		{name: "not toml", file: "c.toml", content: "= 1", want: "c.toml: "},
		{name: "not json", file: "c.json", content: "{", want: "c.json: "},
		{name: "more than json", file: "c.json", content: "{}{}", want: "more after the JSON object"},
		{name: "other extension", file: "c.ini", content: "", want: `ends in .yaml, .toml or .json, not ".ini"`},
		{name: "no file", args: []string{"--config", "/nothing/here.yaml"}, want: "no such file"},
		{name: "too long", file: "c.yaml", content: strings.Repeat("#", maxConfigBytes+1), want: "longer than"},
		{name: "remote", args: []string{"--listen", "0.0.0.0:9000"}, want: "--allow-remote"},
		{name: "remote by empty host", args: []string{"--grpc-listen", ":9000"}, want: "--grpc-listen :9000 can be reached from other machines"},
		{name: "remote by name", environ: []string{"DOZE_LISTEN=example.com:80"}, want: "--allow-remote"},
		{name: "remote without keys", args: []string{"--listen", "0.0.0.0:9000"}, want: "add --auth"},
		{name: "remote profiles", args: []string{"--allow-remote", "--pprof-listen", "0.0.0.0:1"}, want: "--pprof-listen"},
		{name: "port", args: []string{"--listen", "127.0.0.1:70000"}, want: `"70000" is not a port`},
		{name: "no port", args: []string{"--listen", "localhost"}, want: "is not HOST:PORT"},
		{name: "sandbox", args: []string{"--sandbox", "none"}, want: `"none" is not one of linux, process`},
		{name: "one wait", args: []string{"--async-retry-waits", "1m"}, want: "is not two durations"},
		{name: "negative wait", args: []string{"--async-retry-waits", "1m,-2m"}, want: "is not between"},
		{name: "overcommit", args: []string{"--memory-overcommit", "NaN"}, want: "is not a number between"},
		{name: "huge", args: []string{"--memory", "9223372036854775807T"}, want: "too big"},
		{name: "region", args: []string{"--region", "Mars"}, want: "is not a region"},
		{name: "data-dir", args: []string{"--data-dir", ""}, want: "--data-dir is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := settle(t, tc.args, tc.environ, tc.file, tc.content)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

// With verified keys other machines may come.
func TestRemoteWithKeys(t *testing.T) {
	s, unknown, err := settle(t, []string{"--listen", "0.0.0.0:9000", "--grpc-listen", ":9001", "--auth"},
		[]string{"DOZE_ROOT_ACCESS_KEY_ID=a", "DOZE_ROOT_SECRET_ACCESS_KEY=b", "DOZE_ACCESS_KEY_ID=c", "DOZE_SECRET_ACCESS_KEY=d"}, "", "")
	if err != nil || !s.Auth || len(unknown) > 0 {
		t.Errorf("%+v, %v, %v", s, unknown, err)
	}
}

func TestLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:1": true, "127.8.8.8:1": true, "[::1]:1": true, "localhost:1": true, "[::ffff:127.0.0.1]:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "localhost.example.com:1": false, "x": false,
	} {
		if got := isLoopback(address); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
}

func TestDefaultDataDir(t *testing.T) {
	env := map[string]string{"HOME": "/home/u"}
	getenv := func(name string) string { return env[name] }
	for _, tc := range []struct {
		uid         int
		state, want string
	}{{0, "", "/var/lib/doze"}, {7, "", "/home/u/.local/state/doze"}, {7, "/state", "/state/doze"}, {7, "relative", "/home/u/.local/state/doze"}} {
		env["XDG_STATE_HOME"] = tc.state
		if got := defaultDataDir(tc.uid, getenv); got != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
}

// FuzzParseConfig: whatever a file holds is a list of texts or an error, and each text that a flag
// accepts reads back as what it says.
func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{"idle-timeout: 5m", "memory = 5", `{"a": [1, "b", true, 1e99]}`, "a: &a [*a]", "a: [[1]]", "<<: {a: 1}", "a: 2026-01-01", "? [x]\n: 1", "a=2026-01-01", "[a]\nb=1", "a: !!binary aGk=", "\xff", "a: 0x10"} {
		for _, extension := range []string{".yaml", ".toml", ".json"} {
			f.Add([]byte(s), extension)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, extension string) {
		values, err := parseConfig(data, extension)
		if err != nil {
			return
		}
		s := &devSettings{}
		flags := s.flagSet(func(string) string { return "" })
		for key, value := range values {
			text, err := flagText(value)
			flag := flags.Lookup(key)
			if err != nil || flag == nil || flag.Value.Set(text) != nil {
				continue
			}
			if again := flag.Value.String(); again != "" && flag.Value.Set(again) != nil {
				t.Errorf("%s: %q was taken, what it became (%q) was not", key, text, again)
			}
		}
	})
}
