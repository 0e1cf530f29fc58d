//go:build linux

// Package linux is the sandbox made of Linux's own walls: PID, mount, UTS, IPC, network and cgroup
// namespaces, cgroups of either version, an unprivileged uid, no capabilities, no_new_privs, a seccomp
// filter, and a read-only root with nothing of the host in it but its programs and libraries.
//
// Who does what: this package, in the worker, decides and prepares (root.go, mount.go, cgroup.go,
// seccomp.go) and writes lists of system calls (plan.go); the processes of package stage carry them out. The launcher
// is one small process per Sandbox that lives in the finished root; an instance is a fork of it that gets
// namespaces and a few mounts of its own.
//
// A start has two halves, prepare and run. Park does the first and as much of the second as does not depend on the
// function, before the function is known (park.go).
//
// Measured on 2 cores, Linux 6.18, cgroups v1: Start of a static Go program 2.7 ms at the median in sparse arrivals,
// 0.8 MB of memory for an idle instance of it in all, of which 112 KB are PID 1's.
//
// What counts towards an instance's memory limit: its processes, what it keeps in /tmp and /dev/shm, and the
// page cache that it was the first to fill.
//
// Without root, all of this is done in a user namespace (userns.go): a launcher that is a fork of another one is root
// in there, and one more stays behind that sees the host, to clone mounts for it. Cgroups are used if the worker was
// given some (delegate.go); what they would count is counted by looking (census.go). Missing says what that does not give.
//
// It needs kernel 5.12 or later (mount_setattr), root or user namespaces, and a binary that imports it (package
// stage takes over in init).
package linux

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/doze-run/doze/worker/sandbox"
	"github.com/doze-run/doze/worker/sandbox/linux/egress"
	"github.com/doze-run/doze/worker/sandbox/linux/stage"
)

// Options say where and as whom instances run.
type Options struct {
	// DataDir is a directory of the worker that outlives it. Two sandboxes cannot share one; a new one
	// ends what a dead one of the same directory left running.
	DataDir string
	// Logger gets what nobody is there to be told. nil: nothing is logged.
	Logger *slog.Logger
	// UIDBase and UIDCount are the host uids (and gids of the same number) that instances get, one each.
	// They must belong to nobody. The first is the one that PID 1 of every instance has.
	// 0: a range that depends on DataDir, at or above 2^29; 16384 of them. Without root they are not used: the user's
	// subordinate ids are.
	UIDBase, UIDCount int
	// EgressRange, DenyEgress, AllowEgress and ResolvConf are Range, Deny, Allow and ResolvConf of package egress.
	EgressRange             netip.Prefix
	DenyEgress, AllowEgress []netip.Prefix
	ResolvConf              string
	// withoutCgroups leaves them alone, for a trial.
	withoutCgroups bool
}

const defaultUIDCount = 16384

// Sandbox implements sandbox.Sandbox.
type Sandbox struct {
	log      *slog.Logger
	dir      string
	lock     *os.File
	cgroups  *cgroups
	root     *root
	filter   []byte
	masks    []mask
	lastCap  int
	stageUID int
	uids     *uids
	egress   *egress.Network // nil where noEgress says why
	noEgress error
	user     *identities // nil for root
	// undelegated says why there are no cgroups, or fewer controllers.
	undelegated string
	lacks       []string
	quit        chan struct{} // ends watch; nil where nothing is watched
	watching    sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	launcher  *launcher
	processes map[*Process]struct{}
	ids       map[string]struct{}
	starting  sync.WaitGroup
}

var _ sandbox.Sandbox = (*Sandbox)(nil)

