package instance

import (
	"time"
)

// How events and inits come to their end. Everything here is called with turn held, steps the
// state under mu, and calls the Handler with mu released: an event is taken out of the instance by
// the one who steps away from Busy or Answering, so it cannot be answered twice.

// ended is an event that was taken out of the instance.
type ended struct {
	event *Event
	began time.Time
	init  time.Duration // 0 but for the first event
}

// take steps to next and takes the event out. ok is false when the table refuses.
func (i *Instance) take(next State) (e ended, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.event == nil || !i.step(next) {
		return ended{}, false
	}
	e = ended{event: i.event, began: i.began}
	if i.cold {
		e.init, i.cold = i.init, false
	}
	i.event = nil
	i.since = time.Now()
	if next == Ending {
		i.ending(i.since)
	}
	return e, true
}

// answer settles an event with what the runtime sent. The instance lives on.
func (i *Instance) answer(o Outcome, payload []byte, unread time.Duration) bool {
	e, ok := i.take(Settled)
	if !ok {
		return false
	}
	i.server.answered()
	i.quiesce()
	now := time.Now()
	r := &Result{Outcome: o, Payload: payload, Began: e.began, Duration: now.Sub(e.began), Unread: unread, Init: e.init}
	if o != OK {
		r.FunctionError = "Unhandled"
	}
	r.BilledMs = billedMs(r.Duration + r.Init)
	r.MaxMemoryMB = i.samplePeak(now, false)
	if e.event.Tail {
		i.report(now, e.event.RequestID, r, "", "")
		i.handler.Done(i, r)
		return true
	}
	// Nobody waits for the log: the answer leaves first. The next event cannot come before the
	// lines are written, because Idle comes after them. r belongs to the Handler from Done on.
	line := *r
	id := e.event.RequestID
	i.handler.Done(i, r)
	i.report(now, id, &line, "", "")
	return true
}

// report writes END and REPORT behind what the function printed.
func (i *Instance) report(now time.Time, id string, r *Result, status, errorType string) {
	if i.output != nil {
		i.output.drain()
	}
	r.LogTail = i.book.end(now, id, &report{
		duration: r.Duration, init: r.Init, billedMs: r.BilledMs,
		memoryMB: int(i.launch.Spec.MemoryMb), maxMemoryMB: r.MaxMemoryMB,
		status: status, errorType: errorType,
	})
}

// failEvent ends the event in flight with a fault, which also ends the instance.
func (i *Instance) failEvent(f *fault, next State) {
	e, ok := i.take(next)
	if !ok {
		return
	}
	i.quiesce()
	now := time.Now()
	id := e.event.RequestID
	r := &Result{Outcome: f.outcome, Payload: f.payload(id), FunctionError: "Unhandled",
		Began: e.began, Duration: now.Sub(e.began), Init: e.init}
	if f.outcome == Timeout {
		r.Duration = e.event.Timeout // what came after it was the platform's time
	}
	r.BilledMs = billedMs(r.Duration + r.Init)
	r.MaxMemoryMB = i.samplePeak(now, true)
	i.drainOutput()
	i.logFault(now, id, f)
	i.report(now, id, r, f.status, reportType(f))
	if !e.event.Tail {
		r.LogTail = nil
	}
	i.handler.Done(i, r)
}

// failInit ends an init that did not come to Ready. payload is what the runtime reported, or nil
// for the fault's own. The Result always has the tail: the instance does not know who waits.
func (i *Instance) failInit(f *fault, payload []byte, next State) bool {
	i.mu.Lock()
	if i.state != Starting || !i.step(next) {
		i.mu.Unlock()
		return false
	}
	now := time.Now()
	took := now.Sub(i.began)
	if f.status == "timeout" {
		took = i.deadline.Sub(i.began)
	}
	i.since, i.cold = now, false
	if next == Ending {
		i.ending(now)
	}
	i.mu.Unlock()

	id := i.launch.RequestID
	if payload == nil {
		payload = f.payload(id)
	}
	r := &Result{Outcome: f.outcome, Payload: payload, FunctionError: "Unhandled", Init: took, BilledMs: billedMs(took)}
	r.MaxMemoryMB = i.samplePeak(now, true)
	i.drainOutput()
	i.book.line(now, "INIT_REPORT Init Duration: ", string(appendMs(nil, took)), " ms\tPhase: init\tStatus: ", f.status, "\tError Type: ", f.errorType)
	i.book.line(now, "START RequestId: ", id, " Version: ", i.launch.Spec.Version)
	i.logFault(now, id, f)
	i.report(now, id, r, f.status, reportType(f))
	i.handler.Done(i, r)
	return true
}

func (i *Instance) drainOutput() {
	if i.output != nil {
		i.output.drain()
	}
}

// logFault writes the line in which AWS tells an owner why the environment ended.
func (i *Instance) logFault(now time.Time, id string, f *fault) {
	switch f.outcome {
	case Timeout:
		i.book.line(now, now.UTC().Format("2006-01-02T15:04:05.000Z"), " ", id, " ", f.text)
	default:
		if f.text == "" { // the runtime reported and logged it
			return
		}
		if f.status == "timeout" {
			i.book.line(now, now.UTC().Format("2006-01-02T15:04:05.000Z"), " ", id, " ", f.text)
			return
		}
		i.book.line(now, "RequestId: ", id, " Error: ", f.text)
		i.book.line(now, f.errorType)
	}
}

// reportType is the Error Type that REPORT shows beside "Status: error".
func reportType(f *fault) string {
	if f.status == "error" {
		return f.errorType
	}
	return ""
}

// billedMs rounds up to whole milliseconds, at least 1.
func billedMs(d time.Duration) uint32 {
	ms := (d + time.Millisecond - 1) / time.Millisecond
	return uint32(min(max(ms, 1), 1<<32-1))
}
