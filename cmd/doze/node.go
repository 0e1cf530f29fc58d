package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/doze-run/doze/bus/nodetls"
	"github.com/doze-run/doze/control"
	"github.com/doze-run/doze/worker"
)

const nodeLong = `

When it is ready it prints one line, "doze ready ...", on stdout; its log goes to stderr. SIGTERM or
Ctrl-C ends it in order: running calls may end first (--shutdown-timeout); a second one ends it at once.

Every flag can also be given as a variable (--bootstrap-expect as DOZE_BOOTSTRAP_EXPECT) or in a
config file (bootstrap-expect: 3). A flag is stronger than a variable, a variable than the file.`

func newControlCommand() *cobra.Command {
	settings := &devSettings{}
	cmd := &cobra.Command{
		Use:   "control",
		Short: "Run a control node of a cluster",
		Long: `Run a control node: API, call queues, a copy of the state and of the bill, a part of the event store.
A cluster has three or five of them, and any number of workers (doze worker).` + nodeLong,
		Example: `  doze control --name c1 --bootstrap-expect 3 --join 198.18.0.11:9002 --bind 198.18.0.11 --allow-remote
  doze control --tls-dir /etc/doze/tls --bootstrap-expect 3 --join 198.18.0.11:9002 --bind 198.18.0.11 --auth --cluster-key-file /etc/doze/cluster.key
  doze control --config control.yaml`,
		Args: noArgs,
	}
	return nodeCommand(cmd, settings, nodetls.Control, settings.controlFlagSet(os.Getenv), settings.checkControl, openControl)
}

func newWorkerCommand() *cobra.Command {
	settings := &devSettings{}
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker of a cluster",
		Long:  `Run a worker: it finds the control nodes by one address to join, takes calls and runs instances.` + nodeLong,
		Example: `  doze worker --name w1 --join 198.18.0.11:9002 --bind 198.18.0.21 --allow-remote --memory 8GiB
  doze worker --tls-dir /etc/doze/tls --join 198.18.0.11:9002 --bind 198.18.0.21
  doze worker --config worker.yaml`,
		Args: noArgs,
	}
	check := func() error {
		if len(settings.Join) == 0 {
			return usagef("a worker needs a node of its cluster: give --join HOST:PORT")
		}
		return settings.checkNode()
	}
	return nodeCommand(cmd, settings, nodetls.Worker, settings.workerFlagSet(os.Getenv), check, openWorker)
}

// nodeCommand makes a command that lives as one node until it is told to stop.
func nodeCommand(cmd *cobra.Command, settings *devSettings, role nodetls.Role, flags *pflag.FlagSet, check func() error, open openFunc) *cobra.Command {
	cmd.Flags().SortFlags = false
	cmd.Flags().AddFlagSet(flags)
	cmd.RegisterFlagCompletionFunc("log-format", oneOf("text", "json"))
	cmd.RegisterFlagCompletionFunc("log-level", oneOf("debug", "info", "warn", "error"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		unknown, err := fillFromElsewhere(flags, os.Environ())
		if err != nil {
			return err
		}
		if err := check(); err != nil {
			return err
		}
		bare := newLogger(cmd.ErrOrStderr(), settings)
		if err := settings.takeCertificate(role, bare); err != nil {
			return err
		}
		log := bare.With("node", settings.Name)
		for _, name := range unknown {
			log.Warn("this variable means nothing to doze "+cmd.Name(), "variable", name)
		}
		settings.sayHowSafe(log)
		settings.takeRootKey(log)
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer signal.Stop(signals)
		l := &life{settings: settings, open: open, signals: signals, stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr(), log: log}
		return l.run(cmd.Context())
	}
	return cmd
}

func openControl(ctx context.Context, p parts) (platform, error) {
	s := p.settings
	prices, err := readPriceBook(s.PriceBook)
	if err != nil {
		return nil, err
	}
	c, err := control.Open(ctx, control.Config{
		DataDir: p.dir.Path(), HTTP: p.http, GRPC: p.grpc, Region: s.Region, Version: version, Prices: prices,
		AsyncRetryWaits: s.AsyncRetryWaits, QueueBytes: s.Memory, StoreBytes: s.Storage, Egress: s.Network == "egress",
		Auth: s.Auth, RootKey: s.RootKey, ClusterKeyFile: s.ClusterKeyFile, Logger: p.log,
		Cluster: &control.Cluster{
			Name: s.Name, Host: s.host(), Gossip: s.bound(s.GossipPort), Calls: s.bound(s.CallsPort), Streams: s.bound(s.StreamsPort),
			Routes: s.bound(s.RoutesPort), Raft: s.bound(s.RaftPort), Join: s.Join, Expect: s.BootstrapExpect,
			Bootstrap: s.Bootstrap, GossipKey: s.GossipKey, TLS: s.TLS, Notice: s.DrainNotice,
		},
	})
	if err != nil {
		return nil, err
	}
	showRootKey(p.stderr, c.NewRootKey())
	return controlNode{c}, nil
}

// controlNode is a control node as a platform.
type controlNode struct{ *control.Control }

// Close ends the callers' side first, then the node.
func (c controlNode) Close(ctx context.Context) error {
	return errors.Join(c.StopTraffic(ctx), c.Control.Close(ctx))
}

func openWorker(ctx context.Context, p parts) (platform, error) {
	s := p.settings
	w, err := worker.Open(ctx, worker.Config{
		Name: s.Name, DataDir: p.dir.Path(), Sandbox: s.Sandbox, IdleTimeout: s.IdleTimeout, NoParking: !s.Parked,
		MemoryBytes: s.Memory, Overcommit: s.MemoryOvercommit, HardCPU: s.CPUHardCap, Region: s.Region, Logger: p.log,
		EgressRange: s.EgressRange, DenyEgress: s.DenyEgress, AllowEgress: s.AllowEgress,
		Cluster: &worker.Cluster{Host: s.host(), Gossip: s.bound(s.GossipPort), Join: s.Join, GossipKey: s.GossipKey, TLS: s.TLS, Version: version},
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}