// New builds what all instances have in common. It first ends and removes what a worker that died left
// behind with the same DataDir. An error says what this machine or this user lacks.
func New(options Options) (_ *Sandbox, err error) {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	dataDir, err := filepath.Abs(options.DataDir)
	if err != nil {
		return nil, fmt.Errorf("linux sandbox: %w", err)
	}
	if options.UIDBase == 0 {
		options.UIDBase = defaultUIDs(dataDir)
	}
	if options.UIDCount == 0 {
		options.UIDCount = defaultUIDCount
	}
	if options.UIDBase < 1 || options.UIDCount < 2 || options.UIDBase+options.UIDCount > 1<<31-2 {
		return nil, fmt.Errorf("linux sandbox: uids %d+%d: not a range of at least two uids below 2^31-2", options.UIDBase, options.UIDCount)
	}
	s := &Sandbox{
		log: options.Logger, dir: filepath.Join(dataDir, "sandbox"), masks: procMasks(),
		stageUID: options.UIDBase, uids: newUIDs(options.UIDBase+1, options.UIDCount-1),
		processes: map[*Process]struct{}{}, ids: map[string]struct{}{},
	}
	defer func() {
		if err != nil {
			s.discard()
			err = fmt.Errorf("linux sandbox: %w", err)
		}
	}()
	if s.lastCap, err = lastCapability(); err != nil {
		return nil, err
	}
	if s.filter, err = filter(); err != nil {
		return nil, err
	}
	if err = s.own(); err != nil {
		return nil, err
	}
	if options.withoutCgroups {
		s.cgroups = &cgroups{}
	} else if err = s.openCgroups(parentName(dataDir)); err != nil {
		return nil, err
	}
	if unix.Geteuid() != 0 {
		s.user = findIdentities()
	}
	if err = s.launch(); err != nil {
		return nil, err
	}
	if s.user != nil {
		s.useSubordinates(dataDir)
	}
	// What is left of the network goes after the processes that were in it. A machine that has none to give starts all
	// other instances.
	if options.withoutCgroups {
		s.noEgress = errors.New("a trial has none")
	} else {
		s.egress, s.noEgress = egress.Open(egress.Config{Tag: parentName(dataDir)[len("doze-"):][:6], Range: options.EgressRange,
			Deny: options.DenyEgress, Allow: options.AllowEgress, ResolvConf: options.ResolvConf, Logger: s.log})
	}
	s.lacks = s.missing()
	if s.counts() {
		s.quit = make(chan struct{})
		s.watching.Go(func() { s.watch(s.quit) })
	}
	if s.user != nil {
		err = s.tryOne()
	}
	return s, err
}

// tryOne starts an instance that does nothing. A system can let its users make user namespaces and still refuse what
// belongs into them, and nobody should learn that from his first function.
func (s *Sandbox) tryOne() error {
	code := filepath.Join(s.dir, "try")
	if err := errors.Join(os.MkdirAll(code, 0o755), os.Chmod(code, 0o755)); err != nil { // one may be there, of a dead worker
		return err
	}
	defer os.RemoveAll(code)
	ctx, cancel := context.WithTimeout(context.Background(), sandbox.KillGrace)
	defer cancel()
	p, err := s.start(ctx, sandbox.Config{ID: "try", CodeDir: code, Argv: []string{"/bin/true"},
		MemoryBytes: 64 << 20, TmpBytes: 1 << 20, CPUMilli: 100, MaxProcesses: 16})
	if errors.Is(err, sandbox.ErrEntrypoint) {
		return nil // all walls stand before a program is executed
	}
	if err != nil {
		return noUserNamespace(err)
	}
	p.Kill()
	<-p.Done()
	p.output.close()
	return nil
}

// openCgroups finds the cgroups that this user may use and makes the sandbox's own.
func (s *Sandbox) openCgroups(parent string) (err error) {
	if unix.Geteuid() == 0 {
		if s.cgroups, err = detectCgroups("/proc/self/mountinfo", "/proc/self/cgroup", parent); err == nil {
			err = s.cgroups.mountUnified("/proc/self/cgroup", parent)
		}
	} else if s.cgroups, s.undelegated, err = delegatedCgroups("/proc/self/mountinfo", "/proc/self/cgroup", parent); err == nil {
		err = s.sweepOld()
	}
	if err != nil {
		return err
	}
	s.cgroups.cpus = runtime.NumCPU()
	if err := s.cgroups.sweep(); err != nil {
		return err
	}
	err = s.cgroups.open()
	if err != nil && unix.Geteuid() != 0 {
		// What was delegated cannot be used, perhaps because somebody else is in it: as if there were nothing.
		s.cgroups, s.undelegated, err = &cgroups{}, err.Error(), nil
	}
	return err
}

