package main

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/doze-run/doze/bus/nodetls"
)

// NodeSettings is what a control node or a worker was told of its cluster.
type NodeSettings struct {
	Name string
	// Join are gossip addresses.
	Join []string
	// Bind is the host that it listens on for other nodes, Advertise the one that they reach it by.
	Bind, Advertise string
	// Ports on that host; 0 is any free one.
	GossipPort, RaftPort, CallsPort, StreamsPort, RoutesPort int
	// BootstrapExpect is how many control nodes begin a new cluster; Bootstrap begins one alone.
	BootstrapExpect int
	Bootstrap       bool
	// Storage bounds the streams of a control node on disk, in bytes; 0 takes the default.
	Storage   int64
	GossipKey []byte
	// TLSDir is the folder with this node's certificate, "" for none; TLS is what is in it.
	TLSDir string
	TLS    *nodetls.Node
	// DrainNotice is for how long a control node that stops goes on taking requests.
	DrainNotice time.Duration
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

// controlFlagSet makes the flags of doze control that fill s.
func (s *devSettings) controlFlagSet(getenv func(string) string) *pflag.FlagSet {
	f := newFlagSet("control")
	s.addConfig(f)
	s.addAPI(f)
	s.addMembership(f)
	f.Var(&portValue{&s.RaftPort}, "raft-port", "where the replicated state's nodes reach one another")
	f.Var(&portValue{&s.CallsPort}, "calls-port", "where workers and other control nodes reach this one's call queues")
	f.Var(&portValue{&s.StreamsPort}, "streams-port", "where workers reach the streams of events, usage, logs and code")
	f.Var(&portValue{&s.RoutesPort}, "routes-port", "where control nodes keep those streams together")
	s.RaftPort, s.CallsPort, s.StreamsPort, s.RoutesPort = 9003, 9004, 9005, 9006
	f.Var(&countValue{&s.BootstrapExpect, 1, 7}, "bootstrap-expect", "how many control nodes there are (3 or 5): a new cluster begins when they all see one another")
	f.BoolVar(&s.Bootstrap, "bootstrap", false, "begin a new cluster with this node alone; the others --join it")
	s.addDataDir(f, filepath.Join(defaultDataDir(os.Geteuid(), getenv), "control"))
	f.Var(&sizeValue{&s.Memory}, "memory", "memory for calls that wait in this node's queues (default 256MiB)")
	f.Var(&sizeValue{&s.Storage}, "storage", "disk for events, code, usage and logs (default 8GiB)")
	s.addEvents(f)
	s.DrainNotice = 2 * time.Second
	f.Var(&durationValue{&s.DrainNotice, 0, time.Hour}, "drain-notice", "how long a node that stops takes requests while /readyz says that it is not ready: give load balancers the time to look")
	s.addProcess(f)
	f.VisitAll(func(flag *pflag.Flag) { flag.DefValue = flag.Value.String() })
	return f
}

// workerFlagSet makes the flags of doze worker that fill s.
func (s *devSettings) workerFlagSet(getenv func(string) string) *pflag.FlagSet {
	f := newFlagSet("worker")
	s.addConfig(f)
	s.addMembership(f)
	f.BoolVar(&s.AllowRemote, "allow-remote", false, "let --bind be reached from other machines")
	s.addDataDir(f, filepath.Join(defaultDataDir(os.Geteuid(), getenv), "worker"))
	s.addInstances(f)
	s.addProcess(f)
	f.VisitAll(func(flag *pflag.Flag) { flag.DefValue = flag.Value.String() })
	return f
}

func (s *devSettings) addMembership(f *pflag.FlagSet) {
	s.Bind, s.GossipPort = "127.0.0.1", 9002
	f.Var(&patternValue{&s.Name, namePattern, "a name of letters, digits, - and _"}, "name", "this node's name, unique in the cluster and the same for ever (default its certificate's, else this machine's)")
	f.StringVar(&s.TLSDir, "tls-dir", "", "`DIR` that 'doze ca issue' made for this node: its certificate, which the other nodes ask for, and theirs are asked for, too (default none: nothing is encrypted)")
	f.StringSliceVar(&s.Join, "join", nil, "`HOST:PORT` of the gossip of any node of the cluster; several may be given")
	f.StringVar(&s.Bind, "bind", s.Bind, "`HOST` to listen on for the other nodes")
	f.StringVar(&s.Advertise, "advertise", "", "`HOST` that the other nodes reach this one by (default --bind)")
	f.Var(&portValue{&s.GossipPort}, "gossip-port", "where nodes tell one another who is there; port 0, here and below, for any free one")
	f.Var(&keyValue{&s.GossipKey}, "gossip-key", "32 bytes in base64 that encrypt gossip, the same on all nodes (default the one in --tls-dir, else none)")
}

// takeCertificate reads this node's certificate, and takes its name and the key of gossip from beside it when
// they were not given.
func (s *devSettings) takeCertificate(role nodetls.Role, log *slog.Logger) (err error) {
	if s.TLSDir == "" {
		if s.Name == "" {
			s.Name = defaultName()
		}
		return nil
	}
	if s.TLS, err = nodetls.LoadDir(s.TLSDir, log); err != nil {
		return fmt.Errorf("--tls-dir %s: %w", s.TLSDir, err)
	}
	id := s.TLS.Identity()
	switch {
	case id.Role != role:
		return fmt.Errorf("--tls-dir %s: the certificate there is %s's, a %s's: doze %s needs one that was made with `doze ca issue NAME --role %s`", s.TLSDir, id, id.Role, role, role)
	case !namePattern.MatchString(id.Name):
		return fmt.Errorf("--tls-dir %s: a node cannot be called %q: make its certificate with a name of letters, digits, - and _", s.TLSDir, id.Name)
	case s.Name == "":
		s.Name = id.Name
	case s.Name != id.Name:
		return fmt.Errorf("--tls-dir %s: the certificate there is %s's, and this node is called %s: leave out --name, or give it the folder that `doze ca issue %s --role %s` made", s.TLSDir, id, s.Name, s.Name, role)
	}
	if s.GossipKey == nil {
		if s.GossipKey, err = nodetls.LoadGossipKey(s.TLSDir); err != nil {
			return fmt.Errorf("--tls-dir %s: %w", s.TLSDir, err)
		}
	}
	return nil
}

// soon is how long before its certificate's end a node says so at its start.
const soon = 30 * day

// sayHowSafe warns of what others can do.
func (s *devSettings) sayHowSafe(log *slog.Logger) {
	switch {
	case s.TLS == nil && !isLoopback(s.bound(0)):
		log.Warn("THIS NODE SPEAKS TO THE OTHERS IN CLEAR: whoever reaches this network can read code and calls, act as a node and run what he likes. "+
			"Make certificates with `doze ca`, and give each node its own with --tls-dir", "bind", s.Bind)
	case s.TLS != nil && time.Until(s.TLS.Until()) < soon:
		log.Warn("this node's certificate ends soon: make it anew with `doze ca issue NAME --role ROLE --renew` and put it in its place; no restart is needed",
			"until", s.TLS.Until().UTC().Format(time.DateOnly))
	}
}

// defaultName is the machine's name, as far as it makes a node's name.
func defaultName() string {
	host, err := os.Hostname()
	if name := strings.ReplaceAll(host, ".", "-"); err == nil && namePattern.MatchString(name) {
		return name
	}
	return "node"
}

// host is what others reach this node by.
func (s *devSettings) host() string {
	if s.Advertise != "" {
		return s.Advertise
	}
	return s.Bind
}

func (s *devSettings) bound(port int) string { return net.JoinHostPort(s.Bind, strconv.Itoa(port)) }

// checkNode looks at what no single flag of a node can see.
func (s *devSettings) checkNode() error {
	if s.TLSDir == "" && !s.AllowRemote && !isLoopback(s.bound(0)) {
		return usagef("--bind %s can be reached from other machines, which may do what they like with this node: give it a certificate with --tls-dir ('doze ca' makes it), or add --allow-remote if that is what you want", s.Bind)
	}
	if ip := net.ParseIP(s.Bind); s.Advertise == "" && ip != nil && ip.IsUnspecified() {
		return usagef("--bind %s is every address of this machine: say with --advertise which one the other nodes reach it by", s.Bind)
	}
	for _, address := range s.Join {
		if err := (&addressValue{new(string)}).Set(address); err != nil {
			return usagef("--join: %w", err)
		}
	}
	return s.check()
}

// checkControl looks at what no single flag of a control node can see.
func (s *devSettings) checkControl() error {
	switch {
	case s.Auth && s.ClusterKeyFile == "":
		return usagef("--auth needs --cluster-key-file, the same file on every control node, because what one seals all must open (the first node makes it; copy it to the others before they start)")
	case s.Bootstrap && s.BootstrapExpect > 1:
		return usagef("--bootstrap begins a cluster alone, --bootstrap-expect %d with others: choose one", s.BootstrapExpect)
	case !s.Bootstrap && s.BootstrapExpect == 0 && len(s.Join) == 0:
		return usagef("this node has no cluster to take part in: give --bootstrap-expect 3 on each of three, --join HOST:PORT, or --bootstrap")
	}
	return s.checkNode()
}

type portValue struct{ to *int }

func (v *portValue) Type() string   { return "PORT" }
func (v *portValue) String() string { return strconv.Itoa(*v.to) }
func (v *portValue) Set(text string) error {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return fmt.Errorf("%q is not a port (0 to 65535)", text)
	}
	*v.to = int(n)
	return nil
}

type countValue struct {
	to       *int
	min, max int
}

func (v *countValue) Type() string { return "N" }
func (v *countValue) String() string {
	if *v.to == 0 {
		return ""
	}
	return strconv.Itoa(*v.to)
}
func (v *countValue) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < v.min || n > v.max {
		return fmt.Errorf("%q is not a number between %d and %d", text, v.min, v.max)
	}
	*v.to = n
	return nil
}

type keyValue struct{ to *[]byte }

func (v *keyValue) Type() string   { return "BASE64" }
func (v *keyValue) String() string { return "" } // never shown
func (v *keyValue) Set(text string) error {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) != 32 {
		return fmt.Errorf("the key is not 32 bytes in base64: make one with `head -c 32 /dev/urandom | base64`")
	}
	*v.to = key
	return nil
}
