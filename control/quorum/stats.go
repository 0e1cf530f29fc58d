package quorum

import "github.com/hashicorp/raft"

// Stats is where this node is, for metrics.
type Stats struct {
	Term, LastIndex, CommitIndex, AppliedIndex uint64
	// Leads says that this node leads and may propose; LeaderKnown that anybody does.
	Leads, LeaderKnown bool
	// LogHealthy says that the last write of the log went well.
	LogHealthy bool
	Voters     int
}

// Stats may be asked at any time until Close.
func (n *Node) Stats() Stats {
	s := Stats{
		Term: n.raft.CurrentTerm(), LastIndex: n.raft.LastIndex(), CommitIndex: n.raft.CommitIndex(), AppliedIndex: n.raft.AppliedIndex(),
		Leads: n.IsLeader(), LeaderKnown: n.leaderKnown(), LogHealthy: n.LogErr() == nil && n.Err() == nil,
	}
	for _, server := range n.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage == raft.Voter {
			s.Voters++
		}
	}
	return s
}
