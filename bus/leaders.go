package bus

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"golang.org/x/crypto/bcrypt"
)

const (
	// systemUser may ask a clustered server for what concerns all of them. Its password is made at each start
	// and never leaves the process.
	systemUser = "system"
	// stepPause is how often it is looked whether another server leads.
	stepPause = 50 * time.Millisecond
	// removeTry bounds one request to remove a server.
	removeTry = 2 * time.Second
	// codeNotMember is JetStream's error for a server that has no part in the cluster.
	codeNotMember = 10044
)

// users gives the server's system account a user. Where that is the only user, a client that says nothing of
// itself has the global account, as without.
func (s *Server) users(options *server.Options) error {
	hash, err := bcrypt.GenerateFromPassword([]byte(s.password), bcrypt.MinCost) // it is random: nobody guesses it
	if err != nil {
		return fmt.Errorf("bus: system account: %w", err)
	}
	account := server.NewAccount(server.DEFAULT_SYSTEM_ACCOUNT)
	options.Accounts = []*server.Account{account}
	options.SystemAccount = account.Name
	options.Users = []*server.User{{Username: systemUser, Password: string(hash), Account: account}}
	return nil
}

// Leads is how many streams, and groups of servers behind consumers and behind all streams, this server
// leads.
func (s *Server) Leads() (led int, err error) {
	all, err := s.groups()
	for _, g := range all {
		if g.leader == s.config.Name {
			led++
		}
	}
	return led, err
}

// Behind is how many streams and consumers lack something on this server, have no leader that it knows of, or
// are led by it and lack a copy elsewhere. While some do it is of no use to them when another server goes: one that lost its disk has no vote
// before it has caught up.
func (s *Server) Behind() int {
	if s.config.Cluster == nil {
		return 0
	}
	inner := s.inner.Load()
	behind := len(inner.Healthz(&server.HealthzOptions{Details: true}).Errors)
	state, err := inner.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Consumer: true, Config: true})
	if err != nil || state.Meta == nil {
		return behind + 1
	}
	// A server that came in place of another has no part yet in what it is to have: whoever leads that knows.
	for _, account := range state.AccountDetails {
		for _, stream := range account.Streams {
			copies := min(stream.Config.Replicas, state.Meta.Size)
			if s.lacks(stream.Cluster, copies) {
				behind++
			}
			for _, consumer := range stream.Consumer {
				if s.lacks(consumer.Cluster, copies) {
					behind++
				}
			}
		}
	}
	return behind
}

// lacks tells whether a group that this server leads has fewer members than it is to have, or one that is there
// and has not caught up.
func (s *Server) lacks(group *server.ClusterInfo, copies int) bool {
	if group == nil || group.Leader != s.config.Name {
		return false
	}
	return len(group.Replicas)+1 < copies ||
		slices.ContainsFunc(group.Replicas, func(p *server.PeerInfo) bool { return !p.Offline && !p.Current })
}

// group is what servers elect a leader of: a stream, a consumer, or (with neither name) the cluster.
type group struct{ account, stream, consumer, leader string }

func (s *Server) groups() ([]group, error) {
	if s.config.Cluster == nil {
		return nil, nil
	}
	state, err := s.inner.Load().Jsz(&server.JSzOptions{Accounts: true, Streams: true, Consumer: true})
	if err != nil {
		return nil, fmt.Errorf("bus: look at the streams: %w", err)
	}
	var all []group
	if state.Meta != nil {
		all = append(all, group{leader: state.Meta.Leader})
	}
	for _, account := range state.AccountDetails {
		for _, stream := range account.Streams {
			if stream.Cluster == nil || len(stream.Cluster.Replicas) == 0 && stream.Cluster.Leader == s.config.Name {
				continue // nobody else has it
			}
			all = append(all, group{account.Name, stream.Name, "", stream.Cluster.Leader})
			for _, consumer := range stream.Consumer {
				if consumer.Cluster != nil && (len(consumer.Cluster.Replicas) > 0 || consumer.Cluster.Leader != s.config.Name) {
					all = append(all, group{account.Name, stream.Name, consumer.Name, consumer.Cluster.Leader})
				}
			}
		}
	}
	return all, nil
}

// StepDown hands over what this server leads, and returns when others lead all of it, or with ctx.
func (s *Server) StepDown(ctx context.Context) error {
	for {
		all, err := s.groups()
		if err != nil {
			return err
		}
		left := 0
		for _, g := range all {
			if g.leader == "" {
				left++
			}
			if g.leader != s.config.Name {
				continue
			}
			left++
			switch inner := s.inner.Load(); {
			case g.consumer != "":
				err = inner.JetStreamStepdownConsumer(g.account, g.stream, g.consumer)
			case g.stream != "":
				err = inner.JetStreamStepdownStream(g.account, g.stream)
			default:
				err = s.ask(ctx, server.JSApiLeaderStepDown, nil)
			}
			if err != nil {
				s.config.Logger.Debug("bus: hand over", "stream", g.stream, "consumer", g.consumer, "err", err) // it may have gone, or be led by another meanwhile
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-time.After(stepPause):
		case <-ctx.Done():
			return fmt.Errorf("bus: %d streams and consumers are not led by another server: %w", left, ctx.Err())
		}
	}
}

// RemovePeer takes a server that is gone for good out of the cluster: its copies of streams are made
// elsewhere, if there is a server that has none. It is no error when it has no part in the cluster. A
// server of this name may come back five minutes later (nats-server's rule), and by another name at once.
func (s *Server) RemovePeer(ctx context.Context, name string) error {
	if s.config.Cluster == nil {
		return nil
	}
	request, err := json.Marshal(server.JSApiMetaServerRemoveRequest{Server: name, Peer: peerID(name)})
	if err != nil {
		return fmt.Errorf("bus: remove server %s: %w", name, err)
	}
	for {
		// The server that is removed may have led: a request that was put to it is answered by nobody.
		try, cancel := context.WithTimeout(ctx, removeTry)
		err := s.ask(try, server.JSApiRemoveServer, request)
		cancel()
		if err == nil {
			return nil
		}
		s.config.Logger.Debug("bus: remove server", "server", name, "err", err)
		select {
		case <-time.After(stepPause):
		case <-ctx.Done():
			return fmt.Errorf("bus: remove server %s: %w", name, err)
		}
	}
}

// ask puts a request of the system account to whichever server leads the cluster.
func (s *Server) ask(ctx context.Context, subject string, request []byte) error {
	nc, err := nats.Connect("", nats.InProcessServer(s), nats.UserInfo(systemUser, s.password))
	if err != nil {
		return fmt.Errorf("system account: %w", err)
	}
	defer nc.Close()
	answer, err := nc.RequestWithContext(ctx, subject, request)
	if err != nil {
		return fmt.Errorf("the cluster's leader does not answer: %w", err)
	}
	var reply server.ApiResponse
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return fmt.Errorf("answer of %s: %w", subject, err)
	}
	if reply.Error != nil && reply.Error.ErrCode != codeNotMember {
		return errors.New(reply.Error.Description)
	}
	return nil
}

// peerID is how nats-server names a server in its groups: it knows one that it has not seen since its
// own start by nothing else.
func peerID(name string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(name))
	id := sum[:8]
	for i := range id {
		id[i] = digits[int(id[i])%len(digits)]
	}
	return string(id)
}
