package instance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
)

// Errors of Invoke. The handler was not given the event.
var (
	// ErrNotIdle says that the instance starts, has an event already, or has not asked for the next.
	ErrNotIdle = errors.New("instance: not idle")
	// ErrEnded says that the instance is ending or gone.
	ErrEnded = errors.New("instance: ended")
	// ErrRequestID says that a request id has characters that no header or log line may carry.
	ErrRequestID = errors.New("instance: invalid request id")
)

// Instance is one execution environment. Its methods may be called from many goroutines, and from
// within the Handler's calls.
type Instance struct {
	options *Options
	launch  *Launch
	handler Handler

	process sandbox.Process // nil when the entry point could not be executed
	stream  string
	created time.Time
	book    *logbook
	output  *outputReader
	server  server
	freezer freezer

	deadlineAlarm alarm
	freezeAlarm   alarm

	// turn is held from a step of the state to the end of the Handler's call about it, so that the
	// calls come one at a time and in the order of the steps. Invoke does not take it: the Handler
	// may call Invoke. Order of locks: turn, freezer.mu, mu.
	turn sync.Mutex

	mu       sync.Mutex
	state    State
	since    time.Time // when the state was entered
	event    *Event    // in Busy and Answering
	pending  bool      // event waits for a connection to ask for it
	stopping bool      // Stop was called
	lastID   string    // request id of the newest event, kept to tell late answers from wrong ones
	began    time.Time // when event was given to Invoke
	deadline time.Time // of the init or of event; of the kill in Ending
	init     time.Duration
	cold     bool         // no event has come to its end yet
	parked   []*conn      // connections whose next waits
	writer   *eventWriter // writes event in the background
	// initFailing is set while an init/error is being received.
	initFailing bool

	calls    atomic.Int64
	peakMB   atomic.Int64
	peakRead time.Time // guarded by turn
}

// wordingSlack is how much less than the function's timeout an event may be given and still be
// said to have taken all of it.
const wordingSlack = time.Second

// peakEvery bounds how often a busy instance's memory file is read on the path of its calls.
const peakEvery = 100 * time.Millisecond

// Start builds the sandbox and starts the runtime in it. ctx bounds the start of the process, not
// its life. An error means that nothing ran, nothing is left and handler is never called; it wraps
// sandbox.ErrNoMemory when the machine is full. A function without an executable bootstrap is not
// an error of Start: handler is told Done with Runtime.InvalidEntrypoint, then Ended. handler may
// be called before Start returns.
func Start(ctx context.Context, options *Options, launch *Launch, handler Handler) (*Instance, error) {
	if err := errors.Join(options.check(), launch.check()); err != nil {
		return nil, err
	}
	own := *launch
	if own.RequestID == "" {
		own.RequestID = newUUID()
	}
	i := &Instance{options: options, launch: &own, handler: handler, created: time.Now(), cold: true}
	i.stream = logStream(i.created, own.Spec.Version)
	i.book = newLogbook(options.Logs, own.Spec, i.stream)
	i.deadlineAlarm.fire = i.deadlineDue
	i.freezeAlarm.fire = i.freezeDue
	// What init prints is in the tail of the call whose init fails.
	i.book.keepTail()

	argv, err := i.argv()
	if err != nil {
		i.refuseEntrypoint("", nil)
		return i, nil
	}
	start := options.Sandbox.Start
	if own.Start != nil {
		start = own.Start
	}
	process, err := start(ctx, i.sandboxConfig(argv))
	if err != nil {
		if errors.Is(err, sandbox.ErrEntrypoint) && own.Runtime.Native() {
			i.refuseEntrypoint(argv[0], err)
			return i, nil
		}
		i.book.alarm.close()
		return nil, fmt.Errorf("instance: start: %w", err)
	}
	i.run(process)
	return i, nil
}

