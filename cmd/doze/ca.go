package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/doze-run/doze/bus/nodetls"
)

const (
	day = 24 * time.Hour
	// maxDays is a hundred years.
	maxDays = 36500
)

func newCACommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Make the certificates by which the nodes of a cluster know each other",
		Long: `Make the certificates by which the nodes of a cluster know each other. 'doze ca init' makes the
cluster's own authority, once, in a folder that no node needs. 'doze ca issue' makes a certificate
for one node, in a folder that the node is given (doze control --tls-dir, doze worker --tls-dir). A
certificate says which node it is and of which role: a worker's does not make a control node.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCAInitCommand(), newCAIssueCommand())
	return cmd
}

func newCAInitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make an authority: ca.crt and gossip.key, which every node gets, and ca.key, which none does",
		Args:  noArgs,
	}
	dir := cmd.Flags().String("dir", "doze-ca", "`DIR` for it; an authority that is there stays as it is")
	name := cmd.Flags().String("name", "Doze cluster", "its `NAME` in certificates")
	days := cmd.Flags().Int("days", 3650, "how many `DAYS` it is valid")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkDays(*days); err != nil {
			return err
		}
		err := nodetls.CreateAuthority(*dir, *name, time.Duration(*days)*day)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("there is an authority in %s already: certificates that it issued would be worth nothing without it, so it stays", *dir)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "made an authority, valid for %d days; keep %s away from the nodes\n", *days, filepath.Join(*dir, nodetls.KeyFile))
		_, err = fmt.Fprintln(cmd.OutOrStdout(), filepath.Join(*dir, nodetls.CertFile))
		return err
	}
	return cmd
}

func newCAIssueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "issue NAME --role ROLE",
		Short: "Make a node's folder: its certificate, with its key in it, and what all nodes have",
		Long: `Make a node's folder, to be copied to the node as it is and given with --tls-dir: its certificate with
its key (node.pem), ca.crt and gossip.key, readable by their owner only. A node reads its files again when
they have changed: to renew a certificate, issue it anew with --renew, in time, and put the file in its
place.`,
		Example: `  doze ca issue control-1 --role control --host 198.18.0.11 --host doze.example.com
  doze ca issue worker-1 --role worker --out /etc/doze/tls
  doze ca issue worker-1 --role worker --out /etc/doze/tls --renew`,
		Args: namedArgs("the NAME of a node"),
	}
	roles := []string{string(nodetls.Control), string(nodetls.Worker), string(nodetls.Client)}
	role := ""
	cmd.Flags().Var(&choiceValue{&role, roles}, "role", "what the node is: control, worker or client")
	hosts := cmd.Flags().StringArray("host", nil, "`HOST` name or address by which clients reach it, may be repeated; nodes themselves do not look at it")
	dir := cmd.Flags().String("dir", "doze-ca", "`DIR` of the authority")
	out := cmd.Flags().String("out", "", "`DIR` to write (default NAME in the folder of the authority)")
	days := cmd.Flags().Int("days", 365, "how many `DAYS` it is valid, at most as long as the authority")
	renew := cmd.Flags().Bool("renew", false, "replace the certificate if there is one")
	cmd.RegisterFlagCompletionFunc("role", oneOf(roles...))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if role == "" {
			return usagef("ca issue needs --role: control, worker or client")
		}
		if err := checkDays(*days); err != nil {
			return err
		}
		for _, host := range *hosts {
			if host == "" {
				return usagef("--host is empty")
			}
		}
		authority, err := nodetls.OpenAuthority(*dir)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no authority in %s: make one with `doze ca init`, or say where it is with --dir: %w", *dir, err)
		}
		if err != nil {
			return err
		}
		issued, err := authority.Issue(nodetls.Identity{Role: nodetls.Role(role), Name: args[0]}, *hosts, time.Duration(*days)*day)
		if errors.Is(err, nodetls.ErrIdentity) {
			return &usageError{err}
		}
		if err != nil {
			return err
		}
		path := *out
		if path == "" {
			path = filepath.Join(*dir, args[0])
		}
		if err := issued.WriteDir(path, *dir, *renew); errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("there is a certificate in %s already: add --renew to replace it", path)
		} else if err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "valid until %s\n", issued.Until.UTC().Format(time.DateOnly))
		_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
		return err
	}
	return cmd
}

func checkDays(days int) error {
	if days < 1 || days > maxDays {
		return usagef("--days %d is not between 1 and %d", days, maxDays)
	}
	return nil
}
