package testenv

import "context"

// NodeInfo is one line of `doze node list --json`.
type NodeInfo struct {
	Name          string `json:"name"`
	Role          string `json:"role"`
	Address       string `json:"address"`
	State         string `json:"state"`
	Raft          string `json:"raft"`
	Version       string `json:"version"`
	Instances     int64  `json:"instances"`
	Calls         int64  `json:"calls"`
	Queued        int64  `json:"queued"`
	StreamsLed    int64  `json:"streamsLed"`
	StreamsBehind int64  `json:"streamsBehind"`
	MemoryTotal   int64  `json:"memoryTotalBytes"`
}

// NodeList asks a control node which nodes there are.
func (n *Member) NodeList(ctx context.Context) (all []NodeInfo) {
	n.t.Helper()
	n.Get(ctx, "/doze/v1/nodes", &all)
	return all
}

// NodeNamed is one of them; the zero NodeInfo when there is none of that name.
func (n *Member) NodeNamed(ctx context.Context, name string) NodeInfo {
	n.t.Helper()
	for _, one := range n.NodeList(ctx) {
		if one.Name == name {
			return one
		}
	}
	return NodeInfo{}
}
