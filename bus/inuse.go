package bus

import (
	"fmt"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// TellRuntimesInUse tells every worker which runtimes functions have. It is not stored: who is not
// there misses it.
func (c *Conn) TellRuntimesInUse(uses *dozev1.RuntimesInUse) error {
	raw, err := proto.Marshal(uses)
	if err == nil {
		err = c.nc.Publish(subjectInUse, raw)
	}
	if err != nil {
		return fmt.Errorf("bus: runtimes in use: %w", err)
	}
	return nil
}

// OnRuntimesInUse hands what control nodes tell to fn, one at a time, until the Served is closed.
func (c *Conn) OnRuntimesInUse(fn func(*dozev1.RuntimesInUse)) (*Served, error) {
	sub, err := c.nc.Subscribe(subjectInUse, func(m *nats.Msg) {
		uses := &dozev1.RuntimesInUse{}
		if err := proto.Unmarshal(m.Data, uses); err != nil {
			c.log.Warn("bus: malformed runtimes in use", "err", err)
			return
		}
		fn(uses)
	})
	if err != nil {
		return nil, fmt.Errorf("bus: runtimes in use: %w", err)
	}
	return &Served{subs: []*nats.Subscription{sub}}, nil
}
