package control

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/doze-run/doze/control/gateway"
	"github.com/doze-run/doze/control/ledger"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// platform answers Doze's own operations from what this node knows; it implements
// gateway.Platform.
type platform Control

// askWorkers bounds what a list of instances waits for a worker's answer.
const askWorkers = 2 * time.Second

// countEvents bounds what the status waits for the number of events: a stream may be without a leader.
const countEvents = time.Second

// Instances asks every live worker.
func (p *platform) Instances(ctx context.Context, account string) ([]*dozev1.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, askWorkers)
	defer cancel()
	all := []*dozev1.Instance{}
	for _, w := range p.placement.Workers() {
		infos, err := p.mesh.ListInstances(ctx, w.Worker, account)
		if err != nil {
			return nil, fmt.Errorf("ask worker %s: %w", w.Worker, err)
		}
		for _, i := range infos {
			all = append(all, &dozev1.Instance{
				Id: i.Id, Function: i.Function, Version: i.Version, State: i.State,
				CreatedAt: time.UnixMilli(i.CreatedAtMs).UTC().Format("2006-01-02T15:04:05.000Z07:00"),
				IdleMs:    i.IdleMs, MemoryBytes: i.MemoryBytes, Calls: i.Calls, Cold: i.Cold, Worker: w.Worker,
			})
		}
	}
	return all, nil
}

func (p *platform) Runtimes(context.Context) ([]*dozev1.Runtime, error) {
	return p.placement.Runtimes(), nil
}

// Bill is the statement of a month, at this node's linearizable read point.
func (p *platform) Bill(ctx context.Context, account, month string) (*dozev1.Bill, error) {
	m, err := ledger.ParseMonth(month)
	if err != nil {
		return nil, err
	}
	if err := p.quorum.Read(ctx); err != nil {
		return nil, fmt.Errorf("bill: %w", err)
	}
	statement, err := p.quorum.Ledger().Statement(account, m, p.config.Prices, m.Elapsed(time.Now().UnixMilli()))
	if err != nil {
		return nil, fmt.Errorf("bill: %w", err)
	}
	bill := &dozev1.Bill{Month: month, TotalNanoUsd: statement.TotalNanoUSD, AlwaysOnNanoUsd: statement.AlwaysOnNanoUSD}
	for _, line := range statement.Functions {
		bill.Functions = append(bill.Functions, &dozev1.FunctionBill{
			Function: line.Function, Requests: int64(line.Requests), MbMs: int64(line.MBMs), GbSeconds: gbSeconds(line.GBSeconds),
			FreeRequests: int64(line.FreeRequests), FreeGbSeconds: gbSeconds(line.FreeGBSeconds), AmountNanoUsd: line.AmountNanoUSD,
		})
	}
	return bill, nil
}

// gbSeconds is for people; the exact figure is in MB·ms.
func gbSeconds(g ledger.GBSeconds) float64 { return float64(g) / (1024 * 1000) }

// Status is how this node sees the platform.
func (p *platform) Status(ctx context.Context, stateHash bool) (*dozev1.Status, error) {
	status := &dozev1.Status{
		Version: p.config.Version, Ready: true, UptimeMs: time.Since(p.begun).Milliseconds(),
		Functions: int64(p.quorum.Registry().Snapshot().Len()),
	}
	if err := (*Control)(p).Ready(); err != nil {
		status.Ready, status.Problems = false, append(status.Problems, err.Error())
	} else if outage := (*gateway.Outage)(nil); errors.As(p.storage.admit(0), &outage) {
		status.Problems = append(status.Problems, outage.Message) // calls run, nothing else is taken
	}
	status.Node = (*Control)(p).Name()
	status.Leader, _ = p.quorum.Leader()
	status.Nodes = (*Control)(p).nodes()
	if stateHash {
		index, sum := p.quorum.StateHash()
		status.StateIndex, status.StateHash = int64(index), hex.EncodeToString(sum[:])
	} else {
		status.StateIndex = int64(p.quorum.AppliedIndex())
	}
	count, cancel := context.WithTimeout(ctx, countEvents)
	waiting, err := p.events.Waiting(count)
	cancel()
	if err != nil {
		status.Problems = append(status.Problems, fmt.Sprintf("events cannot be counted: %v", err))
	}
	status.PendingEvents = int64(waiting.Ready + waiting.Delayed)
	for _, w := range p.placement.Workers() {
		instances := int64(0)
		for _, h := range w.Hosted {
			instances += int64(h.Instances)
		}
		status.Instances += instances
		status.Workers = append(status.Workers, &dozev1.WorkerStatus{
			Id: w.Worker, MemoryTotalBytes: w.MemoryTotalBytes, MemoryFreeBytes: w.MemoryFreeBytes, Instances: instances,
			Sandbox: w.Sandbox, Missing: w.Missing, Draining: w.Draining, Unavailable: w.Unavailable,
			Parked: w.Parked,
		})
	}
	return status, nil
}

// nodes are the control nodes: the voters, and others that are there.
func (c *Control) nodes() []*dozev1.NodeStatus {
	byName := map[string]*dozev1.NodeStatus{}
	node := func(name string) *dozev1.NodeStatus {
		if byName[name] == nil {
			byName[name] = &dozev1.NodeStatus{Name: name}
		}
		return byName[name]
	}
	if members, err := c.quorum.Members(); err == nil {
		for _, m := range members {
			node(m.ID).Voter = m.Voter
		}
	}
	if c.members == nil {
		n := node(aloneName)
		n.Alive, n.Serving, n.Version, n.Api = true, true, c.config.Version, c.config.HTTP.Addr().String()
	} else {
		for _, m := range c.members.Controls() {
			n := node(m.Name)
			n.Alive, n.Serving, n.Version, n.Api = true, m.Serving, m.Version, m.Addr(m.HTTP)
		}
	}
	return slices.SortedFunc(maps.Values(byName), func(a, b *dozev1.NodeStatus) int { return strings.Compare(a.Name, b.Name) })
}

// Logs reads a function's lines.
func (p *platform) Logs(ctx context.Context, account, function string, since time.Time, follow bool, fn func(*dozev1.LogRecord) error) error {
	return p.logs.ReadLogs(ctx, account, function, since, follow, func(line *dozev1.LogLine) error {
		return fn(&dozev1.LogRecord{AtMs: line.AtMs, Stream: line.Stream, Message: string(line.Text)})
	})
}

// Ready is nil when calls can be served.
func (c *Control) Ready() error {
	if c.isDraining() {
		return errDraining
	}
	if err := errors.Join(c.quorum.Err(), c.storage.Err()); err != nil {
		return err
	}
	if id, _ := c.quorum.Leader(); id == "" {
		return errors.New("no leader")
	}
	for _, w := range c.placement.Workers() {
		if !w.Draining && w.Unavailable == "" {
			return nil
		}
	}
	return errors.New("no worker takes calls")
}
