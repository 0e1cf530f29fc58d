package main

import (
	"runtime"
	"runtime/debug"
)

// gcPercent lets the heap, which is small, grow threefold between two collections.
const gcPercent = 200

// shareMachine leaves the functions their part of the machine: half of the CPUs. The platform does
// little for each call, in many small steps, and a step that wakes another CPU costs more than it
// wins: on two CPUs a warm call takes a fifth less time when the platform keeps to one, and a Go
// function gets half as many calls again. Go's own variables are stronger.
func shareMachine(getenv func(string) string) {
	raisePriority()
	if getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
	if getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
