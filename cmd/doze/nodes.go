package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// nodeInfo is one node of the cluster, as GET /doze/v1/nodes tells it and `doze node list --json` prints it.
type nodeInfo struct {
	Name    string `json:"name"`
	Role    string `json:"role"` // "control" or "worker"
	Address string `json:"address"`
	// State is "alive", "suspect", "draining", "drained", "left" or "dead".
	State string `json:"state"`
	// Raft is "leader", "follower", "voter" or "none" for a control node.
	Raft             string `json:"raft"`
	Version          string `json:"version"`
	MemoryTotalBytes int64  `json:"memoryTotalBytes"`
	MemoryFreeBytes  int64  `json:"memoryFreeBytes"`
	Instances        int64  `json:"instances"`
	Calls            int64  `json:"calls"`
	Queued           int64  `json:"queued"`
	StreamsLed       int64  `json:"streamsLed"`
	StreamsBehind    int64  `json:"streamsBehind"`
	Unavailable      string `json:"unavailable"`
}

const (
	nodesPath = "/doze/v1/nodes"
	// drainLook is how often a node that drains is looked at.
	drainLook = 250 * time.Millisecond
)

func newNodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "List, drain and remove the nodes of a cluster",
		Long: `List, drain and remove the nodes of a cluster. Where it runs with --auth this takes a root key.

A node that is stopped with SIGTERM drains by itself: no call fails when nodes are restarted one by one.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []*cobra.Command{newNodeListCommand(), newNodeDrainCommand(), newNodeRemoveCommand()} {
		addEndpointFlag(c)
		cmd.AddCommand(c)
	}
	return cmd
}

func (c *client) nodes(ctx context.Context) ([]nodeInfo, error) {
	nodes := []nodeInfo{}
	err := c.get(ctx, nodesPath, nil, &nodes)
	return nonNil(nodes), err
}

func newNodeListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the nodes, control nodes first",
		Long: `List the nodes, control nodes first, as the control node that answers sees them. States:

  alive     it takes calls
  suspect   it is said to be there, but does not answer
  draining  it takes nothing new, and lets what it has end
  drained   that, and nothing is left: it can be stopped
  left      it stopped in order
  dead      it went without a word

A control node's part in the replicated state is leader, follower, voter (it has a vote, but is not
there) or none.`,
		Args: noArgs,
	}
	asJSON := addJSONFlag(cmd, "the nodes")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		nodes, err := c.nodes(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), nodes)
		}
		return printNodes(cmd.OutOrStdout(), nodes)
	}
	return cmd
}

func printNodes(w io.Writer, nodes []nodeInfo) error {
	t := newTable("NAME", "ROLE", "ADDRESS", "STATE", "RAFT", "VERSION", ">MEMORY FREE", ">OF", ">INSTANCES", ">CALLS", ">QUEUED", ">STREAMS")
	for _, n := range nodes {
		state := n.State
		if n.Unavailable != "" {
			state += ", takes no calls: " + n.Unavailable
		}
		free, of, instances, calls, queued, streams := "-", "-", "-", strconv.FormatInt(n.Calls, 10), "-", "-"
		switch n.Role {
		case "worker":
			if n.MemoryTotalBytes > 0 {
				free, of, instances = size(n.MemoryFreeBytes), size(n.MemoryTotalBytes), strconv.FormatInt(n.Instances, 10)
			}
		default:
			queued, streams = strconv.FormatInt(n.Queued, 10), "leads "+strconv.FormatInt(n.StreamsLed, 10)
			if n.StreamsBehind > 0 {
				streams += ", behind in " + strconv.FormatInt(n.StreamsBehind, 10)
			}
		}
		t.add(n.Name, n.Role, orDash(n.Address), state, orDash(n.Raft), orDash(n.Version), free, of, instances, calls, queued, streams)
	}
	return t.print(w)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func newNodeDrainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain NAME",
		Short: "Have a node take nothing new, and wait until nothing is left on it",
		Long: `Have a node take nothing new, and wait until nothing is left on it. A worker starts no call any more, lets
those that run end, ends its instances and ships what they used. A control node is not ready any more (/readyz),
gives up its queues and hands over what it leads; it goes on answering.

The node's process goes on. Stop it when it is drained; started again, it is a node like any other.`,
		Args: namedArgs("the name of a node"),
	}
	wait := cmd.Flags().Duration("wait", 20*time.Minute, "how long to wait until it is drained; 0 tells it and waits for nothing")
	asJSON := addJSONFlag(cmd, "the node, in an array,")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		if err := c.do(cmd.Context(), http.MethodPost, nodesPath+"/"+url.PathEscape(args[0])+"/drain", nil, nil); err != nil {
			return err
		}
		node, err := c.waitDrained(cmd.Context(), args[0], *wait, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), []nodeInfo{node})
		}
		return nil
	}
	return cmd
}

// waitDrained says how far a node is until nothing is left on it.
func (c *client) waitDrained(ctx context.Context, name string, limit time.Duration, progress io.Writer) (nodeInfo, error) {
	begun, said := time.Now(), ""
	for {
		nodes, err := c.nodes(ctx)
		if err != nil {
			return nodeInfo{}, err
		}
		var node nodeInfo
		for _, n := range nodes {
			if n.Name == name {
				node = n
			}
		}
		text := fmt.Sprintf("%s: %s", name, node.State)
		switch {
		case node.Name == "":
			return node, fmt.Errorf("%s is not among the nodes any more", name)
		case node.State == "left" || node.State == "dead":
			return node, fmt.Errorf("%s is not there any more (%s)", name, node.State)
		case node.Role == "worker":
			text += fmt.Sprintf(", %s, %s", plural(int(node.Calls), "call"), plural(int(node.Instances), "instance"))
		default:
			text += fmt.Sprintf(", %s, %d in its queues, leads %s", plural(int(node.Calls), "call"), node.Queued, plural(int(node.StreamsLed), "stream"))
			if node.Raft == "leader" {
				text += " and the cluster"
			}
		}
		if text != said {
			said = text
			fmt.Fprintln(progress, text)
		}
		switch {
		case node.State == "drained" || limit == 0:
			return node, nil
		case time.Since(begun) > limit:
			return node, fmt.Errorf("%s is not drained after %s; it goes on", name, limit)
		}
		select {
		case <-time.After(drainLook):
		case <-ctx.Done():
			return node, ctx.Err()
		}
	}
}

func newNodeRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a node that is gone for good out of the cluster",
		Long: `Take a node that is gone for good out of the cluster: out of Raft's voters, the servers that keep the streams,
and what the others remember. A control node that only lost its disk needs none of this: start it empty, by
the same name.

A node that is there is refused, unless with --force: then it is stopped, too. What would leave no majority of
control nodes is always refused. A removed control node that comes back with its old disk stops by itself.
Give a replacement another name: the streams take five minutes to let an old one in again.`,
		Args: namedArgs("the name of a node"),
	}
	force := cmd.Flags().Bool("force", false, "remove it although it is there, and stop it")
	asJSON := addJSONFlag(cmd, "the nodes that are left")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		path := nodesPath + "/" + url.PathEscape(args[0])
		if *force {
			path += "?force=true"
		}
		if err := c.do(cmd.Context(), http.MethodDelete, path, nil, nil); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "removed %s\n", args[0])
		if !*asJSON {
			return nil
		}
		nodes, err := c.nodes(cmd.Context())
		if err != nil {
			return err
		}
		return printJSON(cmd.OutOrStdout(), nodes)
	}
	return cmd
}
