package main

import (
	"os"
	"strconv"
	"syscall"
)

// platformNice is the platform's scheduling priority where it may set one: what it does for a call
// is little and everybody waits for it, so that a function that computes must not be in its way.
// The sandboxes set their programs back to 0.
const platformNice = -10

// raisePriority gives every thread of this process, and so those that they start, the platform's
// priority. Without the right to do so it changes nothing.
func raisePriority() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, thread := range threads {
		if id, err := strconv.Atoi(thread.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, platformNice)
		}
	}
}
