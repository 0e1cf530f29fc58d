package control

import (
	"slices"
	"strings"
	"testing"

	"github.com/doze-run/doze/bus/gossip"
	"github.com/doze-run/doze/control/quorum"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// What may go is decided by who would be left, and is there.
func TestLosesQuorum(t *testing.T) {
	for _, test := range []struct {
		name  string
		nodes string // name:state:raft of the control nodes, the first is to go
		says  string // "" when it may
	}{
		{"dead of three", "c3:dead:voter c1:alive:leader c2:alive:follower", ""},
		{"left of three", "c3:left:voter c1:alive:leader c2:alive:follower", ""},
		{"alive of three", "c3:alive:follower c1:alive:leader c2:alive:follower", ""},
		{"alive of three, another is dead", "c2:alive:follower c1:alive:leader c3:dead:voter", "c3 (dead)"},
		{"alive of three, another is silent", "c2:alive:follower c1:alive:leader c3:suspect:follower", "c3 (suspect)"},
		{"one that drains counts", "c3:dead:voter c1:alive:leader c2:draining:follower", ""},
		{"dead of five, another is dead", "c5:dead:voter c1:alive:leader c2:alive:follower c3:alive:follower c4:dead:voter", ""},
		{"alive of five, two are dead", "c3:alive:follower c1:alive:leader c2:alive:follower c4:dead:voter c5:dead:voter", "only 2 are there"},
		{"the last", "c1:alive:leader", "the last control node"},
		{"no member", "c9:alive:none c1:alive:leader c2:dead:voter", ""},
		{"others that are no members", "c2:dead:voter c1:alive:leader c9:dead:none", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			nodes := []*dozev1.Node{{Name: "w1", Role: gossip.Worker, State: nodeDead}}
			for _, text := range strings.Fields(test.nodes) {
				part := strings.Split(text, ":")
				nodes = append(nodes, &dozev1.Node{Name: part[0], Role: gossip.Control, State: part[1], Raft: part[2]})
			}
			says := losesQuorum(nodes, nodes[1])
			if (says == "") != (test.says == "") || !strings.Contains(says, test.says) {
				t.Errorf("says %q, want something about %q", says, test.says)
			}
		})
	}
}

// A control node that was removed is told so when it has been seen long enough; one that joins is not.
func TestStrangers(t *testing.T) {
	there := func(names ...string) (all []gossip.Node) {
		for _, name := range names {
			state := gossip.StateMember
			if strings.HasPrefix(name, "new") {
				state = gossip.StateNew
			}
			all = append(all, gossip.Node{Name: name, Role: gossip.Control, State: state})
		}
		return all
	}
	members := []quorum.Member{{ID: "c1", Voter: true}, {ID: "c2", Voter: true}}
	s := strangers{}
	for round := range strangerRounds - 1 {
		if tell := s.look(there("c1", "c2", "new", "old"), members); len(tell) > 0 {
			t.Errorf("round %d: %v", round, tell)
		}
	}
	if tell := s.look(there("c1", "c2", "new"), members); len(tell) > 0 {
		t.Errorf("it went: %v", tell)
	}
	for range strangerRounds - 1 {
		s.look(there("c1", "new", "old"), members)
	}
	if tell := s.look(there("c1", "new", "old"), members); !slices.Equal(tell, []string{"old"}) {
		t.Errorf("told %v", tell)
	}
	if tell := s.look(there("c1", "old"), append(members, quorum.Member{ID: "old"})); len(tell) > 0 {
		t.Errorf("taken in again, and told: %v", tell)
	}
}
