package instance

import (
	"github.com/doze-run/doze/worker/runtimes"
	"github.com/doze-run/doze/worker/sandbox"
)

// ParkConfig is a sandbox that waits for a function of the runtime: with the runtime's client in it, or empty
// for the native ones. What the function's memory (MB) and ephemeral storage (MB) turn out to be may differ,
// except that Node.js learns at its start how much memory it may use. The network is the function's from the beginning.
func (o *Options) ParkConfig(r runtimes.Runtime, memoryMB, ephemeralStorageMB uint32, egress bool) sandbox.ParkConfig {
	c := sandbox.ParkConfig{
		MemoryBytes: int64(memoryMB) << 20, TmpBytes: tmpBytes(ephemeralStorageMB),
		CPUMilli: cpuMilli(memoryMB), HardCPU: o.HardCPU, MaxProcesses: o.maxProcesses(), Egress: egress,
	}
	if r.Native() {
		return c
	}
	c.RuntimeDir, c.ReadOnly = o.runtimeDir(r), r.ReadOnly
	c.Argv, c.Env = r.ParkedArgv(memoryMB), sorted(defaults(r))
	return c
}
