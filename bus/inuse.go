package bus

import (
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// TellRuntimesInUse tells every worker which runtimes functions have. It is not stored: who is not
// there misses it.
func (m *Mesh) TellRuntimesInUse(uses *dozev1.RuntimesInUse) error {
	raw, err := proto.Marshal(uses)
	if err == nil {
		err = m.atHome(subjectInUse, raw)
	}
	if err != nil {
		return fmt.Errorf("bus: runtimes in use: %w", err)
	}
	return nil
}

// OnRuntimesInUse hands what control nodes tell to fn, one at a time, until the Served is closed.
func (m *Mesh) OnRuntimesInUse(fn func(*dozev1.RuntimesInUse)) (*Served, error) {
	var one sync.Mutex
	return m.listen(subjectInUse, func(c *Conn, msg *nats.Msg) {
		uses := &dozev1.RuntimesInUse{}
		if err := proto.Unmarshal(msg.Data, uses); err != nil {
			c.log.Warn("bus: malformed runtimes in use", "err", err)
			return
		}
		one.Lock()
		defer one.Unlock()
		fn(uses)
	})
}