// argv is the program as seen inside. For the native runtimes that is the package's bootstrap, or
// a layer's.
func (i *Instance) argv() ([]string, error) {
	if argv := i.launch.Runtime.Argv(i.launch.Spec.MemoryMb); argv != nil {
		return argv, nil
	}
	for _, dir := range []struct{ host, inside string }{
		{i.launch.CodeDir, runtimes.TaskRoot}, {i.launch.OptDir, runtimes.OptRoot},
	} {
		if dir.host == "" {
			continue
		}
		// Lstat: a link is followed inside, where it means something else than out here.
		if info, err := os.Lstat(filepath.Join(dir.host, "bootstrap")); err == nil && !info.IsDir() {
			return []string{dir.inside + "/bootstrap"}, nil
		}
	}
	return nil, sandbox.ErrEntrypoint
}

func (i *Instance) sandboxConfig(argv []string) sandbox.Config {
	l, o := i.launch, i.options
	return sandbox.Config{
		ID: l.ID, CodeDir: l.CodeDir, OptDir: l.OptDir, RuntimeDir: o.runtimeDir(l.Runtime), ReadOnly: l.Runtime.ReadOnly,
		Argv: argv, Env: environment(o, l, i.stream),
		MemoryBytes: int64(l.Spec.MemoryMb) << 20, TmpBytes: tmpBytes(l.Spec.EphemeralStorageMb),
		CPUMilli: cpuMilli(l.Spec.MemoryMb), HardCPU: o.HardCPU, MaxProcesses: o.maxProcesses(), Egress: l.Spec.Egress,
	}
}

// runtimeDir is what an instance sees as /var/runtime.
func (o *Options) runtimeDir(r runtimes.Runtime) string {
	if r.Native() {
		return ""
	}
	return o.RuntimeDir
}

func (o *Options) maxProcesses() int {
	if o.MaxProcesses == 0 {
		return defaultMaxProcesses
	}
	return o.MaxProcesses
}

// tmpBytes is the size of /tmp; without a setting it is AWS's 512 MB.
func tmpBytes(ephemeralStorageMB uint32) int64 {
	if ephemeralStorageMB == 0 {
		ephemeralStorageMB = 512
	}
	return int64(ephemeralStorageMB) << 20
}

// run makes the instance's goroutines; watch waits for all of them.
func (i *Instance) run(process sandbox.Process) {
	now := time.Now()
	limit := i.launch.InitLimit
	if limit <= 0 {
		limit = InitLimit
	}
	i.process = process
	if f, ok := process.(sandbox.Freezer); ok && i.options.FreezeAfter > 0 {
		i.freezer.process, i.freezer.after = f, i.options.FreezeAfter
	}
	i.since, i.began, i.deadline = now, now, now.Add(limit)
	i.output = newOutputReader(process.Output(), i.book)
	i.book.line(now, "INIT_START Runtime Version: ", i.launch.Runtime.Label())
	i.deadlineAlarm.by(i.deadline)
	i.server.start(i, process.Listener())
	go i.output.run()
	go i.watch()
}

// refuseEntrypoint tells the Handler that the function has nothing to execute.
func (i *Instance) refuseEntrypoint(argv0 string, cause error) {
	f := invalidEntrypoint(argv0, cause)
	go func() {
		i.turn.Lock()
		defer i.turn.Unlock()
		i.mu.Lock()
		i.began = i.created
		i.mu.Unlock()
		i.failInit(f, nil, Ended)
		i.book.close()
		i.handler.Ended(i)
	}()
}

// watch waits for the end of the process tree, answers what is still open, and tells Ended when
// nothing of the instance is left.
func (i *Instance) watch() {
	<-i.process.Done()
	// What the dead wrote to their sockets and pipes is still there: it is read first, since a
	// response that was sent counts though its sender is gone.
	i.server.finish()
	if !i.output.finish() {
		i.options.Logger.Error("output still open after every process ended", "instance", i.launch.ID)
	}
	i.deadlineAlarm.close()
	i.freezeAlarm.close()

	i.turn.Lock()
	defer i.turn.Unlock()
	i.mu.Lock()
	state, stopping := i.state, i.stopping
	i.mu.Unlock()
	f := exited(i.process.Exit())
	if stopping {
		f = stopped()
	}
	switch state {
	case Starting:
		if f.outcome == Exit {
			f.outcome = InitError
		}
		i.failInit(f, nil, Ended)
	case Busy, Answering:
		i.failEvent(f, Ended)
	default:
		i.mu.Lock()
		i.step(Ended)
		i.mu.Unlock()
	}
	i.book.close()
	i.handler.Ended(i)
}

