//go:build linux

package stage

// Marker is argv[0] of a process that must become a launcher. Together with a SEQPACKET socket
// as descriptor 3 it cannot come about by a user's input.
const Marker = "[doze-sandbox-stage]"

// ControlFD is the descriptor of the socket that a launcher, and later a PID 1, is told what to do
// by.
const ControlFD = 3

// SignalReg is the register in which the operations of a PID 1 leave a signalfd of SIGCHLD.
const SignalReg = 0

// MaxMessage bounds one request, in bytes: header, data and operations. It is below the default
// send buffer of a unix socket.
const MaxMessage = 160 << 10

// MaxFDs bounds the descriptors that ride with one request.
const MaxFDs = 64

// MaxRegs is how many results of operations can be kept.
const MaxRegs = 16

// Header begins every request. Offsets count from the first byte of the header. All numbers are
// in the machine's byte order: both sides are the same program on the same machine.
type Header struct {
	Magic uint32
	Kind  uint32
	// Size is the length of the whole request.
	Size uint32
	// OpsOff is where the operations begin, 8-byte aligned. Main, Child and After say how many
	// there are of each, in this order.
	OpsOff             uint32
	Main, Child, After uint32
	// RelocOff is where RelocLen offsets (uint32 each) begin. Each names an 8-byte slot that holds
	// an offset and is turned into an address before anything runs.
	RelocOff, RelocLen uint32
	// SendLen of Send are registers whose descriptors go back with the report.
	SendLen uint32
	Send    [4]uint8
	// IntoCgroup is 1 when the second descriptor of a Spawn is the cgroup v2 directory to be born in.
	IntoCgroup uint32
	// Hold says that a PID 1 with a Child keeps what rights it has and waits for one more Step, without a
	// Child. HoldProgram: the Child executes a program, which waits as well. HoldChild: it does not execute
	// one, but waits for an Exec on its descriptor 0.
	Hold uint32
	// Flags are those of clone for a Fork.
	Flags uint32
	_     [2]uint32
}

// HeaderSize is the length of a Header, in bytes.
const HeaderSize = 64

// Magic begins every request.
const Magic = 0x646f7a65

// Kinds of request.
const (
	// Setup: the launcher runs Main itself. Descriptors that Send names go back with the report, and are closed
	// here.
	Setup = iota + 1
	// Spawn: the launcher makes a PID 1, which runs Main. The first descriptor is its control socket.
	Spawn
	// Step: a PID 1 runs Main. If there is a Child, a child runs it up to its last operation, which is to
	// execute the program and waits until PID 1 has run After. From then on PID 1 only waits for the
	// program's end, with no descriptor but those it needs; with Hold, from the next Step on.
	Step
	// Exec: a child that was held runs Main, whose last operation executes the program.
	Exec
	// Fork: the launcher makes another one, born with Flags, which serves requests as it does itself. The first
	// descriptor is its control socket. A launcher made so has one thread, whatever it is a fork of.
	Fork
)

// Values of Hold.
const (
	HoldProgram = 1 + iota
	HoldChild
)

// Op is one system call.
type Op struct {
	Nr uint32
	// Ignore is an error number that counts as success; 0 for none, AnyError for all.
	Ignore uint16
	// Save is 1 + the register that keeps the result; 0 for none.
	Save uint8
	_    uint8
	Kind [6]uint8
	_    [2]uint8
	Arg  [6]uint64
}

// AnyError as Op.Ignore: the result does not matter.
const AnyError = 0xffff

// OpSize is the length of an Op, in bytes.
const OpSize = 64

// Kinds of argument.
const (
	// Imm is the number itself.
	Imm = iota
	// Data is the address of the byte at this offset of the request.
	Data
	// FD is a descriptor that came with the request, by index.
	FD
	// Reg is the result of an earlier operation of this process or of the one it was forked from.
	Reg
)

// Report is what comes back on a control socket.
type Report struct {
	Kind uint32
	// A is a PID (Spawned), a wait status (Exited) or the index of an operation (Failed).
	A uint32
	// Errno is set in a Failed, and so is List: which list of the request, and from the 8th bit on
	// the kind of the request.
	Errno, List uint32
}

// ReportSize is the length of a Report, in bytes.
const ReportSize = 16

// Kinds of report.
const (
	// Done answers a Setup.
	Done = iota + 1
	// Spawned comes from the launcher, with a pidfd of the new PID 1 or, after a Fork, of the new launcher.
	Spawned
	// Started: the program has been executed, or is held; or, if it was held, PID 1 has done its last Step and
	// the program has been executed.
	Started
	// Failed: nothing of the program has run, and this process ends.
	Failed
	// Exited: the program has ended; what is left of the instance ends now.
	Exited
)

// Lists in a Failed report.
const (
	ListMain = iota
	ListChild
	ListAfter
	// ListStage: A is 1 for a malformed request, 2 for a clone.
	ListStage
)
