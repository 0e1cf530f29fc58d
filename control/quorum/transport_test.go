package quorum

import (
	"net"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// A heartbeat that is being handled is waited for when the transport is closed, since the stores are closed next;
// a later one is refused.
func TestCloseWaitsForHeartbeats(t *testing.T) {
	open := func() transport {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return newTransport(Config{NodeID: "n", Listener: l}, hclog.NewNullLogger())
	}
	from, to := open(), open()
	defer from.Close()
	handling, release := make(chan struct{}), make(chan struct{})
	to.SetHeartbeatHandler(func(rpc raft.RPC) {
		close(handling)
		<-release
		rpc.Respond(&raft.AppendEntriesResponse{}, nil)
	})
	go func() {
		heartbeat := &raft.AppendEntriesRequest{Term: 1, RPCHeader: raft.RPCHeader{Addr: []byte("n"), ID: []byte("n")}}
		_ = from.AppendEntries("to", to.LocalAddr(), heartbeat, &raft.AppendEntriesResponse{}) // the connection ends first
	}()
	<-handling
	closed := make(chan error, 1)
	go func() { closed <- to.Close() }()
	select {
	case <-closed:
		t.Error("closed while a heartbeat was handled")
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