// sweepOld removes what a dead worker of this data directory made in a group that this one is not in, and notes down
// where this one makes its own: a user's worker is in another group each time it is started.
func (s *Sandbox) sweepOld() error {
	note := filepath.Join(s.dir, "cgroup")
	if b, err := os.ReadFile(note); err == nil && len(b) > 0 && string(b) != s.cgroups.unified {
		old := &cgroups{unified: string(b)}
		if _, err := os.Stat(old.unified); err == nil {
			if err := errors.Join(old.sweep(), old.remove()); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(note, []byte(s.cgroups.unified), 0o600)
}

// useSubordinates puts the ids that the user namespace has in the place of a root's. Two workers of a user begin at
// different ones, as far as there are enough.
func (s *Sandbox) useSubordinates(dataDir string) {
	if !s.user.distinct() {
		s.stageUID, s.uids = soleUID, &uids{sole: soleUID}
		return
	}
	count := min(s.user.count, defaultUIDCount)
	base := 1 + defaultUIDs(dataDir)>>16%(s.user.count/count)*count
	s.stageUID, s.uids = base, newUIDs(base+1, count-1)
}

// counts tells whether instances are counted by looking, because no cgroup does.
func (s *Sandbox) counts() bool {
	return !s.cgroups.has("memory") || !s.cgroups.has("pids") || !s.cgroups.canFreeze()
}

// distinct tells whether each instance has a uid of its own. Without, a process cannot give up its groups either.
func (s *Sandbox) distinct() bool { return s.user == nil || s.user.distinct() }

// parentName is the cgroup that all instances of a data directory are below, whichever process made them.
func parentName(dataDir string) string {
	hash := sha256.Sum256([]byte(dataDir))
	return "doze-" + hex.EncodeToString(hash[:8])
}

// own takes the data directory for this process.
func (s *Sandbox) own() error {
	if err := os.MkdirAll(filepath.Join(s.dir, "root"), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("%s is in use by another sandbox: %w", s.dir, err)
	}
	s.lock = f
	return nil
}

// launch makes the root of the instances and the launcher that lives in it. An error leaves neither.
func (s *Sandbox) launch() error {
	l, err := execLauncher()
	if err != nil {
		return err
	}
	var m mounter
	if s.user != nil {
		steady := newProgram(stage.Setup)
		steady.signals(ignored, 1)
		if _, err = l.do(steady); err == nil {
			m.deputy, err = s.user.enter(l)
		}
		if err != nil {
			l.close()
			return err
		}
		forked, err := m.deputy.fork(0)
		if err != nil {
			m.deputy.close()
			return err
		}
		l = forked
	}
	if s.root, err = newRoot(m); err == nil {
		_, err = l.do(s.setup(filepath.Join(s.dir, "root")))
	}
	if err != nil {
		l.close()
		if s.root != nil {
			s.root.close()
		}
		if s.user != nil {
			err = noUserNamespace(err)
		}
		return err
	}
	s.launcher = l
	return nil
}

// Name is "linux".
func (s *Sandbox) Name() string { return "linux" }

// Missing says what this machine does not give.
func (s *Sandbox) Missing() []string { return s.lacks }

// The first words of what Missing may say.
const (
	lackUIDs      = "no distinct uids"
	lackMemory    = "no memory limit by the kernel"
	lackProcesses = "no bound on processes by the kernel"
	lackFreezer   = "no freezing by the kernel"
	lackCPU       = "no cpu cgroup controller"
)

func (s *Sandbox) missing() (lines []string) {
	if s.noEgress != nil {
		defer func() {
			lines = append(lines, "no network egress, so functions that ask for it do not start: "+s.noEgress.Error())
		}()
	}
	if s.user == nil {
		return s.cgroups.missing()
	}
	add := func(what, means string) { lines = append(lines, what+": "+means) }
	if s.cgroups.unified == "" {
		add("no cgroups", s.undelegated)
	}
	if !s.user.distinct() {
		lines = append(lines, lackUIDs+": all instances run as the worker's own user behind their walls; "+s.user.why)
	}
	if !s.cgroups.has("memory") {
		add(lackMemory, fmt.Sprintf("what instances use is looked at every %s, and may be more in between; what the kernel holds for them (sockets, pipes, unmapped memory files) is not seen", censusEvery))
	}
	if !s.cgroups.has("cpu") {
		add(lackCPU, "instances share the CPU without regard to their memory, and none is capped")
	}
	if !s.cgroups.has("pids") && !s.user.distinct() {
		add(lackProcesses, fmt.Sprintf("an instance with too many is ended, within %s", censusEvery))
	}
	if !s.cgroups.canFreeze() {
		add(lackFreezer, "the processes of an idle instance are stopped one by one")
	}
	return lines
}

// enter registers a start. leave must follow.
func (s *Sandbox) enter(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("the sandbox is closed")
	}
	if _, ok := s.ids[id]; ok {
		return fmt.Errorf("an instance %s is there already", id)
	}
	s.ids[id] = struct{}{}
	s.starting.Add(1)
	return nil
}

// release gives a uid back that nothing has any more.
func (s *Sandbox) release(uid int) {
	if s.distinct() { // else others have it
		s.mu.Lock()
		s.root.forget(uid)
		s.mu.Unlock()
	}
	s.uids.give(uid)
}

func (s *Sandbox) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// spawn asks the launcher for a PID 1. A launcher that has died, and all instances with it, is replaced.
func (s *Sandbox) spawn(p *program) error {
	s.mu.Lock()
	l := s.launcher
	if !l.alive() {
		fresh, err := s.relaunch(l)
		if err != nil {
			s.mu.Unlock()
			return err
		}
		l = fresh
	}
	s.mu.Unlock()
	return l.spawn(p)
}

// relaunch starts over with a new root: the mounts of the old one went with the launcher. mu is held.
func (s *Sandbox) relaunch(old *launcher) (*launcher, error) {
	s.log.Error("the sandbox launcher has died and is replaced", "pid", old.pid)
	old.close()
	s.root.close()
	if err := s.launch(); err != nil {
		return nil, err
	}
	return s.launcher, nil
}

// Close ends every instance, waits until nothing is left of them, and removes what New made.
func (s *Sandbox) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.starting.Wait()
	s.mu.Lock()
	var all []*Process
	for p := range s.processes {
		all = append(all, p)
	}
	s.mu.Unlock()
	for _, p := range all {
		p.Kill()
	}
	for _, p := range all {
		<-p.Done()
	}
	return s.discard()
}

// discard removes what New has made so far.
func (s *Sandbox) discard() error {
	var errs []error
	if s.quit != nil {
		close(s.quit)
		s.watching.Wait()
	}
	if s.launcher != nil {
		s.launcher.close()
	}
	if s.root != nil {
		s.root.close()
	}
	if s.egress != nil {
		errs = append(errs, s.egress.Close())
	}
	if s.lock != nil {
		if s.cgroups != nil {
			errs = append(errs, s.cgroups.remove())
			s.cgroups.close()
		}
		errs = append(errs, os.RemoveAll(s.dir), s.lock.Close())
	}
	return errors.Join(errs...)
}

// Start implements sandbox.Sandbox.
func (s *Sandbox) Start(ctx context.Context, config sandbox.Config) (sandbox.Process, error) {
	if err := config.Check(); err != nil {
		return nil, err
	}
	if err := s.enter(config.ID); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", config.ID, err)
	}
	defer s.starting.Done()
	p, err := s.start(ctx, config)
	if err != nil {
		s.forget(config.ID)
		return nil, fmt.Errorf("sandbox %s: %w", config.ID, err)
	}
	return p, nil
}
