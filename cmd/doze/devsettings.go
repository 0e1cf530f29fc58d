package main

import (
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/doze-run/doze/control"
)

// devSettings is what `doze dev`, or a node of a cluster, was told, by flags, DOZE_* variables, the config file and
// defaults, in this order.
type devSettings struct {
	// Listen and GRPCListen are host:port; port 0 for any free one.
	Listen, GRPCListen string
	DataDir            string
	// IdleTimeout ends an instance that had nothing to do for so long.
	IdleTimeout time.Duration
	// Memory is what all instances together may use, in bytes; 0 leaves it to the worker.
	Memory int64
	// MemoryOvercommit bounds the sum of the instances' limits, as a multiple of Memory.
	MemoryOvercommit float64
	// AsyncRetryWaits are the waits before the second and the third attempt of an event.
	AsyncRetryWaits []time.Duration
	// Sandbox is "linux" or "process".
	Sandbox    string
	CPUHardCap bool
	// Network is "none" or "egress": what functions have of which nothing was said.
	Network string
	// EgressRange is where instances that reach outside have their addresses.
	EgressRange netip.Prefix
	// DenyEgress they do not reach; AllowEgress they do although it is private.
	DenyEgress, AllowEgress []netip.Prefix
	// Parked keeps sandboxes and interpreters waiting for functions.
	Parked bool
	// PriceBook is the path of a price book, "" for the default one.
	PriceBook   string
	AllowRemote bool
	// Auth verifies access keys.
	Auth bool
	// ClusterKeyFile is a path, "" for one in DataDir.
	ClusterKeyFile string
	// RootKey comes from variables alone; the zero one has one made.
	RootKey control.RootKey
	Region  string
	// PprofListen is host:port on the loopback, "" for none.
	PprofListen string
	// ShutdownTimeout bounds how long running calls are waited for at the end.
	ShutdownTimeout     time.Duration
	LogFormat, LogLevel string
	// Config is the path of the config file, "" for none.
	Config string
	// The rest is what a node is told of its cluster; doze dev has none.
	NodeSettings
}

var regionPattern = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)

// flagSet makes the flags of doze dev that fill s. Each flag checks its value when it is set, whoever
// sets it.
func (s *devSettings) flagSet(getenv func(string) string) *pflag.FlagSet {
	f := newFlagSet("dev")
	s.addConfig(f)
	s.addAPI(f)
	s.addDataDir(f, defaultDataDir(os.Geteuid(), getenv))
	s.addInstances(f)
	s.addEvents(f)
	s.addProcess(f)
	f.VisitAll(func(flag *pflag.Flag) { flag.DefValue = flag.Value.String() })
	return f
}

func newFlagSet(name string) *pflag.FlagSet {
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.SortFlags = false
	return f
}

func (s *devSettings) addConfig(f *pflag.FlagSet) {
	f.StringVar(&s.Config, "config", "", "config `FILE` (.yaml, .toml or .json) whose keys are the names of these flags")
}

func (s *devSettings) addAPI(f *pflag.FlagSet) {
	s.Listen, s.GRPCListen = "127.0.0.1:9000", "127.0.0.1:9001"
	f.Var(&addressValue{&s.Listen}, "listen", "where the API listens; port 0 for any free one")
	f.Var(&addressValue{&s.GRPCListen}, "grpc-listen", "where gRPC listens")
	f.BoolVar(&s.Auth, "auth", false, "take only requests that are signed with an access key (doze key), which other machines may then send too")
	f.StringVar(&s.ClusterKeyFile, "cluster-key-file", "", "`FILE` with the key that seals secrets in the data folder (default control/cluster.key in it; made if it is not there)")
	f.BoolVar(&s.AllowRemote, "allow-remote", false, "let --listen and --grpc-listen be reached from other machines without --auth: anybody there can run code here")
}

func (s *devSettings) addDataDir(f *pflag.FlagSet, otherwise string) {
	f.StringVar(&s.DataDir, "data-dir", otherwise, "`DIR` for functions, code, events and the bill")
}