// step goes to the next state if the table allows it. i.mu is held.
func (i *Instance) step(next State) bool {
	if !i.state.May(next) {
		return false
	}
	i.state = next
	return true
}

// Stop ends the instance. It may be called at any time, more than once, and from within the
// Handler's calls; it waits for nothing. An event in flight is told Done with Outcome Killed (or
// what it came to, when its answer was on its way), and so is an init that has not come to Ready;
// then Ended. Invoke fails from here on.
func (i *Instance) Stop() {
	i.mu.Lock()
	if !i.stopping {
		i.stopping = true
		if (i.state == Idle || i.state == Settled) && i.step(Ending) {
			i.ending(time.Now())
		}
	}
	i.mu.Unlock()
	i.kill()
}

// StopIdle ends the instance if it is idle, and says whether it did. After true, Invoke fails, so
// no event is lost to the end of an idle instance. Else as Stop.
func (i *Instance) StopIdle() bool {
	i.mu.Lock()
	if i.state != Idle || !i.step(Ending) {
		i.mu.Unlock()
		return false
	}
	i.stopping = true
	i.ending(time.Now())
	i.mu.Unlock()
	i.kill()
	return true
}

// ending notes when the kill is overdue. i.mu is held.
func (i *Instance) ending(now time.Time) {
	i.since, i.deadline = now, now.Add(sandbox.KillGrace)
	i.deadlineAlarm.by(i.deadline)
}

func (i *Instance) kill() {
	if i.process != nil {
		i.process.Kill()
	}
}

// deadlineDue is the deadline alarm's fire: an init or an event that is out of time is ended.
func (i *Instance) deadlineDue() {
	i.turn.Lock()
	defer i.turn.Unlock()
	i.mu.Lock()
	state, deadline, stopping, limit := i.state, i.deadline, i.stopping, time.Duration(0)
	if i.event != nil {
		limit = i.event.Timeout
		// The owner knows the function's timeout; what was left of it is a little less.
		if configured := time.Duration(i.launch.Spec.TimeoutSeconds) * time.Second; limit < configured && configured-limit < wordingSlack {
			limit = configured
		}
	} else {
		limit = deadline.Sub(i.began)
	}
	i.mu.Unlock()
	switch state {
	case Starting, Busy, Answering, Ending:
	default:
		return
	}
	if time.Now().Before(deadline) {
		i.deadlineAlarm.by(deadline)
		return
	}
	if stopping && state != Ending {
		i.kill() // told Done when the processes are gone
		return
	}
	switch state {
	case Starting:
		f := timedOut(limit)
		f.outcome = InitError
		i.samplePeak(time.Now(), true)
		i.kill()
		i.failInit(f, nil, Ending)
	case Busy, Answering:
		i.samplePeak(time.Now(), true)
		i.kill()
		i.failEvent(timedOut(limit), Ending)
	case Ending:
		i.options.Logger.Error("processes still there after kill", "instance", i.launch.ID,
			"function", i.launch.Spec.Function, "grace", sandbox.KillGrace)
	}
}

// samplePeak reads the most memory used, at most every peakEvery unless it must be now. The
// figure that REPORT shows may therefore lag by that much. turn is held.
func (i *Instance) samplePeak(now time.Time, must bool) int {
	if i.process != nil && (must || now.Sub(i.peakRead) >= peakEvery) {
		i.peakRead = now
		// 0 is "cannot be told", also when it was removed already: what was read last stands.
		if mb := (i.process.MemoryPeakBytes() + 1<<20 - 1) >> 20; mb > i.peakMB.Load() {
			i.peakMB.Store(mb)
		}
	}
	return int(i.peakMB.Load())
}

// logStream names the stream as AWS does: 2024/05/01/[$LATEST]<32 hex>.
func logStream(now time.Time, version string) string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return now.UTC().Format("2006/01/02") + "/[" + version + "]" + hex.EncodeToString(id[:])
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
