package bus

import (
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// probeEvery is how often a worker that runs a call of ours is asked whether it is there, from when
	// the call has run for so long: shorter calls cost nothing.
	probeEvery = 100 * time.Millisecond
	// probeGone is how many times in a row every home has to say that the worker is not connected: one
	// may be a connection that is being made anew.
	probeGone = 3
	// probeSilent is how long a worker that is connected may say nothing at all.
	probeSilent = 2 * time.Second
)

// probes watch the workers that run calls of an asker. A worker that was killed is known by its
// connections, which its kernel closes; one that is frozen or cut off by its silence.
type probes struct {
	mu      sync.Mutex
	next    time.Time
	workers map[string]*probe
}

type probe struct {
	heard time.Time // when it last answered, at first when it was first asked
	asked int       // homes, in this round
	gone  int       // of them, that said that it is not connected
	spoke bool      // it answered in this round
	lost  int       // rounds in a row in which it was gone from every home
}

func (a *Asker) probeSubject(worker string) string { return subjectProbe + "." + a.id + "." + worker }

// watchWorkers asks the workers that run calls for longer than probeEvery whether they are there, and
// ends the calls of those that are not.
func (a *Asker) watchWorkers(now time.Time) {
	a.probes.mu.Lock()
	due := !now.Before(a.probes.next)
	if due {
		a.probes.next = now.Add(probeEvery)
	}
	a.probes.mu.Unlock()
	if !due {
		return
	}
	running := map[string]bool{}
	a.mu.Lock()
	for _, p := range a.pending {
		if p.state == granted && now.Sub(p.granted) >= probeEvery {
			running[p.worker] = true
		}
	}
	a.mu.Unlock()
	for _, worker := range a.round(running, now) {
		a.WorkerLost(worker)
	}
}

// round judges the last round, begins the next and says which workers are lost.
func (a *Asker) round(running map[string]bool, now time.Time) (lost []string) {
	a.probes.mu.Lock()
	for worker := range a.probes.workers {
		if !running[worker] {
			delete(a.probes.workers, worker)
		}
	}
	for worker := range running {
		p := a.probes.workers[worker]
		if p == nil {
			p = &probe{heard: now}
			a.probes.workers[worker] = p
		}
		if p.asked > 0 && p.gone == p.asked && !p.spoke {
			p.lost++
		} else {
			p.lost = 0
		}
		if p.lost >= probeGone || now.Sub(p.heard) >= probeSilent {
			lost = append(lost, worker)
			delete(a.probes.workers, worker)
			continue
		}
		p.asked, p.gone, p.spoke = 0, 0, false
	}
	links := a.mesh.view.Load().links
	for _, p := range a.probes.workers {
		for _, link := range links {
			if link.up.Load() {
				p.asked++
			}
		}
	}
	a.probes.mu.Unlock()
	for worker := range running {
		for _, link := range links {
			if link.up.Load() {
				_ = link.nc.PublishRequest(workerSubject(worker, verbPing), a.probeSubject(worker), nil) // fails when the home goes; its word is missing then
			}
		}
	}
	return lost
}

// probed takes in a worker's answer, or a home's word that it is not there.
func (a *Asker) probed(m *nats.Msg) {
	worker := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	a.probes.mu.Lock()
	defer a.probes.mu.Unlock()
	p := a.probes.workers[worker]
	if p == nil {
		return
	}
	if m.Header.Get("Status") == statusGone {
		p.gone++
		return
	}
	p.heard, p.spoke = time.Now(), true
}

// WorkerLost ends the calls that a worker was granted: it is gone, and with it their answers.
func (a *Asker) WorkerLost(worker string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for token, p := range a.pending {
		if p.state != granted || p.worker != worker {
			continue
		}
		a.remove(token)
		left := max(0, p.limits.Run-time.Since(p.granted))
		p.done <- &Answer{Worker: worker, Fault: &Fault{
			Code: FaultWorkerLost, Message: "worker " + worker + " that ran the call is gone", Ran: true, Left: left,
		}}
	}
}