// addInstances is what a worker is told of the instances it runs.
func (s *devSettings) addInstances(f *pflag.FlagSet) {
	s.IdleTimeout, s.Sandbox = 5*time.Minute, "linux"
	f.Var(&durationValue{&s.IdleTimeout, 10 * time.Millisecond, 24 * time.Hour}, "idle-timeout", "end an instance that had nothing to do for so long")
	f.Var(&sizeValue{&s.Memory}, "memory", "memory for all instances together, such as 8GiB (default what the machine has, less a reserve)")
	f.Var(&ratioValue{&s.MemoryOvercommit, 1, 1000}, "memory-overcommit", "how many times --memory the limits of all instances may add up to (default no bound: what they really use counts)")
	f.Var(&choiceValue{&s.Sandbox, []string{"linux", "process"}}, "sandbox", "linux (isolated), or process (no isolation at all)")
	f.BoolVar(&s.CPUHardCap, "cpu-hard-cap", false, "cap each instance's CPU at its share (1769 MB is one) even where CPUs are idle")
	f.BoolVar(&s.Parked, "parked", true, "keep a few sandboxes and interpreters waiting, so that sleeping functions answer sooner")
	s.EgressRange = netip.MustParsePrefix("198.18.0.0/15")
	f.Var(&rangesValue{&s.DenyEgress}, "deny-egress", "addresses that no function reaches, such as 203.0.113.0/24; may be repeated")
	f.Var(&rangesValue{&s.AllowEgress}, "allow-egress", "private addresses that functions with egress reach, such as 10.1.2.3; may be repeated")
	f.Var(&poolValue{&s.EgressRange}, "egress-range", "where instances with egress have their addresses")
}

// addEvents is what a control node is told of functions, delivery and the bill.
func (s *devSettings) addEvents(f *pflag.FlagSet) {
	s.AsyncRetryWaits, s.Network = []time.Duration{time.Minute, 2 * time.Minute}, "none"
	f.Var(&choiceValue{&s.Network, []string{"none", "egress"}}, "network", "what functions reach that do not say themselves: none, or egress (outside, but not this machine, other instances or private networks)")
	f.Var(&waitsValue{&s.AsyncRetryWaits}, "async-retry-waits", "waits before the second and the third attempt of an event")
	f.StringVar(&s.PriceBook, "price-book", "", "JSON `FILE` with other prices than the default ones")
}

// addProcess is what any process of Doze is told of itself.
func (s *devSettings) addProcess(f *pflag.FlagSet) {
	s.Region, s.LogFormat, s.LogLevel, s.ShutdownTimeout = "us-east-1", "text", "info", 30*time.Second
	f.Var(&patternValue{&s.Region, regionPattern, "a region like us-east-1"}, "region", "AWS region that ARNs name")
	f.Var(&addressValue{&s.PprofListen}, "pprof-listen", "where profiles of this process can be fetched, loopback only (default nowhere)")
	f.Var(&durationValue{&s.ShutdownTimeout, 0, time.Hour}, "shutdown-timeout", "how long running calls may take to end after SIGTERM or Ctrl-C")
	f.Var(&choiceValue{&s.LogFormat, []string{"text", "json"}}, "log-format", "text or json")
	f.Var(&choiceValue{&s.LogLevel, []string{"debug", "info", "warn", "error"}}, "log-level", "debug, info, warn or error")
}

// defaultDataDir is where a service keeps state: /var/lib for root, else what XDG says.
func defaultDataDir(uid int, getenv func(string) string) string {
	if uid == 0 {
		return "/var/lib/doze"
	}
	if state := getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "doze")
	}
	return filepath.Join(getenv("HOME"), ".local", "state", "doze")
}

// check looks at what no single flag can see.
func (s *devSettings) check() error {
	for _, l := range []struct{ flag, address string }{{"--listen", s.Listen}, {"--grpc-listen", s.GRPCListen}} {
		if l.address != "" && !s.AllowRemote && !s.Auth && !isLoopback(l.address) {
			return usagef("%s %s can be reached from other machines, and doze dev lets anybody who can reach it run code here: add --auth to take only requests signed with an access key, or --allow-remote if anybody is what you want", l.flag, l.address)
		}
	}
	if s.PprofListen != "" && !isLoopback(s.PprofListen) {
		return usagef("--pprof-listen %s is not on the loopback: profiles are for this machine only (127.0.0.1:PORT)", s.PprofListen)
	}
	if s.DataDir == "" {
		return usagef("--data-dir is empty")
	}
	return nil
}

// isLoopback tells whether only this machine can reach the address. A name other than localhost
// could be anything.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// level is LogLevel as slog knows it.
func (s *devSettings) level() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.LogLevel)); err != nil {
		return slog.LevelInfo
	}
	return level
}

