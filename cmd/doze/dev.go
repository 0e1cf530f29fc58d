package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/doze-run/doze/control"
	"github.com/doze-run/doze/control/ledger"
	"github.com/doze-run/doze/worker"
)

func newDevCommand() *cobra.Command {
	settings := &devSettings{}
	flags := settings.flagSet(os.Getenv)
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run the whole platform in this process",
		Long: `Run the whole platform in this process: API, queues, state, bill and worker, with its data in one
folder and nothing else to install. When it is ready it prints one line, "doze ready http=ADDR
grpc=ADDR", on stdout; its log goes to stderr.

SIGTERM or Ctrl-C ends it in order: running calls may end first (--shutdown-timeout); a second one
ends it at once. Nothing acknowledged is lost either way.

With --auth every request must be signed with an access key. The first one is the root key: it is
what DOZE_ROOT_ACCESS_KEY_ID and DOZE_ROOT_SECRET_ACCESS_KEY say, or is made at the first start and
printed once, on stderr. 'doze key create' makes others.

Every flag can also be given as a variable (--idle-timeout as DOZE_IDLE_TIMEOUT) or in a config
file (idle-timeout: 90s). A flag is stronger than a variable, a variable than the file.`,
		Example: `  doze dev
  doze dev --listen 127.0.0.1:0 --grpc-listen 127.0.0.1:0 --data-dir /tmp/doze --idle-timeout 10s
  doze dev --config doze.yaml`,
		Args: noArgs,
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().AddFlagSet(flags)
	cmd.RegisterFlagCompletionFunc("sandbox", oneOf("linux", "process"))
	cmd.RegisterFlagCompletionFunc("log-format", oneOf("text", "json"))
	cmd.RegisterFlagCompletionFunc("log-level", oneOf("debug", "info", "warn", "error"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		unknown, err := fillFromElsewhere(flags, os.Environ())
		if err != nil {
			return err
		}
		if err := settings.check(); err != nil {
			return err
		}
		log := newLogger(cmd.ErrOrStderr(), settings)
		for _, name := range unknown {
			log.Warn("this variable means nothing to doze dev", "variable", name)
		}
		settings.takeRootKey(log)
		shareMachine(os.Getenv)
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer signal.Stop(signals)
		l := &life{settings: settings, open: openPlatform, signals: signals, stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr(), log: log}
		return l.run(cmd.Context())
	}
	return cmd
}

// The variables that name the root key. They are no flags: command lines and config files are read
// by others.
const (
	rootKeyIDEnv  = "DOZE_ROOT_ACCESS_KEY_ID"
	rootSecretEnv = "DOZE_ROOT_SECRET_ACCESS_KEY"
)

func rootKeyOf(getenv func(string) string) control.RootKey {
	return control.RootKey{ID: getenv(rootKeyIDEnv), Secret: getenv(rootSecretEnv)}
}

// takeRootKey takes the root key from the environment.
func (s *devSettings) takeRootKey(log *slog.Logger) {
	s.RootKey = rootKeyOf(os.Getenv)
	for _, name := range []string{rootKeyIDEnv, rootSecretEnv} {
		_ = os.Unsetenv(name) // what this process starts has no business with it
	}
	switch {
	case s.RootKey != (control.RootKey{}) && !s.Auth:
		log.Warn("a root key was given and means nothing without --auth")
	case s.Auth && !isLoopback(s.GRPCListen):
		log.Warn("signatures of gRPC calls do not cover their messages: put TLS in front of it", "address", s.GRPCListen)
	}
}

// showRootKey shows the root key that this start made, if it made one.
func showRootKey(to io.Writer, key control.RootKey) {
	if key != (control.RootKey{}) {
		// Not through the log, which may be kept.
		fmt.Fprintf(to, "The root access key, shown this once:\n\n  export %s=%s\n  export %s=%s\n\n", keyIDEnv, key.ID, secretEnv, key.Secret)
	}
}

// newLogger is the process's log, as the settings want it.
func newLogger(w io.Writer, s *devSettings) *slog.Logger {
	options := &slog.HandlerOptions{Level: s.level()}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// openPlatform assembles control plane and worker in this process.
func openPlatform(ctx context.Context, p parts) (_ platform, err error) {
	prices, err := readPriceBook(p.settings.PriceBook)
	if err != nil {
		return nil, err
	}
	d := &devPlatform{}
	d.control, err = control.Open(ctx, control.Config{
		DataDir: filepath.Join(p.dir.Path(), "control"), HTTP: p.http, GRPC: p.grpc, Region: p.settings.Region,
		Version: version, Prices: prices, AsyncRetryWaits: p.settings.AsyncRetryWaits,
		Auth: p.settings.Auth, RootKey: p.settings.RootKey, ClusterKeyFile: p.settings.ClusterKeyFile,
		Egress: p.settings.Network == "egress", Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	showRootKey(p.stderr, d.control.NewRootKey())
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
	}()
	d.worker, err = worker.Open(ctx, worker.Config{
		Name: "worker-1", DataDir: filepath.Join(p.dir.Path(), "worker"), Home: &worker.Home{Node: d.control.Name(), Bus: d.control.Bus()}, Sandbox: p.settings.Sandbox,
		IdleTimeout: p.settings.IdleTimeout, NoParking: !p.settings.Parked, MemoryBytes: p.settings.Memory, Overcommit: p.settings.MemoryOvercommit,
		EgressRange: p.settings.EgressRange, DenyEgress: p.settings.DenyEgress, AllowEgress: p.settings.AllowEgress,
		HardCPU: p.settings.CPUHardCap, Region: p.settings.Region, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	d.control.ServeMetricsOf(d.worker.Metrics())
	return d, d.control.WaitWorker(ctx)
}

// devPlatform is a control node and a worker in one process.
type devPlatform struct {
	control *control.Control
	worker  *worker.Worker
}

func (d *devPlatform) Failed() <-chan error { return d.control.Failed() }

// Close ends the callers' side first, then the worker, whose usage still goes into the ledger,
// then what both stand on.
func (d *devPlatform) Close(ctx context.Context) error {
	err := d.control.StopTraffic(ctx)
	if d.worker != nil {
		err = errors.Join(err, d.worker.Close(ctx))
	}
	return errors.Join(err, d.control.Close(ctx))
}

// maxPriceBook is more than any price book needs, in bytes.
const maxPriceBook = 64 << 10

// readPriceBook reads the prices of the bill; "" is the default book.
func readPriceBook(path string) (ledger.PriceBook, error) {
	book := ledger.DefaultPrices()
	if path == "" {
		return book, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return book, fmt.Errorf("--price-book: %w", err)
	}
	defer file.Close()
	decoder := json.NewDecoder(io.LimitReader(file, maxPriceBook))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&book); err != nil {
		return book, fmt.Errorf("--price-book %s: %w", path, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return book, fmt.Errorf("--price-book %s: more than one JSON object, or more than %d bytes", path, maxPriceBook)
	}
	if err := book.Validate(); err != nil {
		return book, fmt.Errorf("--price-book %s: %w", path, err)
	}
	return book, nil
}
