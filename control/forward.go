package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/doze-run/doze/bus"
	"github.com/doze-run/doze/control/quorum"
)

// What control nodes ask one another.
const (
	verbApply   = "apply"   // an entry for the log; answers its index
	verbRead    = "read"    // answers the index up to which to wait for a linearizable read
	verbApplied = "applied" // answers when the node has applied an index
	verbJoin    = "join"    // a node without state wants to be a voter
	verbNode    = "node"    // answers how the node is
	verbDrain   = "drain"   // the node is to take nothing new
	verbRemove  = "remove"  // the leader is to take a node out
	verbRemoved = "removed" // the node was taken out
	verbForget  = "forget"  // another node was taken out
	verbLead    = "lead"    // a voter, by its name, is to lead
)

const (
	// nodeLimit bounds what a control node does for another.
	nodeLimit = 10 * time.Second
	// appliedLimit bounds how long others are waited for to apply a change.
	appliedLimit = 2 * time.Second
)

// errNotReady: this node's part of the replicated state is not open yet.
var errNotReady = &bus.NodeError{Code: "notready", Message: "this control node is not ready"}

// refusals are the quorum's errors that keep their meaning on the way to another node.
var refusals = map[string]error{
	"notleader": quorum.ErrNotLeader, "busy": quorum.ErrBusy, "closed": quorum.ErrClosed,
	"toolarge": quorum.ErrTooLarge, "halted": quorum.ErrHalted,
}

// answerNodes answers the other control nodes.
func (c *Control) answerNodes() error {
	index := func(do func(context.Context, *quorum.Node, []byte) (uint64, error)) func([]byte) ([]byte, error) {
		return func(request []byte) ([]byte, error) {
			node := c.quorumNow()
			if node == nil {
				return nil, errNotReady
			}
			ctx, cancel := context.WithTimeout(context.Background(), nodeLimit)
			defer cancel()
			at, err := do(ctx, node, request)
			if err != nil {
				return nil, nodeError(err)
			}
			return binary.BigEndian.AppendUint64(nil, at), nil
		}
	}
	whenOpen := func(answer func([]byte) ([]byte, error)) func([]byte) ([]byte, error) {
		return func(request []byte) ([]byte, error) {
			if !c.opened.Load() {
				return nil, errNotReady
			}
			return answer(request)
		}
	}
	for verb, answer := range map[string]func([]byte) ([]byte, error){
		verbApply: index(func(ctx context.Context, n *quorum.Node, entry []byte) (uint64, error) {
			return n.ApplyForwarded(ctx, entry)
		}),
		verbRead: index(func(ctx context.Context, n *quorum.Node, _ []byte) (uint64, error) { return n.ReadIndex(ctx) }),
		verbApplied: index(func(ctx context.Context, n *quorum.Node, raw []byte) (uint64, error) {
			if len(raw) != 8 {
				return 0, errors.New("control: malformed index")
			}
			at := binary.BigEndian.Uint64(raw)
			ctx, cancel := context.WithTimeout(ctx, appliedLimit)
			defer cancel()
			return at, n.WaitApplied(ctx, at)
		}),
		verbJoin: func(request []byte) ([]byte, error) {
			ctx, cancel := context.WithTimeout(context.Background(), nodeLimit)
			defer cancel()
			return nil, c.takeIn(ctx, request)
		},
		verbNode: whenOpen(func([]byte) ([]byte, error) {
			ctx, cancel := context.WithTimeout(context.Background(), askNodes)
			defer cancel()
			state, err := c.state(ctx)
			if err != nil {
				return nil, err
			}
			return json.Marshal(state)
		}),
		verbDrain:   whenOpen(func([]byte) ([]byte, error) { c.Drain(); return nil, nil }),
		verbRemoved: whenOpen(func([]byte) ([]byte, error) { return nil, c.removed() }),
		verbForget:  whenOpen(func(request []byte) ([]byte, error) { return nil, c.forget(request) }),
		verbRemove: whenOpen(func(request []byte) ([]byte, error) {
			ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
			defer cancel()
			return nil, nodeError(c.takeOut(ctx, request))
		}),
		verbLead: func(name []byte) ([]byte, error) {
			node := c.quorumNow()
			if node == nil {
				return nil, errNotReady
			}
			ctx, cancel := context.WithTimeout(context.Background(), nodeLimit)
			defer cancel()
			return nil, nodeError(node.HandOverTo(ctx, string(name)))
		},
	} {
		stop, err := c.mesh.AnswerNode(verb, answer)
		if err != nil {
			return err
		}
		c.onClose(func(context.Context) error { return stop() })
	}
	return nil
}

func nodeError(err error) error {
	for code, known := range refusals {
		if errors.Is(err, known) {
			return &bus.NodeError{Code: code, Message: err.Error()}
		}
	}
	return err
}

// forwarder takes to the leader what only it can do; it implements quorum.Forwarder.
type forwarder Control

// Apply implements quorum.Forwarder.
func (f *forwarder) Apply(ctx context.Context, leader string, entry []byte) (uint64, error) {
	return f.ask(ctx, leader, verbApply, entry)
}

// ReadIndex implements quorum.Forwarder.
func (f *forwarder) ReadIndex(ctx context.Context, leader string) (uint64, error) {
	return f.ask(ctx, leader, verbRead, nil)
}

func (f *forwarder) ask(ctx context.Context, leader, verb string, request []byte) (uint64, error) {
	answer, err := f.mesh.AskNode(ctx, leader, verb, request)
	var refused *bus.NodeError
	switch {
	case errors.As(err, &refused):
		if refused == nil || refused.Code == errNotReady.Code {
			return 0, &quorum.NotLeaderError{ID: leader}
		}
		if known := refusals[refused.Code]; known != nil {
			return 0, fmt.Errorf("%w (said %s)", known, leader)
		}
		return 0, fmt.Errorf("%w: %w", quorum.ErrUnknown, err)
	case errors.Is(err, bus.ErrNodeAway):
		return 0, &quorum.NotLeaderError{ID: leader}
	case err != nil:
		return 0, fmt.Errorf("%w: %w", quorum.ErrUnknown, err)
	case len(answer) != 8:
		return 0, fmt.Errorf("%w: %s answered %d bytes", quorum.ErrUnknown, leader, len(answer))
	}
	return binary.BigEndian.Uint64(answer), nil
}

// waitAppliedEverywhere returns when every control node that can be reached has applied what this one
// has, or after appliedLimit: a gateway that is cut off serves what it knows.
func (c *Control) waitAppliedEverywhere(ctx context.Context) {
	if c.members == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, appliedLimit)
	defer cancel()
	request := binary.BigEndian.AppendUint64(nil, c.quorum.AppliedIndex())
	done := make(chan struct{}, 16)
	asked := 0
	for _, n := range c.members.Controls() {
		if n.Name == c.config.Cluster.Name {
			continue
		}
		asked++
		c.running.Go(func() {
			if _, err := c.mesh.AskNode(ctx, n.Name, verbApplied, request); err != nil {
				c.config.Logger.Debug("a control node may be behind", "node", n.Name, "err", err)
			}
			done <- struct{}{}
		})
	}
	for range asked {
		<-done
	}
}