// The values below are pflag's with bounds: what is out of them is refused where it was written.

type addressValue struct{ to *string }

func (v *addressValue) String() string { return *v.to }
func (v *addressValue) Type() string   { return "HOST:PORT" }
func (v *addressValue) Set(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:9000", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q is not a port (0 to 65535)", port)
	}
	*v.to = s
	return nil
}

type durationValue struct {
	to       *time.Duration
	min, max time.Duration
}

func (v *durationValue) String() string { return plainDuration(*v.to) }
func (v *durationValue) Type() string   { return "DURATION" }
func (v *durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is not a duration, such as 90s or 5m", s)
	}
	if d < v.min || d > v.max {
		return fmt.Errorf("%s is not between %s and %s", s, plainDuration(v.min), plainDuration(v.max))
	}
	*v.to = d
	return nil
}

// plainDuration writes 5m, where Duration writes 5m0s.
func plainDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

type waitsValue struct{ to *[]time.Duration }

func (v *waitsValue) Type() string { return "DURATION,DURATION" }
func (v *waitsValue) String() string {
	parts := make([]string, len(*v.to))
	for i, d := range *v.to {
		parts[i] = plainDuration(d)
	}
	return strings.Join(parts, ",")
}
func (v *waitsValue) Set(s string) error {
	parts := strings.Split(s, ",")
	if len(parts) != 2 {
		return fmt.Errorf("%q is not two durations, such as 1m,2m: an event is tried three times", s)
	}
	waits := make([]time.Duration, len(parts))
	for i, part := range parts {
		one := durationValue{&waits[i], time.Millisecond, 6 * time.Hour}
		if err := one.Set(strings.TrimSpace(part)); err != nil {
			return err
		}
	}
	*v.to = waits
	return nil
}

type sizeValue struct{ to *int64 }

func (v *sizeValue) Type() string { return "SIZE" }
func (v *sizeValue) String() string {
	if *v.to == 0 {
		return ""
	}
	return strconv.FormatInt(*v.to, 10)
}

// sizeUnits are the powers of 1024 that a size may end in, the longest spelling first.
var sizeUnits = []struct {
	suffix string
	shift  uint
}{{"kib", 10}, {"mib", 20}, {"gib", 30}, {"tib", 40}, {"kb", 10}, {"mb", 20}, {"gb", 30}, {"tb", 40}, {"k", 10}, {"m", 20}, {"g", 30}, {"t", 40}, {"b", 0}}

func (v *sizeValue) Set(s string) error {
	number, shift := strings.ToLower(strings.TrimSpace(s)), uint(0)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, shift = strings.TrimSpace(rest), u.shift
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return fmt.Errorf("%q is not a size, such as 512MiB or 8GiB", s)
	}
	const least = 64 << 20
	if n > math.MaxInt64>>shift || n<<shift < least {
		return fmt.Errorf("%s is too small or too big: at least 64MiB", s)
	}
	*v.to = n << shift
	return nil
}

type ratioValue struct {
	to       *float64
	min, max float64
}

func (v *ratioValue) Type() string { return "FACTOR" }
func (v *ratioValue) String() string {
	if *v.to == 0 {
		return ""
	}
	return strconv.FormatFloat(*v.to, 'g', -1, 64)
}
func (v *ratioValue) Set(s string) error {
	r, err := strconv.ParseFloat(s, 64)
	if err != nil || !(r >= v.min && r <= v.max) {
		return fmt.Errorf("%q is not a number between %g and %g", s, v.min, v.max)
	}
	*v.to = r
	return nil
}

type choiceValue struct {
	to      *string
	choices []string
}

func (v *choiceValue) Type() string   { return strings.Join(v.choices, "|") }
func (v *choiceValue) String() string { return *v.to }
func (v *choiceValue) Set(s string) error {
	if !slices.Contains(v.choices, s) {
		return fmt.Errorf("%q is not one of %s", s, strings.Join(v.choices, ", "))
	}
	*v.to = s
	return nil
}

type patternValue struct {
	to      *string
	pattern *regexp.Regexp
	what    string
}

func (v *patternValue) Type() string   { return "NAME" }
func (v *patternValue) String() string { return *v.to }
func (v *patternValue) Set(s string) error {
	if !v.pattern.MatchString(s) {
		return fmt.Errorf("%q is not %s", s, v.what)
	}
	*v.to = s
	return nil
}
