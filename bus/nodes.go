package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
)

const (
	subjectNode = "n" // n.<verb>: to the control node whose home it is
	// nodeRequests bounds how many requests of one kind a control node works on at once.
	nodeRequests = 1024
	// headerCode carries the code of a refused request.
	headerCode = "Doze-Code"
)

// NodeError is a control node's refusal of a request. Its code is the two sides' matter.
type NodeError struct {
	Code, Message string
}

func (e *NodeError) Error() string { return e.Message }

// ErrNodeAway: the control node cannot be reached, and has not got the request. Any other error
// that is no NodeError leaves that open.
var ErrNodeAway = errors.New("bus: control node cannot be reached")

// AskNode sends a request to one control node and returns its answer.
func (m *Mesh) AskNode(ctx context.Context, node, verb string, request []byte) ([]byte, error) {
	link := m.link(node)
	if link == nil || !link.up.Load() {
		return nil, fmt.Errorf("%w: %s", ErrNodeAway, node)
	}
	answer, err := link.nc.RequestWithContext(ctx, subjectNode+"."+verb, request)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, fmt.Errorf("%w: %s is not ready", ErrNodeAway, node)
	case err != nil:
		return nil, fmt.Errorf("bus: ask %s to %s: %w", node, verb, err)
	}
	if text := answer.Header.Get(headerError); text != "" {
		return nil, &NodeError{Code: answer.Header.Get(headerCode), Message: text}
	}
	return answer.Data, nil
}

// TellNode sends a message to one control node. It does not wait, and may be lost.
func (m *Mesh) TellNode(node, verb string, message []byte) error {
	link := m.link(node)
	if link == nil || !link.up.Load() {
		return fmt.Errorf("%w: %s", ErrNodeAway, node)
	}
	if err := link.nc.Publish(subjectNode+"."+verb, message); err != nil {
		return fmt.Errorf("bus: tell %s to %s: %w", node, verb, err)
	}
	return nil
}

// HearNode hands what comes to this process's own home to answer, one at a time and in order from each
// node, until stop, which waits for the one that runs. answer must not block; what it returns goes to who
// asked.
func (m *Mesh) HearNode(verb string, answer func(message []byte) []byte) (stop func() error, err error) {
	served, err := m.listenAtHome(subjectNode+"."+verb, func(c *Conn, msg *nats.Msg) {
		data := answer(msg.Data)
		if msg.Reply == "" {
			return
		}
		if err := c.nc.Publish(msg.Reply, data); err != nil {
			c.log.Warn("bus: answer a node", "verb", verb, "err", err)
		}
	})
	if err != nil {
		return nil, err
	}
	return served.Close, nil
}

// AnswerNode answers requests that come to this process's own home, each on a goroutine of its own, until
// stop, which waits for those that run. An error that is a *NodeError keeps its code.
func (m *Mesh) AnswerNode(verb string, answer func(request []byte) ([]byte, error)) (stop func() error, err error) {
	var running sync.WaitGroup
	room := make(chan struct{}, nodeRequests)
	served, err := m.listenAtHome(subjectNode+"."+verb, func(c *Conn, msg *nats.Msg) {
		room <- struct{}{}
		running.Go(func() {
			defer func() { <-room }()
			reply := nats.NewMsg(msg.Reply)
			data, err := answer(msg.Data)
			var refused *NodeError
			switch {
			case errors.As(err, &refused):
				reply.Header.Set(headerError, refused.Message)
				reply.Header.Set(headerCode, refused.Code)
			case err != nil:
				reply.Header.Set(headerError, err.Error())
			default:
				reply.Data = data
			}
			if err := msg.RespondMsg(reply); err != nil {
				c.log.Warn("bus: answer a node", "verb", verb, "err", err)
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		err := served.Close()
		running.Wait()
		return err
	}, nil
}
