package bus

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/doze-run/doze/bus/nodetls"
)

// workersAccount is where workers are on the durable plane. Who publishes to a stream says where its answer
// goes, and it answers with rights of its own: a worker in the streams' account could have it answer into
// the JetStream API, and purge what it likes. In an account of their own there is no such API to answer to.
const workersAccount = "workers"

// gate says who may connect to a server over TCP, and what to do there: the certificate does. Handshakes
// have looked at it already (nodetls); here it is only read.
type gate struct {
	password string
	streams  bool
	log      *slog.Logger

	control, system *server.Account
	workers         atomic.Pointer[server.Account] // nil until it is there: workers come again
}

// open learns of the accounts of a server that is configured and not started.
func (g *gate) open(s *server.Server) {
	g.control, g.system = s.GlobalAccount(), s.SystemAccount()
	if !g.streams {
		g.workers.Store(g.control)
	}
}

// share makes the workers' account on a server that has just started, and has it reach what workers need
// of the streams' one. Before its start JetStream would not take the global account for the streams'.
func (g *gate) share(s *server.Server) error {
	if !g.streams {
		return nil
	}
	workers, err := s.RegisterAccount(workersAccount)
	if err != nil {
		return fmt.Errorf("bus: make the workers' account: %w", err)
	}
	for _, subject := range []string{subjectUsage + ".*.*", subjectMark + ".*", subjectLog + ".*.*", subjectCode + ".*"} {
		if err := g.control.AddServiceExport(subject, []*server.Account{workers}); err != nil {
			return fmt.Errorf("bus: export %s: %w", subject, err)
		}
		if err := workers.AddServiceImport(g.control, subject, subject); err != nil {
			return fmt.Errorf("bus: import %s: %w", subject, err)
		}
	}
	marks := subjectApplied + ".*.*"
	if err := g.control.AddStreamExport(marks, []*server.Account{workers}); err != nil {
		return fmt.Errorf("bus: export %s: %w", marks, err)
	}
	if err := workers.AddStreamImport(g.control, marks, ""); err != nil {
		return fmt.Errorf("bus: import %s: %w", marks, err)
	}
	g.workers.Store(workers)
	return nil
}

// Check implements server.Authentication.
func (g *gate) Check(c server.ClientAuthentication) bool {
	state := c.GetTLSConnectionState()
	if state == nil { // in process
		options := c.GetOpts()
		if options.Username == systemUser && g.system != nil {
			c.RegisterUser(&server.User{Username: systemUser, Account: g.system})
			return g.own(options.Password)
		}
		return g.own(options.Token)
	}
	peer, err := nodetls.Peer(*state)
	if err != nil {
		g.log.Warn("bus: a connection was refused", "from", c.RemoteAddress(), "err", err)
		return false
	}
	switch peer.Role {
	case nodetls.Control:
		c.RegisterUser(&server.User{Username: peer.String(), Account: g.control})
		return true
	case nodetls.Worker:
		workers := g.workers.Load()
		if workers == nil {
			return false
		}
		if token(peer.Name) != peer.Name {
			g.log.Warn("bus: a worker was refused: its certificate's name has other than letters, digits, - and _", "worker", peer.String())
			return false
		}
		publish, subscribe := workerAtHome(peer.Name)
		if g.streams {
			publish, subscribe = workerAtStreams(peer.Name)
		}
		c.RegisterUser(&server.User{
			Username: peer.String(), Account: workers,
			Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Allow: publish}, Subscribe: &server.SubjectPermission{Allow: subscribe},
			},
		})
		return true
	}
	g.log.Warn("bus: a connection was refused: no such role connects here", "from", c.RemoteAddress(), "peer", peer.String())
	return false
}

// own tells whether a secret is this process's.
func (g *gate) own(secret string) bool {
	return subtle.ConstantTimeCompare([]byte(secret), []byte(g.password)) == 1
}

// workerAtHome is what a worker may at a home: nothing of the JetStream API (relay.go). It may pull from any
// queue whose name it knows, and is told the names of those that it is to host.
func workerAtHome(worker string) (publish, subscribe []string) {
	return []string{
			subjectReport + "." + worker,
			subjectAsker + ".*.*." + worker,
			subjectProbe + ".*.*." + worker,
			subjectReply + "." + worker + ".*",
			subjectSlot + "." + worker + ".*", // to itself, after a connection was made anew
			subjectQueue + "." + worker,
			subjectPull + "." + worker + ".*",
			subjectSettle + "." + worker + ".>",
		}, []string{
			subjectWorker + "." + worker + ".*",
			subjectSlot + "." + worker + ".*",
			subjectRetire,
			subjectInUse,
			inbox(worker) + ".>",
		}
}

// workerAtStreams is what a worker may on the durable plane: nothing of the JetStream API.
func workerAtStreams(worker string) (publish, subscribe []string) {
	return []string{
			subjectUsage + "." + worker + ".*",
			subjectMark + "." + worker,
			subjectLog + ".*.*",
			subjectCode + "." + worker,
		}, []string{
			subjectApplied + "." + worker + ".*",
			inbox(worker) + ".>",
		}
}

// inbox is what the answers to a node's requests begin with.
func inbox(node string) string { return "_INBOX." + strings.ReplaceAll(node, ".", "_") }
